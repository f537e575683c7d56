"""A run of the sampler under a plan: which Δs its later steps still read, and whether it reused anything."""

import itertools
from collections import Counter
from collections.abc import Callable, Sequence

from delta_dit.delta_plan import DeltaPlan, Full, Range, Reuse

Pieces = Callable[[Range], list[Range]]
"""Splits a range of blocks into those pieces that have a Δ each."""


class Run:
    """One run.

    Args:
        number: the clock's.
        plan: what its steps do.
        pieces: of a range.
        obstacle: why nothing can be reused in it, if so.
        ratios: λ of each step, along which linear forecasts are drawn; default: along the number of the step, as it is
            also done where two steps have the same.
    """

    def __init__(
        self,
        number: int,
        plan: DeltaPlan,
        pieces: Pieces,
        obstacle: str | None,
        ratios: Sequence[float] | None = None,
    ) -> None:
        self.number = number
        self.plan = plan
        self.obstacle = obstacle
        rises = ratios is not None and all(a < b for a, b in itertools.pairwise(ratios))
        self.axis: Sequence[float] = ratios if ratios is not None and rises else range(plan.steps)
        self.needs = [_needs_after(plan, step, pieces) for step in range(plan.steps)]
        """After each step, how many of the newest Δs of each piece will still be read."""
        self.last_reuse = max((step for step, reuse in enumerate(plan.reuses) if reuse), default=-1)
        self.step = -1
        self.ended = False
        self.calls = 0
        self.reuses = 0
        self.fallbacks: Counter[str] = Counter()

    @property
    def at_its_last_step(self) -> bool:
        """Whether no step follows."""
        return self.step == self.plan.steps - 1

    @property
    def reused_nothing(self) -> bool:
        """Whether the plan reuses and the run, so far, did not."""
        return self.calls > 0 and self.reuses == 0 and any(self.plan.reuses)

    def count(self, reused: bool, fallback: str | None) -> None:
        """Note what a call came to."""
        self.calls += 1
        self.reuses += reused
        if fallback is not None:
            self.fallbacks[fallback] += 1

    def last_full(self, step: int) -> tuple[int, tuple[Range, ...]]:
        """Return the newest full step of the plan at this step, and what it records."""
        full = next(i for i in range(step, -1, -1) if isinstance(self.plan.actions[i], Full))
        action = self.plan.actions[full]
        return full, action.records if isinstance(action, Full) else ()


def _needs_after(plan: DeltaPlan, step: int, pieces: Pieces) -> dict[Range, int]:
    needs: dict[Range, int] = {}
    newer: Counter[Range] = Counter()  # Δs that come after those at hand
    full_seen = 0
    for action in itertools.islice(plan.actions, step + 1, None):
        if isinstance(action, Full):
            full_seen += 1
            if full_seen == 2:  # from here on all that is read was recorded by this full step and the one before it
                break
            newer.update({piece for blocks in action.records for piece in pieces(blocks)})
        else:
            for piece in pieces(action.range):
                needs[piece] = max(needs.get(piece, 0), _reads(action) - newer[piece])
    return {piece: count for piece, count in needs.items() if count > 0}


def _reads(reuse: Reuse) -> int:
    """Return how many of the newest Δs a reuse step reads."""
    return 1 + reuse.order
