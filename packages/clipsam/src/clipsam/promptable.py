"""What MMR asks of a promptable segmenter, such as Segment Anything.

The costly part, :meth:`Segmenter.embed`, runs once for an image; the cheap part, :meth:`Segmenter.decode`, takes all
prompts of the image in a few chunked calls and returns small masks, so that a caller combines them before anything is
enlarged to the size of the image.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Embedding:
    """An embedded image.

    Args:
        features: ``(1, C, g, g)``.
        image_size: height and width of the image in pixels.
        input_size: height and width of the part of the segmenter's square input that the image fills.
    """

    features: Tensor
    image_size: tuple[int, int]
    input_size: tuple[int, int]


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


class Segmenter(Protocol):
    """A promptable segmenter."""

    def embed(self, image: NDArray[np.uint8]) -> Embedding:
        """Embed an image ``(H, W, 3)``, RGB in 0..255."""
        ...

    def decode(self, embedding: Embedding, prompts: Prompts) -> tuple[Tensor, Tensor]:
        """Return mask logits ``(Q, M, h, w)`` on the segmenter's small square, and their scores ``(Q, M)`` in [0, 1].

        M are the levels of an ambiguous prompt: whole, part, part of the part.
        """
        ...

    def to_square(self, values: Tensor, embedding: Embedding) -> Tensor:
        """Bring values ``(..., H, W)`` on the image to the small square ``(..., h, w)``; zero beyond the image."""
        ...

    def to_image(self, values: Tensor, embedding: Embedding) -> Tensor:
        """Enlarge values ``(..., h, w)`` on the small square to the image, ``(..., H, W)``."""
        ...

    def to_masks(self, logits: Tensor, embedding: Embedding) -> Tensor:
        """Return where logits ``(..., h, w)`` are positive on the image, ``(..., H, W)`` bool."""
        ...
