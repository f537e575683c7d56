"""The best plan for so many steps: searched among all that a calibration can judge.

What is exact, the :class:`~delta_dit.planning.frontier.Frontier`, knows errors that add without a direction. So its
plans, by several measures of best, are where the search begins that adds them as they are.
"""

import math
from collections.abc import Callable

import numpy as np

from delta_dit.delta_plan import Reuses
from delta_dit.planning.error_model import ErrorModel
from delta_dit.planning.fidelity import IDENTICAL_DB
from delta_dit.planning.frontier import Frontier
from delta_dit.planning.objective import Objective, summary
from delta_dit.planning.refinement import climb
from delta_dit.schedules import generic


class Planner:
    """Finds plans of one number of steps.

    The search begins with plans whose errors add like random directions (power 1), with runs of reuse of any length;
    like one direction (power ½), with short runs; or of which the worst one decides (``math.inf``), with no runs.

    Args:
        model: the errors.
        objective: what counts over the samples.
        limit: the mean squared error of images without any reuse.
    """

    BEGINS: tuple[tuple[float, int | None], ...] = ((1.0, None), (0.5, 2), (math.inf, 1))

    def __init__(self, model: ErrorModel, objective: Objective = "mean", limit: float = 0.0) -> None:
        self.model, self.limit = model, limit
        self.objective: Objective = objective
        self._frontiers: dict[tuple[float, int | None], Frontier] = {}
        self._found: dict[int, list[Reuses]] = {}

    @property
    def most(self) -> int:
        """How many block evaluations a plan can save."""
        return (self.model.steps - 1 - len(self.model.starts)) * self.model.blocks

    def quality(self, reuses: Reuses) -> float:
        """Return the objective of a plan in dB, as predicted."""
        error = np.maximum(self.limit + self.model.predict(reuses), 10 ** (-IDENTICAL_DB / 10))
        return summary(-10 * np.log10(error), self.objective)

    def candidates(self, saved: int) -> list[Reuses]:
        """Return plans that save so many block evaluations, the best as predicted first; the generic plan is last.

        Raises:
            ValueError: no plan saves as much.
        """
        if saved not in self._found:
            begins = self._begins(saved)
            found = dict.fromkeys(climb(plan, self.quality, self.model) for plan in begins)
            best = sorted(found, key=self.quality, reverse=True)
            self._found[saved] = [*best, *(plan for plan in begins[-1:] if plan not in found)]
        return self._found[saved]

    def fastest(self, reaches: Callable[[int], bool]) -> int:
        """Return the largest saving that reaches what is wanted, by bisection."""
        low, high = 0, self.most
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if reaches(middle) else (low, middle - 1)
        return low

    def _begins(self, saved: int) -> list[Reuses]:
        """Return where the search begins, each once; the generic plan last, if it can be carried out."""
        longest, *shorter = [self._frontier(*begin) for begin in self.BEGINS]
        best = [longest.plan(saved), *(some.plan(saved) for some in shorter if some.error(saved) < math.inf)]
        steps, blocks = self.model.steps, self.model.blocks
        uncalibrated = generic(steps, blocks, steps * blocks / (steps * blocks - saved)).reuses
        known = self.quality(uncalibrated) > -math.inf
        return [*dict.fromkeys(plan for plan in best if plan != uncalibrated), *([uncalibrated] if known else [])]

    def _frontier(self, power: float, run: int | None) -> Frontier:
        key = power, run
        if key not in self._frontiers:
            self._frontiers[key] = Frontier(self.model, power, run)
        return self._frontiers[key]
