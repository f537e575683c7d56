"""The best plan of every price at once, by dynamic programming.

Between two full steps nothing is recorded, so what a reuse step costs depends on the last two full steps alone, and a
plan's cost is a sum (or a maximum) over steps. The search goes over (step, last full step, full step before it, block
evaluations saved).
"""

import math
from collections.abc import Callable

import numpy as np

from delta_dit.delta_plan import Reuse, Reuses
from delta_dit.planning.error_model import ErrorModel


class Frontier:
    """The cheapest plan for every number of saved block evaluations, exactly.

    V_t[p, s, b] is the least total error of steps 0 … t that end with full steps p < s and have saved b. A full step
    turns (p, s) into (s, t); a reuse step of width w adds the error of the best range and order of that width::

        V_t[s, t, b] = min_p V_{t−1}[p, s, b]
        V_t[p, s, b] = min_w V_{t−1}[p, s, b − w] + error[w, p, s, t]

    Args:
        model: the errors.
        power: errors are raised to this power before they are summed; ``math.inf`` minimises the largest one.
        longest_run: how many steps in a row may reuse; default: any number.
    """

    def __init__(self, model: ErrorModel, power: float = 1.0, longest_run: int | None = None) -> None:
        self.steps, self.blocks = model.steps, model.blocks
        self.largest = (self.steps - 1) * self.blocks
        self._combine: Callable[..., np.ndarray] = np.maximum if power == math.inf else np.add
        self._errors, self._reuses = self._cheapest(model, 1.0 if power == math.inf else power)
        s, t = np.ogrid[: self.steps, : self.steps]
        self._errors[:, :, t - s > (longest_run or self.steps)] = np.inf
        self._run()

    def error(self, saved: int) -> float:
        """Return the total (or largest) error of :meth:`plan`, in the power that is minimised; ∞ if there is none."""
        return float(self._last[:, :, saved].min())

    def plan(self, saved: int) -> Reuses:
        """Return the plan with the least error of all that save exactly ``saved`` block evaluations.

        Raises:
            ValueError: no plan saves as much.
        """
        if not 0 <= saved <= self.largest or self.error(saved) == math.inf:
            most = np.flatnonzero(np.isfinite(self._last.min((0, 1)))).max()
            raise ValueError(f"no plan saves {saved} block evaluations; allowed: 0 to {most}, or longer runs")
        p, s = np.unravel_index(self._last[:, :, saved].argmin(), self._last.shape[:2])
        reuses: list[Reuse | None] = [None] * self.steps
        for step in range(self.steps - 1, 0, -1):
            if s == step:
                p, s = self._before[step][p - 1, saved], p - 1
            else:
                width = int(self._width[step][p, s, saved])
                reuses[step] = self._reuses[self._chosen[width - 1, p, s, step]]
                saved -= width
        return tuple(reuses)

    def _cheapest(self, model: ErrorModel, power: float) -> tuple[np.ndarray, list[Reuse]]:
        """Return the least error per width, ``(L, 1 + T, T, T)`` over [w − 1, 1 + p, s, t], and what attains it."""
        reuses = [
            Reuse(start, start + width, order)
            for width in range(1, self.blocks + 1)
            for start in range(self.blocks - width + 1)
            for order in (0, 1)
        ]
        shape = (self.blocks, 1 + self.steps, self.steps, self.steps)
        errors = np.full(shape, np.inf, np.float32)
        self._chosen = np.zeros(shape, np.int16)
        for number, reuse in enumerate(reuses):
            best, chosen = errors[reuse.stop - reuse.start - 1], self._chosen[reuse.stop - reuse.start - 1]
            error = model.error(reuse.range, reuse.forecast) ** power
            if reuse.order == 0:
                error = np.broadcast_to(error, best.shape)
            else:
                error = np.pad(error, ((1, 0), (0, 0), (0, 0)), constant_values=np.nan)
            better = error < best  # False for NaN
            best[better], chosen[better] = error[better], number
        return errors, reuses

    def _run(self) -> None:
        """Fill V step by step; keep, for going back, the width of each reuse and the p of each full step."""
        values = np.full((1 + self.steps, self.steps, self.largest + 1), np.inf, np.float32)
        values[0, 0, 0] = 0
        self._width: list[np.ndarray] = [np.zeros(0)]
        self._before: list[np.ndarray] = [np.zeros(0)]
        for step in range(1, self.steps):
            known = values[:step, :step]  # 1 + p ≤ s < step
            after = np.full_like(values, np.inf)
            width_of = np.zeros(known.shape, np.int16)
            for width in range(1, self.blocks + 1):
                tried = self._combine(known[..., :-width], self._errors[width - 1, :step, :step, step, None])
                best = after[:step, :step, width:]
                better = tried < best
                best[better], width_of[..., width:][better] = tried[better], width
            after[1 : step + 1, step] = known.min(0)
            self._before.append(known.argmin(0))
            self._width.append(width_of)
            values = after
        self._last = values
