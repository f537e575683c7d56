"""The best plan for a budget: exact on what was calibrated, then tried and improved on the model itself.

What the :class:`~delta_dit.error_model.ErrorModel`'s sum over steps leaves out is that errors of neighbouring steps go
in one direction and that they change the trajectory itself. With a :class:`~delta_dit.trial.Trial` the planner
therefore tries the best plans, and small changes of the winner, on real samples.
"""

import math
from typing import Any

from delta_dit.delta_plan import Reuses, generic, longest_run
from delta_dit.error_model import ErrorModel
from delta_dit.frontier import Frontier
from delta_dit.refinement import refine
from delta_dit.trial import Trial

STARTS = 3
"""How many plans are refined."""


def saved_blocks(steps: int, blocks: int, speedup: float) -> int:
    """Return how many block evaluations a speed-up has to save, rounded as the fixed schedules round it.

    Raises:
        ValueError: no plan is as fast as that.
    """
    if not 1 <= speedup <= steps:
        raise ValueError(f"speedup={speedup!r} is not possible; allowed: 1 to {steps}, the largest at {steps} steps")
    return round(steps * blocks * (1 - 1 / speedup))


class Planner:
    """Finds plans, by several measures of best.

    Errors add like random directions (power 1), like one direction (power ½), or the worst one decides (``math.inf``).
    What is reused in long runs was measured on a trajectory that the run itself leaves: shorter runs may do better.

    Args:
        model: the errors.
        trial: tries plans on the model itself; default: the errors alone decide.
    """

    POWERS = (1.0, 0.5, math.inf)
    RUNS = (None, 3, 2, 1)

    def __init__(self, model: ErrorModel, trial: Trial | None = None) -> None:
        self.model, self.trial = model, trial
        self._frontiers: dict[tuple[float, int | None], Frontier] = {}

    def candidates(self, saved: int) -> list[Reuses]:
        """Return the plans that may be best and save this many block evaluations, each once; also the generic plan."""
        steps, blocks = self.model.steps, self.model.blocks
        frontiers = [self._frontier(power, run) for run in self.RUNS for power in self.POWERS]
        plans = [frontier.plan(saved) for frontier in frontiers if frontier.error(saved) < math.inf]
        uncalibrated = generic(steps, blocks, steps * blocks / (steps * blocks - saved))
        return list(dict.fromkeys([*plans, uncalibrated.reuses]))

    def best(self, saved: int) -> Reuses:
        """Return the best candidate: by trial, or as the calibration has it."""
        return max(self.candidates(saved), key=self.trial) if self.trial else self._frontier(1.0, None).plan(saved)

    def refined(self, saved: int, evaluations: int) -> Reuses:
        """Return the best plan that :func:`refine` reaches from the best candidate of each longest run.

        Without a trial, and where there is nothing to save, that is the best candidate itself.
        """
        trial = self.trial
        if trial is None or saved == 0:
            return self.best(saved)
        starts: dict[int, Reuses] = {}
        for plan in sorted(self.candidates(saved), key=trial):
            starts[longest_run(plan)] = plan
        best = sorted(starts.values(), key=trial)[-STARTS:]
        return max((refine(plan, trial, self.model, evaluations // len(best))[0] for plan in best), key=trial)

    def fastest(self, psnr_db: float) -> int:
        """Return the largest saving at which the best candidate has at least this PSNR, by bisection."""
        low, high = 0, (self.model.steps - 1) * self.model.blocks
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self._reaches(psnr_db, middle) else (low, middle - 1)
        return low

    def promise(self, reuses: Reuses) -> dict[str, Any]:
        """Return how good a plan is, and how that is known: for its provenance."""
        error = self.model.predict(reuses)
        told: dict[str, Any] = {"predicted_psnr_db": -10 * math.log10(error) if error > 0 else None}
        if self.trial is not None:
            told |= {"psnr_db": self.trial(reuses), "psnr_samples": self.trial.samples}
            told["plans_tried"] = len(self.trial.known)
        return told

    def _reaches(self, psnr_db: float, saved: int) -> bool:
        if self.trial is None:
            return self._frontier(1.0, None).error(saved) <= 10 ** (-psnr_db / 10)
        return self.trial(self.best(saved)) >= psnr_db

    def _frontier(self, power: float, run: int | None) -> Frontier:
        if (power, run) not in self._frontiers:
            self._frontiers[power, run] = Frontier(self.model, power, run)
        return self._frontiers[power, run]
