"""The automatic class-balance constraint: pruning must not starve a class, nor let one take over.

A reconstruction: the paper names the constraint, its formula is not known to us. With the keep ratio r, N_c samples of
class c and a tolerance τ, between

    floor_c = max(least, ⌊(1 − τ) r N_c⌋)   and   cap_c = ⌈(1 + τ) r N_c⌉

samples of class c are kept, r N in all: every class gets its floor, of the samples it prefers; what is left is filled
like water by the preference among all samples, and a class that is full at its cap lets the others rise.
τ = 0 keeps the classes' shares as they are, τ = ∞ only sees to ``least`` samples of each.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

ROUNDING = 1e-9  # 0.9 · 0.2 · 50 is a little more than 9 in floating point, other products a little less


def class_bounds(counts: Array, ratio: float, *, tau: float = 0.1, least: int = 1) -> tuple[Array, Array]:
    """Return how many samples of each class are kept at least and at most.

    Args:
        counts: N_c ``(C,)``, samples of each class before any pruning; a class without any is left out.
        ratio: r, keep ratio in (0, 1].
        tau: τ ≥ 0, relative deviation of a class's keep ratio; infinity for no constraint.
        least: samples that every class keeps.

    Returns:
        floors and caps, ``(C,)`` integers.

    Raises:
        ValueError: a value out of its range, a class with fewer samples than ``least``, or a ratio that does not leave
            every class its floor.
    """
    if not tau >= 0:
        raise ValueError(f"tau={tau!r} is not possible; allowed: 0 or more")
    if least < 1:
        raise ValueError(f"least={least!r} is not possible; allowed: 1 or more")
    present = counts > 0
    if (short := np.flatnonzero(present & (counts < least))).size:
        raise ValueError(f"class {short[0]} has {counts[short[0]]} samples; allowed: at least {least}")
    floors = np.maximum(least * present, np.floor((1 - tau) * ratio * counts + ROUNDING)).astype(int)
    caps = np.minimum(counts, np.ceil((1 + tau) * ratio * counts - ROUNDING)).astype(int)
    keep = round(ratio * counts.sum())
    if floors.sum() > keep:
        raise ValueError(
            f"keep={ratio!r} leaves {keep} of {counts.sum()} samples; "
            f"allowed: at least {floors.sum()}, the floors of {present.sum()} classes"
        )
    return floors, np.maximum(floors, caps)


def balanced_top(keys: Array, classes: Array, keep: int, floors: Array, caps: Array) -> Array:
    """Return which ``keep`` samples are the best under the floors and caps.

    Args:
        keys: ``(M,)``, the smaller the better; among equal ones the first is the best.
        classes: ``(M,)`` in 0 … C − 1.
        keep: how many, at most M. Always met: where the caps leave too few, they give way.
        floors: ``(C,)``.
        caps: ``(C,)``.

    Returns:
        ``(keep,)`` places in ``keys``, ascending.
    """
    by_class = np.lexsort((keys, classes))
    counts = np.bincount(classes, minlength=len(floors))
    place = np.empty(len(keys), int)  # of a sample within its class, the best has 0
    place[by_class] = np.arange(len(keys)) - np.repeat(counts.cumsum() - counts, counts)
    tier = (place >= floors[classes]).astype(int) + (place >= caps[classes])
    return np.sort(np.lexsort((keys, tier))[:keep])
