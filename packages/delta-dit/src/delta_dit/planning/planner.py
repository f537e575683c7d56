"""The best plan for so many steps: exact on what was calibrated, then tried and improved on the model itself.

What the :class:`~delta_dit.planning.error_model.ErrorModel`'s sum over steps leaves out is that errors of neighbouring
steps go in one direction and that they change the trajectory itself. So where plans can be tried, the best ones of
several sums, and small changes of the winner, are tried on real samples.
"""

import itertools
import math
from collections.abc import Callable, Iterator

from delta_dit.delta_plan import Reuses
from delta_dit.planning.error_model import ErrorModel
from delta_dit.planning.frontier import Frontier
from delta_dit.schedules import generic

Quality = Callable[[Reuses], float]
"""How good a plan is, in dB."""


class Planner:
    """Finds plans of one number of steps, by several measures of best.

    Errors add like random directions (power 1), like one direction (power ½), or the worst one decides (``math.inf``).
    What is reused in long runs was measured on a trajectory that the run itself leaves: shorter runs may do better.
    Fitted forecasts have the smallest errors on what they were fitted to, and not always on other samples.

    Args:
        model: the errors.
        fitted: whether plans that nobody tries have fitted forecasts.
    """

    POWERS = (0.5, 1.0, math.inf)
    RUNS = (2, None, 3, 1)

    def __init__(self, model: ErrorModel, *, fitted: bool) -> None:
        self.model, self.fitted = model, fitted
        self._frontiers: dict[tuple[float, int | None, bool], Frontier] = {}

    @property
    def most(self) -> int:
        """How many block evaluations a plan can save."""
        return (self.model.steps - 1 - len(self.model.starts)) * self.model.blocks

    def predicted(self, saved: int) -> Reuses:
        """Return the plan that is best as the calibration has it, of those that save so many block evaluations."""
        return self._frontier(1.0, None, self.fitted).plan(saved)

    def candidates(self, saved: int) -> Iterator[Reuses]:
        """Yield the plans that may be best, each once, the most promising first; the generic plan last."""
        steps, blocks = self.model.steps, self.model.blocks
        seen = set()
        for run, power, fitted in itertools.product(self.RUNS, self.POWERS, (True, False)):
            frontier = self._frontier(power, run, fitted)
            plan = frontier.plan(saved) if frontier.error(saved) < math.inf else None
            if plan is not None and plan not in seen:
                seen.add(plan)
                yield plan
        uncalibrated = generic(steps, blocks, steps * blocks / (steps * blocks - saved)).reuses
        if uncalibrated not in seen and self.model.predict(uncalibrated) < math.inf:
            yield uncalibrated

    def fastest(self, reaches: Callable[[int], bool]) -> int:
        """Return the largest saving that reaches what is wanted, by bisection."""
        low, high = 0, self.most
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if reaches(middle) else (low, middle - 1)
        return low

    def _frontier(self, power: float, run: int | None, fitted: bool) -> Frontier:
        key = power, run, fitted
        if key not in self._frontiers:
            self._frontiers[key] = Frontier(self.model, power, run, fitted=fitted)
        return self._frontiers[key]
