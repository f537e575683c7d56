"""What a calibration knows of every reuse: the error that it puts into the final image.

From the projections of what the blocks add follows, for every range R, the Gram matrix of what it adds at the steps,
G_R[s, t] = ⟨D_{R,s}, D_{R,t}⟩ with D_{R,t} = Σ_{l∈R} d_{l,t}. All errors are quadratic forms of it: of the Δ of step s
at step t, ‖D_t − D_s‖², and of the line through those of steps p < s, ‖D_t − (1 + r) D_s + r D_p‖² with
r = (t − s)/(s − p). How much the final image minds is a weight w_t, which also depends on the range and on the order.
"""

from collections.abc import Sequence

import numpy as np

from delta_dit.delta_plan import Range, Reuse

NOTHING = 1e-12  # squared errors below this are rounding
NONE = -1  # "no full step before the last one"


class ErrorModel:
    """What a calibration predicts: the mean squared error that one reuse puts into the final image.

    Args:
        sketches: ``(N, T, L, K)``, projections of what each block adds.
        probes: the C ways to reuse that were tried once.
        harm: ``(T, C)``, what that cost the final image, NaN where it could not be tried.
    """

    def __init__(self, sketches: np.ndarray, probes: Sequence[Reuse], harm: np.ndarray) -> None:
        samples, self.steps, self.blocks, size = sketches.shape
        first = np.zeros((samples, self.steps, 1, size), np.float32)
        self._sums = np.concatenate([first, sketches.cumsum(2)], 2)  # Σ over blocks below l
        self._known: dict[Reuse, np.ndarray] = {}
        self._planes = self._fit_weights(probes, harm)

    def gram(self, blocks: Range) -> np.ndarray:
        """Return G_R ``(T, T)``, the mean over samples of ⟨D_{R,s}, D_{R,t}⟩."""
        start, stop = blocks
        added = (self._sums[:, :, stop] - self._sums[:, :, start]).swapaxes(0, 1).reshape(self.steps, -1)
        return (added @ added.T).astype(np.float64) / len(self._sums)

    def weights(self, reuse: Reuse) -> np.ndarray:
        """Return w_t ``(T,)``: mean squared error of the final image ÷ squared error of the Δ that is reused."""
        return np.exp(self._planes @ _coordinates(reuse))

    def held(self, blocks: Range) -> np.ndarray:
        """Return the error of Δ_s at t, ``(T, T)`` over [s, t]."""
        gram = self.gram(blocks)
        square = np.diag(gram)
        return self.weights(Reuse(*blocks)) * np.maximum(square[None, :] + square[:, None] - 2 * gram, 0)

    def extrapolated(self, blocks: Range) -> np.ndarray:
        """Return the error of the line through Δ_p and Δ_s at t, ``(T, T, T)`` over [p, s, t]; NaN unless p < s."""
        gram = self.gram(blocks)
        square = np.diag(gram)
        p, s, t = np.ogrid[: self.steps, : self.steps, : self.steps]
        with np.errstate(divide="ignore", invalid="ignore"):
            r = np.where(p < s, (t - s) / (s - p), np.nan)
        error = square[t] + (1 + r) ** 2 * square[s] + r**2 * square[p]
        error = error - 2 * (1 + r) * gram[s, t] + 2 * r * gram[p, t] - 2 * r * (1 + r) * gram[p, s]
        return self.weights(Reuse(*blocks, order=1)) * np.maximum(error, 0)

    def predict(self, reuses: Sequence[Reuse | None], power: float = 1.0) -> float:
        """Return (Σ error^power)^(1/power) over a plan's reuse steps."""
        total, before, last = 0.0, NONE, 0
        for step, reuse in enumerate(reuses):
            if reuse is None:
                before, last = (last if step else NONE), step
            elif reuse.order == 0 or before == NONE:
                total += self._errors(Reuse(*reuse.range))[last, step] ** power
            else:
                total += self._errors(reuse)[before, last, step] ** power
        return float(total ** (1 / power))

    def _errors(self, reuse: Reuse) -> np.ndarray:
        if reuse not in self._known:
            self._known[reuse] = (self.extrapolated if reuse.order else self.held)(reuse.range)
        return self._known[reuse]

    def _fit_weights(self, probes: Sequence[Reuse], harm: np.ndarray) -> np.ndarray:
        """Return ``(T, 4)``: log w_t as a linear function of the range's ends and the order, through the probes."""
        self._planes = np.zeros((self.steps, 4))  # weights of 1 while errors are all that is asked for
        planes = self._planes.copy()
        for step in range(1, self.steps):
            tried = [(probe, cost) for probe, cost in zip(probes, harm[step]) if cost == cost]
            errors = [self._once(probe, step) for probe, _ in tried]
            logs = np.log([max(cost, NOTHING) / max(error, NOTHING) for (_, cost), error in zip(tried, errors)])
            planes[step] = np.linalg.lstsq(np.array([_coordinates(probe) for probe, _ in tried]), logs, rcond=None)[0]
        return planes

    def _once(self, reuse: Reuse, step: int) -> float:
        """Return the error of a single reuse, from the step(s) just before."""
        if reuse.order == 0:
            return float(self.held(reuse.range)[step - 1, step])
        return float(self.extrapolated(reuse.range)[step - 2, step - 1, step])


def _coordinates(reuse: Reuse) -> list[float]:
    return [1.0, reuse.start, reuse.stop, reuse.order]
