"""Plans without calibration: the schedule of Δ-DiT (arXiv 2406.01125, §4) and others. Pure Python.

The paper's text fixes the idea (rear blocks early, front blocks late, every ``interval`` steps a full one); the exact
rounding of its budget formula and the exact meaning of its boundary b are reconstructed here from its published
speed-ups.
"""

import math

from delta_dit.delta_plan import DeltaPlan, Range, Reuse, longest_run


def paper(steps: int, blocks: int, interval: int, cached_blocks: int, early_steps: int | None = None) -> DeltaPlan:
    """Return the paper's schedule: full every ``interval`` steps, between them rear blocks early, front blocks late.

    Args:
        steps: T.
        blocks: L.
        interval: N; 1 never reuses.
        cached_blocks: N_c, how many of the L blocks a reuse step does not run; 0 never reuses.
        early_steps: how many of the T steps belong to the early (noisy) stage. The paper's b counts the remaining
            steps, so b=12 of 20 means 8 (reconstructed reading); default: 40 % of the steps.
    """
    early = round(0.4 * steps) if early_steps is None else early_steps
    if not 0 <= early <= steps:
        raise ValueError(f"early_steps={early!r} is not possible; allowed: 0 to {steps}")
    rear, front = (blocks - cached_blocks, blocks), (0, cached_blocks)
    return _uniform(steps, blocks, interval, cached_blocks, [rear if step < early else front for step in range(steps)])


def front(steps: int, blocks: int, interval: int, cached_blocks: int) -> DeltaPlan:
    """Return the schedule that reuses the first ``cached_blocks`` blocks in both stages."""
    return _uniform(steps, blocks, interval, cached_blocks, [(0, cached_blocks)] * steps)


def rear(steps: int, blocks: int, interval: int, cached_blocks: int) -> DeltaPlan:
    """Return the schedule that reuses the last ``cached_blocks`` blocks in both stages."""
    return _uniform(steps, blocks, interval, cached_blocks, [(blocks - cached_blocks, blocks)] * steps)


def middle(steps: int, blocks: int, interval: int, cached_blocks: int) -> DeltaPlan:
    """Return the schedule that reuses the central ``cached_blocks`` blocks in both stages."""
    start = (blocks - cached_blocks) // 2
    return _uniform(steps, blocks, interval, cached_blocks, [(start, start + cached_blocks)] * steps)


def for_speedup(steps: int, blocks: int, speedup: float) -> tuple[int, int]:
    """Return the paper's ``(interval N, cached_blocks N_c)`` for a speed-up S counted in blocks.

    With F = ⌈T/N⌉ full steps, S = T·L / (F·L + (T − F)(L − N_c)). N is the smallest that lets N_c ≤ L. The paper's
    exact rounding is not known; this one reproduces its published pairs (1.6× at T=20: N=2 and 21 of 28 blocks).

    Raises:
        ValueError: no schedule is as fast as that.
    """
    check_speedup(speedup, steps)
    for interval in range(2, steps + 1):
        reuse_steps = steps - math.ceil(steps / interval)
        cached = round(blocks * steps * (1 - 1 / speedup) / reuse_steps)
        if cached <= blocks:
            return interval, cached
    return 1, 0  # a single step: only a speed-up of 1 came this far


def generic(steps: int, blocks: int, speedup: float) -> DeltaPlan:
    """Return the plan to use without calibration: all blocks are reused, where reuse is cheap.

    The first quarter and the last tenth of the steps stay full, because the final image is most sensitive to them; the
    reuse steps are spread evenly over the rest. Faster plans than that allows eat into the full ends.

    Raises:
        ValueError: no schedule is as fast as that.
    """
    check_speedup(speedup, steps)
    saved = round(steps * blocks * (1 - 1 / speedup))  # block evaluations to save
    count, left = divmod(saved, blocks)
    slots = math.ceil(saved / blocks)
    head, tail = math.ceil(steps / 4), math.ceil(steps / 10)
    tail = min(tail, max(0, steps - 1 - slots))
    head = max(1, min(head, steps - tail - slots))
    free = steps - tail - head
    # every reuse step gets the middle of its share of the free steps
    chosen = [head + math.floor((k + 0.5) * free / slots) for k in range(slots)]
    run = longest_run([step in chosen for step in range(steps)])
    reuses: list[Reuse | None] = [None] * steps
    for number, step in enumerate(chosen):
        width = blocks if number < count else left
        # extrapolation pays while full steps are close, and overshoots in longer runs
        reuses[step] = Reuse(blocks - width, blocks, order=1 if run <= 2 else 0)
    return DeltaPlan.of(blocks, reuses)


def _uniform(steps: int, blocks: int, interval: int, cached_blocks: int, ranges: list[Range]) -> DeltaPlan:
    if interval < 1:
        raise ValueError(f"interval={interval!r} is not possible; allowed: 1 or more")
    if not 0 <= cached_blocks <= blocks:
        raise ValueError(f"cached_blocks={cached_blocks!r} is not possible; allowed: 0 to {blocks}")
    reuses = [None if step % interval == 0 or cached_blocks == 0 else Reuse(*ranges[step]) for step in range(steps)]
    return DeltaPlan.of(blocks, reuses)


def check_speedup(speedup: float, steps: int) -> None:
    """Raise ValueError unless a plan of so many steps can be as fast as that."""
    if not 1 <= speedup <= steps:
        raise ValueError(f"speedup={speedup!r} is not possible; allowed: 1 to {steps}, the largest at {steps} steps")
