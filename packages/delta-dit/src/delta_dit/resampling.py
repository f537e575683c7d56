"""How a plan is carried over to other noise levels: where they lie, and how many steps there reuse. Pure Python."""

import itertools
from collections.abc import Sequence


def position(levels: Sequence[float], level: float) -> float:
    """Return where ``level`` lies among the falling ``levels``, as a fractional index; linear between them."""
    for index, (high, low) in enumerate(itertools.pairwise(levels)):
        if level >= low:
            return index + min(1.0, max(0.0, (high - level) / (high - low))) if high > low else float(index)
    return float(len(levels) - 1)


def mean_within(values: Sequence[float], low: float, high: float) -> float:
    """Return the mean over [low, high) of the step function that is ``values[i]`` on [i − ½, i + ½)."""
    if high <= low:
        return 0.0
    overlaps = (max(0.0, min(high, i + 0.5) - max(low, i - 0.5)) for i in range(len(values)))
    return sum(value * overlap for value, overlap in zip(values, overlaps)) / (high - low)


def thinned(widths: Sequence[int], steps: int, old_steps: int) -> list[int]:
    """Return which of these reuse steps to keep, some perhaps twice, in their order.

    They save the same share of ``steps`` as all of them do of ``old_steps``, as nearly as possible.
    """
    target = sum(widths) * steps / old_steps

    def picked(count: int) -> list[int]:
        return [(2 * k + 1) * len(widths) // (2 * count) for k in range(count)]

    choices = [picked(count) for count in range(steps if widths else 1)]  # the first step is full
    return min(choices, key=lambda choice: abs(sum(widths[index] for index in choice) - target))


def scaled(shares: Sequence[float], total: int, most: float) -> list[float]:
    """Return shares in proportion to these, the first of which is 0, that sum to ``total``; none above ``most``.

    Where that is not possible, all the others count alike, or ``most`` gives way.
    """
    most = max(most, total / max(1, len(shares) - 1))
    if sum(share > 0 for share in shares) * most < total:
        shares = [0.0, *(share + 0.1 for share in shares[1:])]
    full: set[int] = set()
    while True:
        free = sum(share for i, share in enumerate(shares) if i not in full)
        factor = (total - most * len(full)) / free if free > 0 else 0.0
        above = {i for i, share in enumerate(shares) if i not in full and share * factor > most}
        if not above:
            return [most if i in full else share * factor for i, share in enumerate(shares)]
        full |= above
