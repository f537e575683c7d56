"""Whole steps that reuse all blocks, a fixed number of them, chosen by simulated annealing and then hill climbing.

The first stage of BudCache (arXiv 2606.13496), reconstructed from its description for the comparison: where Δ-DiT's
plans choose a range of blocks and a forecast for each step, it chooses the steps alone.
"""

import math
import random
from collections.abc import Callable, Sequence

from delta_dit.delta_plan import Reuse, Reuses

HOT, COLD = 1.0, 0.05
"""Loss in dB that is accepted with probability 1/e, at first and at the end of the annealing."""
CLIMBING = 2 / 3
"""From this share of the allowance on only what is better is accepted."""
PATIENCE = 200
"""Masks that were known already, in a row, before the search ends."""

Mask = tuple[bool, ...]
"""True for a step that reuses."""


def reusing(mask: Sequence[bool], blocks: int) -> Reuses:
    """Return the plan that holds the Δ of all blocks where the mask is true."""
    return tuple(Reuse(0, blocks) if reused else None for reused in mask)


def anneal(
    steps: int, reused: int, quality: Callable[[Mask], float], spent: Callable[[], float], seed: int = 0
) -> tuple[Mask, float]:
    """Return the best mask that was found, and its quality.

    Args:
        steps: T.
        reused: how many of them reuse; the first one never does.
        quality: what to maximise, in dB.
        spent: the share of the allowance that is used up.
        seed: of the random changes: a full and a reuse step change places.
    """
    draw = random.Random(seed)
    even = {1 + round((steps - 2) * i / max(reused - 1, 1)) for i in range(reused)}
    mask = tuple(step in even for step in range(steps))
    known = {mask: quality(mask)}
    best, idle = mask, 0
    while spent() < 1 and idle < PATIENCE and 0 < reused < steps - 1:
        i = draw.choice([step for step in range(1, steps) if mask[step]])
        j = draw.choice([step for step in range(1, steps) if not mask[step]])
        changed = tuple(mask[{i: j, j: i}.get(step, step)] for step in range(steps))
        idle = idle + 1 if changed in known else 0
        if changed not in known:
            known[changed] = quality(changed)
        gain = known[changed] - known[mask]
        heat = HOT * (COLD / HOT) ** min(1.0, spent() / CLIMBING)
        if gain > 0 or (spent() < CLIMBING and draw.random() < math.exp(gain / heat)):
            mask = changed
        if known[mask] > known[best]:
            best = mask
        elif spent() >= CLIMBING and known[mask] < known[best]:
            mask = best
    return best, known[best]
