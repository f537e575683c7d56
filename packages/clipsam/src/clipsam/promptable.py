"""What MMR asks of a promptable segmenter, such as Segment Anything.

The costly part, :meth:`Segmenter.embed`, runs once for an image; the cheap part, :meth:`Segmenter.decode`, takes all
prompts of the image and returns small masks, so that a caller combines them before anything is enlarged. Whether a
segmenter pads or squashes what it sees is its own affair: prompts come in pixels of the image, and masks span it.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Embedding:
    """An embedded image, as the networks of this package keep it.

    Args:
        features: what the mask decoder reads, the coarse features first.
        image_size: height and width of the image in pixels.
    """

    features: tuple[Tensor, ...]
    image_size: tuple[int, int]


@dataclass(frozen=True, eq=False)
class Prompts:
    """Q prompts, each a box, points, or both.

    Args:
        boxes: ``(Q, 4)``, corners x₀ y₀ x₁ y₁ in pixels of the image, or None.
        points: ``(Q, k, 2)``, x y in pixels of the image, or None.
        labels: ``(Q, k)``: 1 in the foreground, 0 in the background, −1 no point (to fill ragged rows).
    """

    boxes: Tensor | None = None
    points: Tensor | None = None
    labels: Tensor | None = None

    def __post_init__(self) -> None:
        """Check that the parts fit each other."""
        if self.boxes is None and self.points is None:
            raise ValueError("prompts without boxes and points; allowed: boxes, points, or both")
        if (self.points is None) != (self.labels is None):
            raise ValueError("points and labels come together; allowed: both or neither")
        if self.boxes is not None and self.points is not None and len(self.boxes) != len(self.points):
            raise ValueError(f"{len(self.boxes)} boxes and {len(self.points)} rows of points; allowed: as many")

    def __len__(self) -> int:
        """Return Q."""
        return len(self.boxes if self.boxes is not None else self.points)  # pyright: ignore[reportArgumentType]

    def rows(self, start: int, stop: int) -> "Prompts":
        """Return some of the prompts."""
        return Prompts(*(None if part is None else part[start:stop] for part in (self.boxes, self.points, self.labels)))


class Segmenter(Protocol):
    """A promptable segmenter."""

    def embed(self, image: NDArray[np.uint8]) -> Any:
        """Embed an image ``(H, W, 3)``, RGB in 0..255; what it returns is only given back to :meth:`decode`."""
        ...

    def decode(self, embedding: Any, prompts: Prompts) -> tuple[Tensor, Tensor]:
        """Return mask logits ``(Q, M, h, w)`` on a small grid that spans the image, and scores ``(Q, M)`` in [0, 1].

        The grid has any size, and its cells may be of any shape. M are the levels of an ambiguous prompt: whole, part,
        part of the part. Both lie on the CPU.
        """
        ...
