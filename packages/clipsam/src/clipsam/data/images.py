"""Photographs and masks from files, as arrays; what a file may be is told by :mod:`frugal_shared.images`."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ImageOps

from frugal_shared import images
from frugal_shared.images import ImageError, opened


def read_image(path: str | Path) -> NDArray[np.uint8]:
    """Read a photograph.

    Returns:
        ``(H, W, 3)`` uint8 RGB.

    Raises:
        ImageError: it cannot be read (see :func:`frugal_shared.images.read_image`).
    """
    return np.array(images.read_image(path).convert("RGB"))


def read_mask(path: str | Path, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Read a mask: every value above 0 is a defect, so maps of defect numbers (VisA) and of 255 (MVTec-AD) both work.

    Args:
        path: the file.
        size: height and width of the image that the mask belongs to.

    Returns:
        ``(H, W)`` bool.

    Raises:
        ImageError: it cannot be read, or is of another size.
    """
    with opened(path) as image:
        image = ImageOps.exif_transpose(image)
        # a palette's entries are colours of defect numbers, and numbers are what counts; alpha is not part of a mask
        values = np.asarray(image if len(image.getbands()) == 1 else image.convert("RGB"))
        mask = np.any(np.atleast_3d(values) > 0, axis=2)
    if mask.shape != tuple(size):
        raise ImageError(f"{path}: the mask is {_size(mask.shape)}, but its image is {_size(size)} (height x width)")
    return mask


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[0]}x{shape[1]}"
