"""What is asked for, and the search for the plan that gives it: at a cost or good enough, near to which images."""

import math
from itertools import zip_longest
from typing import Any

from delta_dit.delta_plan import DeltaPlan, Reuses
from delta_dit.moved_steps import improve_steps
from delta_dit.planning.objective import Objective, Target, check_goal, summary
from delta_dit.planning.planner import Planner
from delta_dit.planning.refinement import refine
from delta_dit.planning.trial import Trial, Values
from delta_dit.schedules import check_speedup

REFERENCE = 10
"""Times the calibration's steps count as the exact solution."""
LONGER = 3
"""Plans of up to so many times the budget's steps are looked at."""
STEP_COUNTS = 8
"""How many numbers of steps are looked at."""
STARTS = 2
"""Of how many numbers of steps more plans are tried."""


class Goal:
    """What a plan of a calibrated model is for.

    Args:
        found: the :class:`~delta_dit.planning.calibration.Calibration`.
        target: which images a plan's should be.
        objective: what counts over the samples.
        trial: tries plans; default: predictions.
        evaluations: how many it may try.

    Raises:
        ValueError: an unknown target or objective, or nothing exact that could be the target.
    """

    def __init__(self, found: Any, target: Target, objective: Objective, trial: Trial | None, evaluations: int) -> None:
        check_goal(target, objective)
        if target == "exact" and not found.convergence.exists:
            raise ValueError(
                "target='exact' means nothing here: twice the steps do not bring the images nearer to one another, as "
                "of stochastic solvers and of models distilled for few steps; allowed: uncached"
            )
        self.found, self.target, self.trial = found, target, trial
        self.objective: Objective = objective
        self.evaluations = evaluations
        self._planners: dict[int, Planner] = {}
        self.exact = None
        if trial is not None:
            trial.follow(found)
            self.exact = (trial.reference_steps or REFERENCE * found.steps) if target == "exact" else None

    def at_speedup(self, speedup: float) -> DeltaPlan:
        """Return the best plan with so many times fewer block evaluations than the uncached run of T steps."""
        steps, blocks = self.found.steps, self.found.blocks
        check_speedup(speedup, steps)
        if self.target == "exact":
            return self.at_budget(steps / speedup)
        return self._of_steps(steps, round(steps * blocks * (1 - 1 / speedup)))

    def at_budget(self, budget: float) -> DeltaPlan:
        """Return the best plan that costs at most so many full steps."""
        if not budget >= 1:
            raise ValueError(f"budget={budget!r} is less than one full step costs; allowed: 1 or more")
        if self.target == "exact":
            return self._of_any_steps(budget)
        saved = self._saved(self.found.steps, budget)
        if saved > (self.found.steps - 1) * self.found.blocks:
            least = self.found.steps - (self.found.steps - 1) * self.found.block_share
            raise ValueError(
                f"budget={budget!r} is not possible in {self.found.steps} steps; allowed: {least:.2f} or more"
            )
        return self._of_steps(self.found.steps, saved)

    def good_enough(self, psnr_db: float) -> DeltaPlan:
        """Return the fastest plan whose images have at least this PSNR to the uncached ones."""
        if self.target == "exact":
            raise ValueError("target='exact' needs a cost; allowed: speedup, budget, or target='uncached'")
        planner = self._planner(self.found.steps)

        def reaches(saved: int) -> bool:
            few = planner.candidates(saved)[: 1 + self.evaluations // 10]
            return max(map(planner.quality if self.trial is None else self.quality, few)) >= psnr_db

        return self._of_steps(self.found.steps, planner.fastest(reaches))

    def quality(self, reuses: Reuses, values: Values | None = None) -> float:
        """Return the objective of a plan in dB, as tried."""
        assert self.trial is not None
        return summary(self.trial(reuses, values, exact=self.exact), self.objective)

    def _of_steps(self, steps: int, saved: int) -> DeltaPlan:
        """Return the best plan of so many steps that saves so many block evaluations."""
        if self.trial is None or saved == 0:
            return self._plan(self._planner(steps).candidates(saved)[0])
        return self._tried({steps: saved})

    def _of_any_steps(self, budget: float) -> DeltaPlan:
        """Return the best plan of that cost, of any number of steps."""
        # the number of calls follows the number of steps only where each step is one call
        choices = step_counts(budget) if self.found.about["steps"] == self.found.steps else [self.found.steps]
        counts = {steps: self._saved(steps, budget) for steps in choices}
        possible = {steps: saved for steps, saved in counts.items() if saved <= self._planner(steps).most}
        if self.trial is None:
            return self._plan(max((self._candidates(possible, steps)[0] for steps in possible), key=self._predicted))
        return self._tried(possible)

    def _tried(self, saved: dict[int, int]) -> DeltaPlan:
        """Return the best plan that is found by trying: some of each number of steps, more of the best, its changes."""
        assert self.trial is not None
        known, begun = self.trial.known, len(self.trial.known)

        def left() -> int:
            return max(0, self.evaluations - (len(known) - begun))

        best = sorted((self._candidates(saved, steps)[0] for steps in saved), key=self._predicted, reverse=True)
        first = best[: max(1, self.evaluations // 4)]
        leaders = sorted(first, key=self.quality, reverse=True)[:STARTS]
        others = zip_longest(*(self._candidates(saved, len(plan))[1:] for plan in leaders))
        rest = [plan for rank in others for plan in rank if plan is not None]
        winner = max([*leaders, *rest[: left() // 3]], key=self.quality)
        moving = self.found.spacing is not None
        planner = self._planner(len(winner))
        tries = left() // 2 if moving else left()
        winner, _ = refine(winner, self.quality, planner.quality, planner.model, tries)
        return self._plan(winner, self._moved(winner, left()) if moving else None)

    def _candidates(self, saved: dict[int, int], steps: int) -> list[Reuses]:
        return self._planner(steps).candidates(saved[steps])

    def _moved(self, best: Reuses, evaluations: int) -> Values | None:
        """Return better steps for a plan; None if the spacing's are the best."""
        assert self.found.spacing is not None
        steps = self.found.spacing.values(len(best))
        # the spacing's own were tried as such
        return improve_steps(steps, lambda values: self.quality(best, None if values == steps else values), evaluations)

    def _saved(self, steps: int, budget: float) -> int:
        return max(0, math.ceil((steps - budget) * self.found.blocks / self.found.block_share - 1e-9))

    def _planner(self, steps: int) -> Planner:
        if steps not in self._planners:
            model = self.found.errors if steps == self.found.steps else self.found.errors.resampled(steps)
            limit = self.found.convergence.error(steps) if self.target == "exact" else 0.0
            self._planners[steps] = Planner(model, self.objective, limit)
        return self._planners[steps]

    def _predicted(self, reuses: Reuses) -> float:
        """Return the objective of a plan in dB, as predicted."""
        return self._planner(len(reuses)).quality(reuses)

    def _plan(self, reuses: Reuses, values: Values | None = None) -> DeltaPlan:
        steps, spacing = len(reuses), self.found.spacing
        moved: dict[str, Any] = {} if spacing is None else {spacing.argument: values or spacing.values(steps)}
        levels = self.found.levels if steps == self.found.steps and values is None else None
        return DeltaPlan.of(self.found.blocks, reuses, levels=levels, provenance=self._told(reuses, values), **moved)

    def _told(self, reuses: Reuses, values: Values | None) -> dict[str, Any]:
        """Return how good a plan is, and how that is known: for its provenance."""
        told: dict[str, Any] = self.found.about | {"target": self.target, "objective": self.objective}
        if self.found.spacing is not None:
            told["even_in_lambda"] = self.found.spacing.share
        told["predicted_psnr_db"] = self._predicted(reuses)
        if self.trial is not None:
            told["psnr_db"] = self.quality(reuses, values)
            told |= {"psnr_samples": self.trial.samples, "plans_tried": len(self.trial.known)}
            told["generations"] = round(told["generations"] + self.trial.draws.evaluations / self.found.steps, 1)
            told |= {} if self.exact is None else {"reference_steps": self.exact}
        return told


def step_counts(budget: float) -> list[int]:
    """Return numbers of steps that a plan of this cost may have: from no reuse to mostly reuse, in equal ratios."""
    least = max(2, math.floor(budget))
    ratio = LONGER ** (1 / (STEP_COUNTS - 1))
    return sorted({round(least * ratio**i) for i in range(STEP_COUNTS)})
