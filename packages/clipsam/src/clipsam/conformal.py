"""From scores to a decision: a threshold with a guarantee from sound images, or the best one for labelled images.

Conformal: of n scores of sound images the threshold is the ⌈(n + 1)(1 − α)⌉-th smallest. Another sound image of the
same kind then lies above it with a probability of at most α, whatever the scores' distribution and however few the
images, as long as it is exchangeable with them (Vovk, Gammerman & Shafer, 2005): the same line, light and camera. The
probability is over the draw of the images, too: the rate of one set of n images varies about α.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clipsam.metrics import sorted_curve

ALPHA = 0.05


def images_needed(alpha: float = ALPHA) -> int:
    """Return how many sound images a false-alarm rate of α takes: below, no score is large enough to promise it.

    Raises:
        ValueError: α is no rate.
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha={alpha!r} is not possible; allowed: between 0 and 1")
    return math.ceil((1 - alpha) / alpha - 1e-9)


def conformal_threshold(scores: ArrayLike, alpha: float = ALPHA) -> float:
    """Return the threshold above which a sound image lies with a probability of at most α.

    Args:
        scores: of sound images, one each.
        alpha: α, the false-alarm rate.

    Raises:
        ValueError: fewer images than α needs, or a score that is not finite.
    """
    values, needed = finite(scores), images_needed(alpha)
    if len(values) < needed:
        raise ValueError(f"{len(values)} sound images with alpha={alpha}; allowed: {needed} images or more")
    rank = math.ceil((len(values) + 1) * (1 - alpha) - 1e-9)
    return float(np.sort(values)[rank - 1])


def f1_threshold(scores: ArrayLike, defective: Sequence[bool] | NDArray[np.bool_]) -> float:
    """Return the threshold of the best F1 on labelled images, halfway to the next lower score.

    Raises:
        ValueError: one kind of image is missing, or a score is not finite.
    """
    values, labels = finite(scores), np.asarray(defective, bool)
    if labels.all() or not labels.any():
        raise ValueError(f"{labels.sum()} of {len(labels)} images are defective; allowed: some, and some sound ones")
    _, best = sorted_curve(values, labels, np.zeros(len(values)), 0).f1_max()
    lower = values[values < best]
    return float((best + lower.max()) / 2 if len(lower) else np.nextafter(best, -np.inf))


def finite(scores: ArrayLike) -> NDArray[np.float64]:
    """Return scores as an array, all of them finite.

    Raises:
        ValueError: some are not.
    """
    values = np.asarray(scores, float)
    if wrong := int((~np.isfinite(values)).sum()):
        raise ValueError(f"{wrong} of {len(values)} scores are not numbers; allowed: finite ones")
    return values
