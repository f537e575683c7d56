"""Differences between two ways to do the same, on the same samples or seeds, and whether they could be chance."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import norm, wilcoxon

from frugal_shared.evaluation import mean_interval

POWER = 0.8
"""With this probability the smallest difference that could have been seen would have been."""


@dataclass(frozen=True)
class Difference:
    """What came out of pairs.

    Args:
        mean: of the differences.
        half: half of the 95 % interval of the mean (Student's t).
        p: two-sided, of Wilcoxon's signed ranks, corrected by Holm for all the comparisons that were made together.
        visible: the smallest mean difference that such pairs would have shown at 5 %, four times in five.
    """

    mean: float
    half: float
    p: float
    visible: float


def compare_pairs(differences: Mapping[str, Sequence[float]]) -> dict[str, Difference]:
    """Return what each row of paired differences says, as one family of comparisons.

    Args:
        differences: by name, one number per pair.

    Raises:
        ValueError: fewer than two pairs, or differences that are no numbers.
    """
    found = {name: _difference(name, np.asarray(values, dtype=np.float64)) for name, values in differences.items()}
    corrected = dict(zip(found, holm([difference.p for difference in found.values()]), strict=True))
    return {name: replace(difference, p=corrected[name]) for name, difference in found.items()}


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number (Holm 1979): the family's error is at most each one's level."""
    order = np.argsort(p_values)
    raised = np.asarray(p_values, dtype=np.float64)[order] * np.arange(len(p_values), 0, -1)
    corrected = np.empty(len(p_values))
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(raised))
    return corrected.tolist()


def _difference(name: str, values: np.ndarray) -> Difference:
    if values.ndim != 1 or len(values) < 2 or not np.isfinite(values).all():
        raise ValueError(f"{name} has {values.size} differences; allowed: two finite numbers or more")
    mean, half = mean_interval(values.tolist())
    p = float(np.asarray(wilcoxon(values))[1]) if values.any() else 1.0  # it is undefined where all pairs are equal
    visible = (norm.ppf(0.975) + norm.ppf(POWER)) * values.std(ddof=1) / len(values) ** 0.5
    return Difference(mean, half, p, float(visible))
