"""What a calibration knows of every reuse: the error that it puts into the final image.

From the projections of what the blocks add follows, for every range R, the Gram matrix of what it adds at the steps,
G_R[s, t] = ⟨D_{R,s}, D_{R,t}⟩ with D_{R,t} = Σ_{l∈R} d_{l,t}. The error of every forecast of D_t from D_s and D_p,
those of the full steps p < s < t, is a quadratic form of it::

    ‖D_t − a·D_s − b·D_p‖² = G_tt + a²·G_ss + b²·G_pp − 2a·G_st − 2b·G_pt + 2ab·G_ps

The forecasts differ in a and b: *held* (1, 0), *linear* (1 + r, −r) with r = (t − s)/(s − p), and those that make it
least, *scaled* with b = 0 and *fitted* with both. How much the final image minds is a weight w_t, which also depends on
the range and on the order.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from delta_dit.delta_plan import FORECASTS, Range, Reuse, Reuses

NOTHING = 1e-12  # squared errors below this are rounding
NONE = -1  # "no full step before the last one"
RIDGE = 1e-3
"""How strongly fitted weights are drawn towards those of the held and the linear forecast, as a share of ‖D_s‖²."""

Coefficients = tuple[np.ndarray, np.ndarray]
"""(a, b), each ``(T, T, T)`` over [p, s, t], or of any shape that becomes that."""


class ErrorModel:
    """What a calibration predicts: the mean squared error that one reuse puts into the final image.

    Args:
        sketches: ``(N, T, L, K)``, projections of what each block adds.
        probes: the C ways to reuse that were tried once.
        harm: ``(T, C)``, what that cost the final image, NaN where it was not tried.
        starts: steps at which another transformer takes over: a Δ of the one before cannot be reused.
    """

    def __init__(
        self, sketches: np.ndarray, probes: Sequence[Reuse], harm: np.ndarray, starts: Sequence[int] = ()
    ) -> None:
        self.starts = tuple(starts)
        samples, self.steps, self.blocks, size = sketches.shape
        first = np.zeros((samples, self.steps, 1, size), np.float32)
        self._sums = np.concatenate([first, sketches.cumsum(2)], 2)  # Σ over blocks below l
        self._grams: dict[Range, np.ndarray] = {}
        self._known: dict[tuple[Range, str], np.ndarray] = {}
        self._planes = self._fit_planes(probes, harm)

    def resampled(self, steps: int) -> "ErrorModel":
        """Return what this predicts of a run of another number of steps of the same spacing.

        What a block adds is a smooth function of the position in the run. What one step puts in the wrong counts by
        the step's length: h steps in place of one make each error 1/h as large, in the image.
        """
        at = np.arange(steps) * self.steps / steps
        other = copy.copy(self)
        other.steps, other._grams, other._known = steps, {}, {}
        other.starts = tuple(math.ceil((start - 0.5) * steps / self.steps) for start in self.starts)
        other._sums = np.einsum("ut,ntlk->nulk", _cubic(at, self.steps), self._sums).astype(np.float32)
        planes = [np.interp(at, np.arange(1, self.steps), values) for values in self._planes[1:].T]
        other._planes = np.stack(planes, 1)
        other._planes[:, 0] -= 2 * math.log(steps / self.steps)
        return other

    def gram(self, blocks: Range) -> np.ndarray:
        """Return G_R ``(T, T)``, the mean over samples of ⟨D_{R,s}, D_{R,t}⟩."""
        if blocks not in self._grams:
            start, stop = blocks
            added = (self._sums[:, :, stop] - self._sums[:, :, start]).swapaxes(0, 1).reshape(self.steps, -1)
            self._grams[blocks] = (added @ added.T).astype(np.float64) / len(self._sums)
        return self._grams[blocks]

    def weights(self, reuse: Reuse) -> np.ndarray:
        """Return w_t ``(T,)``: mean squared error of the final image ÷ squared error of the Δ that is reused."""
        return np.exp(self._planes @ _coordinates(reuse))

    def error(self, blocks: Range, forecast: str) -> np.ndarray:
        """Return a forecast's error: ``(T, T)`` over [s, t] if it needs Δ_s alone, else ``(T, T, T)`` over [p, s, t].

        NaN unless p < s; of steps in another order it means nothing.
        """
        if (blocks, forecast) not in self._known:
            a, b = self._coefficients(blocks, forecast)
            gram, square = self.gram(blocks), np.diag(self.gram(blocks))
            p, s, t = self._pst
            error = square[t] + a**2 * square[s] - 2 * a * gram[s, t]
            order = int(forecast in ("linear", "fitted"))
            if order:
                error = error + b**2 * square[p] - 2 * b * gram[p, t] + 2 * a * b * gram[p, s]
            weights = self.weights(Reuse(*blocks, order))
            known = weights * np.maximum(error if order else error[0], 0)
            oldest = p if order else s[0]
            for start in self.starts:
                known = np.where((oldest < start) & (start <= (t if order else t[0])), np.inf, known)
            self._known[blocks, forecast] = known.astype(np.float32)  # there are as many as ranges
        return self._known[blocks, forecast]

    def fit(self, reuses: Sequence[Reuse | None]) -> Reuses:
        """Return a plan whose scaled and fitted forecasts have the weights of its own full steps."""
        fitted: list[Reuse | None] = []
        for step, reuse, before, last in _with_full_steps(reuses):
            if reuse is None or reuse.weights is None:
                fitted.append(reuse)
            elif before == NONE and reuse.order == 1:
                fitted.append(replace(reuse, weights=None))  # there is nothing before that could be weighed
            else:
                a, b = self._coefficients(reuse.range, reuse.forecast)
                both = (a[0, last, step],) if reuse.order == 0 else (a[before, last, step], b[before, last, step])
                fitted.append(replace(reuse, weights=tuple(round(float(weight), 6) for weight in both)))
        return tuple(fitted)

    def predict(self, reuses: Sequence[Reuse | None], power: float = 1.0) -> float:
        """Return (Σ error^power)^(1/power) over a plan's reuse steps."""
        total = 0.0
        for step, reuse, before, last in _with_full_steps(reuses):
            if reuse is not None and (reuse.order == 0 or before == NONE):
                total += self.error(reuse.range, FORECASTS[0, reuse.weights is not None])[last, step] ** power
            elif reuse is not None:
                total += self.error(reuse.range, reuse.forecast)[before, last, step] ** power
        return float(total ** (1 / power))

    @property
    def _pst(self) -> tuple[np.ndarray, ...]:
        return np.ogrid[: self.steps, : self.steps, : self.steps]

    @property
    def _line(self) -> np.ndarray:
        """Return r ``(T, T, T)`` over [p, s, t]."""
        p, s, t = self._pst
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(p < s, (t - s) / (s - p), np.nan)

    def _coefficients(self, blocks: Range, forecast: str) -> Coefficients:
        """Return (a, b) of a forecast; fitted ones are least squares, drawn a little towards the unfitted."""
        one, r = np.ones((1, 1, 1)), self._line
        if forecast in ("held", "linear"):
            return (one, 0 * one) if forecast == "held" else (1 + r, -r)
        gram, square = self.gram(blocks), np.diag(self.gram(blocks))
        p, s, t = self._pst
        ridge = RIDGE * square[s]
        # the normal equations of D_t ≈ a·D_s + b·D_p, with ridge·((a − a₀)² + (b − b₀)²)
        ss, st = square[s] + ridge, gram[s, t]
        if forecast == "scaled":
            return (st + ridge) / ss, 0 * one
        pp, ps = square[p] + ridge, gram[p, s]
        to_s, to_p = st + ridge * (1 + r), gram[p, t] - ridge * r
        scale = ss * pp - ps**2
        return (to_s * pp - to_p * ps) / scale, (to_p * ss - to_s * ps) / scale

    def _fit_planes(self, probes: Sequence[Reuse], harm: np.ndarray) -> np.ndarray:
        """Return ``(T, 4)``: log w_t as a linear function of the range's ends and the order, through the probes.

        Between the steps that were probed it is interpolated.
        """
        self._planes = np.zeros((self.steps, 4))  # weights of 1 while errors are all that is asked for
        probed = [step for step in range(1, self.steps) if np.isfinite(harm[step]).any()]
        planes = []
        for step in probed:
            tried = [(probe, cost) for probe, cost in zip(probes, harm[step]) if cost == cost]
            errors = [self._once(probe, step) for probe, _ in tried]
            logs = np.log([max(cost, NOTHING) / max(error, NOTHING) for (_, cost), error in zip(tried, errors)])
            planes.append(np.linalg.lstsq(np.array([_coordinates(probe) for probe, _ in tried]), logs, rcond=None)[0])
        self._known.clear()
        known = np.array(planes).T
        return np.stack([np.interp(np.arange(self.steps), probed, values) for values in known], 1)

    def _once(self, reuse: Reuse, step: int) -> float:
        """Return the error of a single reuse, from the step(s) just before."""
        if reuse.order == 0:
            return float(self.error(reuse.range, "held")[step - 1, step])
        return float(self.error(reuse.range, "linear")[step - 2, step - 1, step])


def _with_full_steps(reuses: Sequence[Reuse | None]) -> list[tuple[int, Reuse | None, int, int]]:
    """Return (step, reuse, p, s) of each step, p and s the last full steps before it; p may be ``NONE``."""
    found, before, last = [], NONE, 0
    for step, reuse in enumerate(reuses):
        if reuse is None:
            before, last = (last if step else NONE), step
        found.append((step, reuse, before, last))
    return found


def _coordinates(reuse: Reuse) -> list[float]:
    return [1.0, reuse.start, reuse.stop, reuse.order]


def _cubic(at: np.ndarray, count: int) -> np.ndarray:
    """Return ``(len(at), count)``: what takes values at 0 … count − 1 to those at ``at``, through the nearest four."""
    width = min(4, count)
    first = np.clip(np.floor(at).astype(int) - width // 2 + 1, 0, count - width)
    nodes = first[:, None] + np.arange(width)
    weights = np.zeros((len(at), count))
    for i in range(width):
        others = np.delete(nodes, i, axis=1)
        weights[np.arange(len(at)), nodes[:, i]] = np.prod((at[:, None] - others) / (nodes[:, i, None] - others), 1)
    return weights
