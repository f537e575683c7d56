"""What a calibration knows of every reuse: the error that it puts into the final image.

What the blocks of a range R add to a token at step t is D_t = x_t − (the state before R), x_t the state after it. What
comes next begins with a norm, be it a block or the last layer, so the length of a token's state is not seen: an error e
of it counts for the part across x_t, over the length, P_t·e = (e − x̂_t⟨x̂_t, e⟩) / ‖x_t‖. From the projections of
some tokens' states follows, for every range, how step t sees what was added at the steps p and s, the Gram matrices
G_t[p, s] = Σ ⟨P_t·D_p, P_t·D_s⟩ over tokens. The error of every forecast of D_t from D_s and D_p, those of the full
steps p < s < t, is a quadratic form of them::

    ‖P_t·(D_t − a·D_s − b·D_p)‖² = G[t, t] + a²·G[s, s] + b²·G[p, p] − 2a·G[s, t] − 2b·G[p, t] + 2ab·G[p, s]

The forecasts differ in a and b: *held* (1, 0), *linear* (1 + r, −r) with r = (t − s)/(s − p), and those that make it
least, *scaled* with b = 0 and *fitted* with both. How much the final image minds is a weight w_t, which also depends on
the range. (Without P_t a held Δ seems up to 20 dB worse than it is: much of what it lacks is growth of the state.)

The errors of a plan's steps add with their directions: what is held lags behind, what is extrapolated runs ahead, and
one makes good for the other. So a whole plan is judged by the sum of its steps' errors as vectors, token by token.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from delta_dit.delta_plan import FORECASTS, Range, Reuse, Reuses

NOTHING = 1e-12  # squared errors below this are rounding
NONE = -1  # "no full step before the last one"
RIDGE = 2e-3
"""How strongly fitted weights are drawn towards those of the held and the linear forecast, as a share of ‖D_s‖²/‖x_t‖².

What is fitted may become short: its error along the state is not seen. But then the error across it weighs more."""

DOUBT = 0.1
"""The share of the squared errors that counts whatever their directions: not all that seems to cancel does."""
SHORTEST = 0.1
"""No state is taken to become shorter than this share of itself."""
CACHE = 2**28
"""Bytes of errors that are remembered."""

Coefficients = tuple[np.ndarray, np.ndarray]
"""(a, b), each ``(T, T, T)`` over [p, s, t], or of any shape that becomes that."""


class ErrorModel:
    """What a calibration predicts: the mean squared error that a reuse, or a whole plan, puts into the final image.

    Args:
        sketches: ``(N, T, 1 + L, M, K)``, projections of M tokens: of the state before the first block, and of what
            each block adds.
        probes: the C ways to reuse that were tried once.
        harm: ``(T, C)``, what that cost the final image, NaN where it was not tried.
        starts: steps at which another transformer takes over: a Δ of the one before cannot be reused.
    """

    def __init__(
        self, sketches: np.ndarray, probes: Sequence[Reuse], harm: np.ndarray, starts: Sequence[int] = ()
    ) -> None:
        self.starts = tuple(starts)
        self.steps, self.blocks = sketches.shape[1], sketches.shape[2] - 1
        self.samples = len(sketches)
        states = sketches.cumsum(2).transpose(2, 1, 0, 3, 4)  # (1 + L, T, N, M, K)
        self._see(states.reshape(*states.shape[:2], -1, states.shape[-1]))
        self._planes = self._fit_planes(probes, harm)

    def _see(self, states: np.ndarray) -> None:
        """Take the states before each block and after the last, ``(1 + L, T, tokens, K)``."""
        self._states = states
        p, s, t = self._pst
        with np.errstate(divide="ignore", invalid="ignore"):
            self._line = np.where(p < s, (t - s) / (s - p), np.nan)  # r over [p, s, t]
        self._lengths = np.maximum(np.linalg.norm(states, axis=-1, keepdims=True), NOTHING)
        self._grams: dict[Range, np.ndarray] = {}
        self._spans: dict[Range, np.ndarray] = {}  # mean of ‖D_s‖²/‖x_t‖² over [s, t]
        self._least: dict[tuple[Range, str], Coefficients] = {}
        self._fits: dict[tuple[Range, int, int, int, int], Reuse] = {}
        self._known: dict[tuple[Range, str], np.ndarray] = {}
        self._vectors: dict[tuple[Reuse, int, int, int], np.ndarray] = {}

    def resampled(self, steps: int) -> "ErrorModel":
        """Return what this predicts of a run of another number of steps of the same spacing.

        What a block adds is a smooth function of the position in the run. What one step puts in the wrong counts by
        the step's length: h steps in place of one make each error 1/h as large, in the image.
        """
        at = np.arange(steps) * self.steps / steps
        other = copy.copy(self)
        other.steps = steps
        other.starts = tuple(math.ceil((start - 0.5) * steps / self.steps) for start in self.starts)
        other._see(np.einsum("ut,ltqk->luqk", _cubic(at, self.steps), self._states).astype(np.float32))
        planes = [np.interp(at, np.arange(1, self.steps), values) for values in self._planes[1:].T]
        other._planes = np.stack(planes, 1)
        other._planes[:, 0] -= 2 * math.log(steps / self.steps)
        return other

    def gram(self, blocks: Range) -> np.ndarray:
        """Return ``(T, T, T)`` over [p, s, t]: G_t[p, s], the mean over tokens of ⟨P_t·D_p, P_t·D_s⟩."""
        if blocks not in self._grams:
            start, stop = blocks
            added = (self._states[stop] - self._states[start]).swapaxes(0, 1)  # (tokens, T, K)
            state, length = self._states[stop].swapaxes(0, 1), self._lengths[stop].swapaxes(0, 1)
            along = added @ (state / length).swapaxes(1, 2)  # (tokens, T, T) over [s, t]
            seen = (1 / length[..., 0] ** 2).astype(np.float64)  # (tokens, T)
            whole = np.tensordot((added @ added.swapaxes(1, 2)).astype(np.float64), seen, (0, 0))
            lost = along.transpose(2, 1, 0).astype(np.float64)  # (T, T, tokens) over [t, s]
            lost = (lost * seen.T[:, None]) @ lost.swapaxes(1, 2)  # [t, p, s]
            each = np.arange(self.steps)
            self._spans[blocks] = whole[each, each] / len(added)
            self._grams[blocks] = ((whole - lost.transpose(1, 2, 0)) / len(added)).astype(np.float32)
        return self._grams[blocks]

    def weights(self, blocks: Range) -> np.ndarray:
        """Return w_t ``(T,)``: mean squared error of the final image ÷ squared error of the Δ that is reused."""
        return np.exp(self._planes @ _coordinates(blocks))

    def error(self, blocks: Range, forecast: str) -> np.ndarray:
        """Return a forecast's error: ``(T, T)`` over [s, t] if it needs Δ_s alone, else ``(T, T, T)`` over [p, s, t].

        NaN unless p < s; of steps in another order it means nothing.
        """
        if (blocks, forecast) not in self._known:
            a, b = self._coefficients(blocks, forecast)
            gram, square, cross = self._forms(blocks)
            p, s, t = self._pst
            error = np.diag(cross) + a**2 * square - 2 * a * cross
            order = int(forecast in ("linear", "fitted"))
            if order:
                error = error + b**2 * square[:, None] - 2 * b * cross[:, None] + 2 * a * b * gram
            known = self.weights(blocks) * np.maximum(error if order else error[0], 0)
            oldest = p if order else s[0]
            for start in self.starts:
                known = np.where((oldest < start) & (start <= (t if order else t[0])), np.inf, known)
            self._known[blocks, forecast] = known.astype(np.float32)  # there are as many as ranges
        return self._known[blocks, forecast]

    def fit(self, reuses: Sequence[Reuse | None]) -> Reuses:
        """Return a plan whose scaled and fitted forecasts have the weights of its own full steps."""
        return tuple(
            reuse if reuse is None or reuse.weights is None else self._fitted(reuse, before, last, step)
            for step, reuse, before, last in _with_full_steps(reuses)
        )

    def _fitted(self, wanted: Reuse, before: int, last: int, step: int) -> Reuse:
        key = wanted.range, wanted.order, before, last, step
        if key not in self._fits:
            reuse = replace(wanted, weights=None)
            if before != NONE or reuse.order == 0:  # else there is nothing before that could be weighed
                a, b = self._coefficients(reuse.range, FORECASTS[reuse.order, True])
                both = (a[0, last, step],) if reuse.order == 0 else (a[before, last, step], b[before, last, step])
                reuse = replace(reuse, weights=tuple(round(float(weight), 6) for weight in both))
            self._fits[key] = reuse
        return self._fits[key]

    def predict(self, reuses: Sequence[Reuse | None]) -> np.ndarray:
        """Return the mean squared error of each sample's final image under a plan, ``(N,)``."""
        total, alone = np.zeros((self.samples, 1), np.float32), np.zeros(self.samples)
        for step, reuse, before, last in _with_full_steps(reuses):
            if reuse is None:
                continue
            oldest = before if reuse.order and before != NONE else last
            if any(oldest < start <= step for start in self.starts):
                return np.full(self.samples, np.inf)
            error = self._vector(reuse, before if reuse.order else NONE, last, step)
            total = total + error
            alone += np.square(error).sum(1)
        return np.square(total).sum(1) + DOUBT * alone

    def _vector(self, reuse: Reuse, before: int, last: int, step: int) -> np.ndarray:
        """Return a reuse's error in each sample's final image, ``(N, ...)``."""
        key = reuse, before, last, step
        if key not in self._vectors:
            added = self._states[reuse.stop] - self._states[reuse.start]
            a, b = reuse.coefficients(last, None if before == NONE else before, step)
            error = a * added[last] - added[step]
            if b:
                error += b * added[before]
            length = self._lengths[reuse.stop, step]
            direction = self._states[reuse.stop, step] / length
            longer = (direction * error).sum(1, keepdims=True)
            error = (error - direction * longer) / np.maximum(length + longer, SHORTEST * length)
            weight = self.weights(reuse.range)[step] * self.samples / len(error)
            error = math.sqrt(weight) * error.reshape(self.samples, -1)
            if len(self._vectors) * error.nbytes > CACHE:
                self._vectors.clear()
            self._vectors[key] = error.astype(np.float32)
        return self._vectors[key]

    @property
    def _pst(self) -> tuple[np.ndarray, ...]:
        return np.ogrid[: self.steps, : self.steps, : self.steps]

    def _coefficients(self, blocks: Range, forecast: str) -> Coefficients:
        """Return (a, b) of a forecast; fitted ones are least squares, drawn a little towards the unfitted."""
        one, r = np.ones((1, 1, 1)), self._line
        if forecast in ("held", "linear"):
            return (one, 0 * one) if forecast == "held" else (1 + r, -r)
        if (blocks, forecast) not in self._least:
            self._least[blocks, forecast] = self._least_squares(blocks, forecast)
        return self._least[blocks, forecast]

    def _least_squares(self, blocks: Range, forecast: str) -> Coefficients:
        one, r = np.ones((1, 1, 1)), self._line
        gram, square, cross = self._forms(blocks)
        ridge = RIDGE * self._spans[blocks]
        # the normal equations of D_t ≈ a·D_s + b·D_p, with ridge·((a − a₀)² + (b − b₀)²)
        ss, st = square + ridge, cross
        if forecast == "scaled":
            return ((st + ridge) / ss)[None], 0 * one
        pp = square[:, None] + ridge
        to_s, to_p = st + ridge * (1 + r), cross[:, None] - ridge * r
        scale = ss * pp - gram**2
        return (to_s * pp - to_p * gram) / scale, (to_p * ss - to_s * gram) / scale

    def _forms(self, blocks: Range) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return G_t[p, s] over [p, s, t], and over [s, t] G_t[s, s] and G_t[s, t]."""
        gram, each = self.gram(blocks).astype(np.float64), np.arange(self.steps)
        return gram, gram[each, each], gram[:, each, each]

    def _fit_planes(self, probes: Sequence[Reuse], harm: np.ndarray) -> np.ndarray:
        """Return ``(T, 3)``: log w_t as a linear function of the range's ends, through the probes.

        Between the steps that were probed it is interpolated.
        """
        self._planes = np.zeros((self.steps, 3))  # weights of 1 while errors are all that is asked for
        probed = [step for step in range(1, self.steps) if np.isfinite(harm[step]).any()]
        planes = []
        for step in probed:
            tried = [(probe, cost) for probe, cost in zip(probes, harm[step]) if cost == cost]
            errors = [self._once(probe, step) for probe, _ in tried]
            logs = np.log([max(cost, NOTHING) / max(error, NOTHING) for (_, cost), error in zip(tried, errors)])
            at = np.array([_coordinates(probe.range) for probe, _ in tried])
            planes.append(np.linalg.lstsq(at, logs, rcond=None)[0])
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


def _coordinates(blocks: Range) -> list[float]:
    return [1.0, *blocks]


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
