"""What the cache is told: :class:`DeltaCacheConfig`, and the plan that follows from it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from delta_dit import schedules
from delta_dit.delta_plan import DeltaPlan

Schedule = Literal["generic", "paper", "front", "rear", "middle"]


@dataclass(frozen=True)
class DeltaCacheConfig:
    """Options of the Δ-cache.

    Args:
        speedup: how many times fewer block evaluations than without the cache. Faster costs fidelity; 1.6 is the
            paper's setting, and the number of sampling steps is the maximum.
        schedule: ``"generic"`` keeps the sensitive first and last steps full and reuses all blocks between (the better
            picture in our measurements); ``"paper"`` reuses rear blocks early and front blocks late at a fixed
            interval; ``"front"``, ``"rear"`` and ``"middle"`` reuse one fixed range.
        interval: N, every how many steps all blocks run, for the schedules with a fixed interval; default: from
            the speed-up.
        cached_blocks: N_c, how many blocks a reuse step does not run, likewise.
        early_steps: the boundary b: how many of the steps count as early, for ``"paper"``; default: 40 %.
        plan: use this plan instead of all of the above, e.g. a calibrated one.
        num_inference_steps: T. Needed only when the cache is put on a bare transformer, which knows no scheduler.

    Raises:
        ValueError: a value that is not possible.
    """

    speedup: float = 1.6
    schedule: Schedule = "generic"
    interval: int | None = None
    cached_blocks: int | None = None
    early_steps: int | None = None
    plan: DeltaPlan | None = None
    num_inference_steps: int | None = None

    def __post_init__(self) -> None:
        """Check the values that do not depend on the model."""
        if self.schedule not in get_args(Schedule):
            raise ValueError(f"schedule={self.schedule!r} is unknown; allowed: {', '.join(get_args(Schedule))}")
        if not self.speedup >= 1:
            raise ValueError(f"speedup={self.speedup!r} is not possible; allowed: 1 or more")
        if (self.interval is None) != (self.cached_blocks is None):
            raise ValueError(
                f"interval={self.interval!r} and cached_blocks={self.cached_blocks!r}; allowed: both or neither"
            )
        if self.interval is not None and self.schedule == "generic":
            raise ValueError("interval belongs to a fixed schedule; allowed with: paper, front, rear, middle")

    def plan_for(self, steps: int, blocks: int, levels: Sequence[float] | None = None) -> DeltaPlan:
        """Return the plan for a run of ``steps`` steps on ``blocks`` blocks.

        Args:
            steps: T.
            blocks: L.
            levels: the noise level of each step in [0, 1], if known.

        Raises:
            ValueError: the plan is for another model, or the speed-up is impossible.
        """
        if self.plan is not None:
            return _fit(self.plan, steps, blocks, levels)
        if self.schedule == "generic":
            return schedules.generic(steps, blocks, self.speedup)
        if self.interval is not None and self.cached_blocks is not None:
            interval, cached = self.interval, self.cached_blocks
        else:
            interval, cached = schedules.for_speedup(steps, blocks, self.speedup)
        if self.schedule == "paper":
            return schedules.paper(steps, blocks, interval, cached, self.early_steps)
        fixed: dict[str, Callable[..., DeltaPlan]] = {
            "front": schedules.front,
            "rear": schedules.rear,
            "middle": schedules.middle,
        }
        return fixed[self.schedule](steps, blocks, interval, cached)


def _fit(plan: DeltaPlan, steps: int, blocks: int, levels: Sequence[float] | None) -> DeltaPlan:
    if plan.blocks != blocks:
        raise ValueError(f"the plan is for {plan.blocks} blocks and the model has {blocks}")
    if levels is not None and plan.levels is not None:
        return plan.resample(levels)
    if plan.steps != steps:
        raise ValueError(f"the plan is for {plan.steps} steps, has no noise levels, and the run has {steps} steps")
    return plan
