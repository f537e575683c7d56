"""Anomaly maps as other methods give them: with an axis in front, of another size, or of raw distances."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray

USUAL = 0.999  # share of the values of sound maps that lie below the middle of the scale


@dataclass(frozen=True)
class MapScale:
    """One scale for all maps of a method: ``low`` becomes 0, ``high`` becomes 1, and what lies beyond is cut off.

    Args:
        low: the least value.
        high: the value of a certain anomaly.

    Raises:
        ValueError: numbers that are none or do not rise.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        """Check the values."""
        if not np.isfinite([self.low, self.high]).all() or not self.low < self.high:
            raise ValueError(f"range={self.low!r}, {self.high!r} is not possible; allowed: two rising numbers")

    @classmethod
    def calibrated(cls, sound_maps: Iterable[ArrayLike]) -> Self:
        """Return the scale on which sound images hardly ever exceed 0.5, a thousandth of their pixels.

        Args:
            sound_maps: of images without anomalies, of any shapes.

        Raises:
            ValueError: none, values that are no numbers, or all of them equal.
        """
        values = np.concatenate([np.empty(0), *(np.asarray(one, np.float64).ravel() for one in sound_maps)])
        if not values.size or not np.isfinite(values).all():
            raise ValueError(f"sound maps with {values.size} values, or with NaN; allowed: one map or more, of numbers")
        low, usual = float(values.min()), float(np.quantile(values, USUAL))
        return cls(low, low + 2 * (usual - low))


def as_map(values: ArrayLike, size: Sequence[int], scale: MapScale | None = None) -> NDArray[np.float32]:
    """Return a map as MMR takes it, ``(H, W)`` float32; one that is so already, bit for bit.

    Args:
        values: ``(h, w)``, with any axes of length 1 in front, such as anomalib's ``(1, h, w)``.
        size: H and W of the image; a map of another size is enlarged or reduced (bilinear).
        scale: of raw distances; unset: the values lie in [0, 1] as they are.

    Raises:
        ValueError: more axes, or values that are not numbers in [0, 1], on the scale if there is one.
    """
    found = np.asarray(values, np.float32)
    while found.ndim > 2 and found.shape[0] == 1:
        found = found[0]
    if found.ndim != 2 or not found.size:
        raise ValueError(f"a map of shape {np.shape(values)}; allowed: (h, w), with axes of length 1 in front")
    if scale is not None and np.isfinite(found).all():
        found = ((found - scale.low) / (scale.high - scale.low)).clip(0, 1).astype(np.float32)
    if not (found.min() >= 0 and found.max() <= 1):  # NaN fails both
        told = f"the map's scores lie in [{found.min()}, {found.max()}]; allowed: numbers in [0, 1]"
        raise ValueError(f"{told}, or distances with a range")
    if found.shape != tuple(size):
        options = {"mode": "bilinear", "align_corners": False, "antialias": True}
        [[resized]] = F.interpolate(torch.tensor(found)[None, None], tuple(size), **options)
        found = resized.clamp(0, 1).numpy()
    return found
