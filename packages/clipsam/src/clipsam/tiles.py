"""Small defects in large images: overlapping tiles and a pass over the whole image, each seen as an image by itself.

Not of the paper. CLIP sees a square of a few hundred pixels: of 24 megapixels squashed into it, a scratch of 60 pixels
is two. A tile keeps it large. The tiles' maps are blended with a Hann window, so that no seam shows; of that and the
whole image's own map the larger counts at every pixel, because what is small shows in a tile alone, and what is larger
than a tile, in the whole alone. The image's score is the highest of its views': each is scored as an image of its own.

Two arrays of the image's size are kept, whatever the number of tiles.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

ZOOM = 2  # of an "auto" tile: pixels of the image for each that CLIP sees
SMALLEST = 16  # pixels, of a tile's side

Picture = NDArray[np.uint8]
Scored = tuple[NDArray[np.float32], float]
"""A map ``(H, W)`` and its image's score."""
Seen = dict[str, list[Scored]]
"""What is said of some images, by who says it."""
Window = tuple[slice, slice]
"""Rows and columns."""


@dataclass(frozen=True)
class Tiling:
    """How large images are cut.

    Args:
        side: of a tile, in pixels of the image; "auto": twice that of the square that CLIP sees. An image of that
            size or less is not cut.
        overlap: share of a tile's side that the next one sees, too, at least.
        batch: tiles that are seen at once.

    Raises:
        ValueError: a value that is not possible.
    """

    side: int | Literal["auto"] = "auto"
    overlap: float = 0.25
    batch: int = 8

    def __post_init__(self) -> None:
        """Check the values."""
        if self.side != "auto" and (not isinstance(self.side, int) or self.side < SMALLEST):
            raise ValueError(f"side={self.side!r} is not possible; allowed: {SMALLEST} or more, or 'auto'")
        if not 0 <= self.overlap <= 0.75 or self.batch < 1:
            raise ValueError(f"overlap={self.overlap!r}, batch={self.batch!r}; allowed: 0 to 0.75, 1 or more")

    def side_for(self, image_size: int) -> int:
        """Return a tile's side for a CLIP that sees a square of ``image_size`` pixels."""
        return ZOOM * image_size if self.side == "auto" else self.side


def tiles_of(height: int, width: int, side: int, overlap: float) -> list[Window]:
    """Return windows of one size that cover an image, evenly spread, row by row."""
    rows, columns = (starts(length, side, overlap) for length in (height, width))
    high, wide = min(side, height), min(side, width)
    return [(slice(y, y + high), slice(x, x + wide)) for y in rows for x in columns]


def starts(length: int, side: int, overlap: float) -> list[int]:
    """Return where the tiles along one side of an image begin: at least one, the last one ending with the image."""
    room = max(0, length - side)
    count = ceil(room / (side * (1 - overlap)))
    return [round(room * number / count) for number in range(count)] + [room] if count else [0]


def seen_in_tiles(image: Picture, side: int, tiling: Tiling, see: Callable[[Sequence[Picture]], Seen]) -> Seen:
    """Return what is said of an image through its tiles and as a whole.

    Args:
        image: ``(H, W, 3)``; one that is no larger than a tile is seen as a whole alone.
        side: of a tile in pixels.
        tiling: how the tiles overlap, and how many are seen at once.
        see: says something of some images, maps on their own pixels.
    """
    height, width = image.shape[:2]
    if max(height, width) <= side:
        return see([image])
    windows = tiles_of(height, width, side, tiling.overlap)
    blends: dict[str, Blend] = {}
    for start in range(0, len(windows), tiling.batch):
        batch = windows[start : start + tiling.batch]
        for name, scored in see([image[window] for window in batch]).items():
            blend = blends.setdefault(name, Blend(height, width))
            for window, (anomaly_map, score) in zip(batch, scored):
                blend.add(window, anomaly_map, score)
    whole = see([shrunk(image, side)])
    return {name: [blend.joined(*whole[name][0])] for name, blend in blends.items()}


def averaged(each: Sequence[Seen]) -> Seen:
    """Return the means of maps and scores over several looks at the same images."""
    if len(each) == 1:
        return each[0]
    return {name: [mean_of(looks) for looks in zip(*(seen[name] for seen in each))] for name in each[0]}


def mean_of(looks: Sequence[Scored]) -> Scored:
    """Return the mean map and the mean score of several looks at one image."""
    total = np.zeros_like(looks[0][0])
    for anomaly_map, _ in looks:
        total += anomaly_map
    return total / np.float32(len(looks)), float(np.mean([score for _, score in looks]))


class Blend:
    """The mean of many tiles' maps, weighted by a Hann window.

    Args:
        height: of the image.
        width: likewise.
    """

    def __init__(self, height: int, width: int) -> None:
        self.total, self.weight = np.zeros((2, height, width), np.float32)
        self.score = 0.0

    def add(self, window: Window, anomaly_map: NDArray[np.float32], score: float) -> None:
        """Take in a tile's map and score."""
        weight = np.outer(*map(hann, anomaly_map.shape))
        self.total[window] += weight * anomaly_map
        self.weight[window] += weight
        self.score = max(self.score, score)

    def joined(self, whole: NDArray[np.float32], score: float) -> Scored:
        """Return map and score of the image, with those of the whole image seen at once."""
        self.total /= self.weight
        height, width = self.total.shape
        large = Image.fromarray(whole).resize((width, height), Image.Resampling.BILINEAR)
        return np.maximum(self.total, np.asarray(large), out=self.total), max(self.score, score)


def hann(length: int) -> NDArray[np.float32]:
    """Return the window's values, nowhere 0: at the image's border there is no other tile."""
    return (0.001 + np.sin(np.pi * (np.arange(length) + 0.5) / length) ** 2).astype(np.float32)


def shrunk(image: Picture, side: int) -> Picture:
    """Return an image with its longer side reduced to ``side`` pixels."""
    scale = side / max(image.shape[:2])
    height, width = (max(1, round(length * scale)) for length in image.shape[:2])
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BOX))
