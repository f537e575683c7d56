"""Photographs and masks from files, as arrays; what a file may be is told by :mod:`frugal_shared.images`."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from frugal_shared import images
from frugal_shared.images import ImageError, opened
from frugal_shared.notices import warn

DEPTHS = (8, 10, 12, 14)  # bits that cameras fill of a file's 16
MAX_SAMPLE_VALUE = 281  # TIFF's tag
HEAD = 4096  # bytes of a PNG that what stands before the pixels is looked for in
MOST_NUMBERS = 16  # defect numbers in one mask
LARGEST_NUMBER = 32  # of a kind of defect, unless the numbers are spread over the whole range
FAINT = 8  # times less than the greatest value: what JPEG leaves beside an edge, not a defect's number


def read_image(path: str | Path, bits: int | None = None) -> NDArray[np.uint8]:
    """Read a photograph.

    Args:
        path: the file.
        bits: how many of a 16-bit grey file's bits are used, see :func:`camera_bits`; unset: all.

    Returns:
        ``(H, W, 3)`` uint8 RGB.

    Raises:
        ImageError: it cannot be read (see :func:`frugal_shared.images.read_image`).
    """
    return np.array(images.read_image(path, bits).convert("RGB"))


def camera_bits(paths: Iterable[str | Path]) -> int | None:
    """Return how many bits the 16-bit grey images among some files use, with a warning if not all; None: all 16.

    A camera of 10 or 12 bits fills a fifteenth of a 16-bit file's range or less: read as it is, it would be black. What
    the files state counts (a PNG's sBIT, a TIFF's MaxSampleValue), else the greatest value in all of them. Files that
    cannot be read are passed over.
    """
    used = 0
    for path in paths:
        try:
            with opened(path) as image:
                if image.mode.startswith("I;16"):
                    used = max(used, stated_bits(path, image) or int(np.asarray(image).max()).bit_length())
        except ImageError:
            continue  # told when it is read
        if used > DEPTHS[-1]:
            return None
    if not used:
        return None
    bits = min(depth for depth in DEPTHS if depth >= used)
    warn(f"the 16-bit images hold values of {bits} bits: {2**bits - 1} is taken for white")
    return bits


def stated_bits(path: str | Path, image: Image.Image) -> int | None:
    """Return how many bits an open 16-bit file says that it uses."""
    if image.format == "PNG":
        head = Path(path).read_bytes()[:HEAD]
        at = head.find(b"sBIT", 0, head.find(b"IDAT"))
        return head[at + 4] if at > 0 else None
    largest = getattr(image, "tag_v2", {}).get(MAX_SAMPLE_VALUE)
    return None if largest is None else int(np.max(largest)).bit_length()


def read_mask(path: str | Path, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Read a mask, white or defect numbers on black; see :func:`is_defect`.

    Args:
        path: the file, or a folder of files whose masks count together (MVTec-LOCO).
        size: height and width of the image that the mask belongs to.

    Returns:
        ``(H, W)`` bool.

    Raises:
        ImageError: it cannot be read, or is of another size.
    """
    if Path(path).is_dir():
        parts = [read_mask(part, size) for part in images.image_files(Path(path))]
        return np.logical_or.reduce([np.zeros(size, bool), *parts])
    with opened(path) as image:
        exact = image.format != "JPEG"
        image = ImageOps.exif_transpose(image)
        # a palette's entries are colours of defect numbers, and numbers are what counts; alpha is not part of a mask
        values = np.asarray(image if len(image.getbands()) == 1 else image.convert("RGB"))
        mask = is_defect(np.atleast_3d(values).max(axis=2), exact=exact)
    if mask.shape != tuple(size):
        raise ImageError(f"{path}: the mask is {_size(mask.shape)}, but its image is {_size(size)} (height x width)")
    return mask


def is_defect(values: NDArray, *, exact: bool) -> NDArray[np.bool_]:
    """Return which of a mask's values mean a defect.

    Of a map of defect numbers (VisA, or 0 and 255) everything above 0: it has few values, all of them small, or none of
    them far below the greatest. Of all else, such as what JPEG or a resampling left, everything above half of the
    greatest value.

    Args:
        values: ``(H, W)``, of any kind of number.
        exact: whether the file kept its values, which JPEG does not.
    """
    levels = np.unique(values)
    levels = levels[levels > 0]
    if not len(levels):
        return np.zeros(values.shape, bool)
    least, greatest = float(levels[0]), float(levels[-1])
    numbers = len(levels) <= MOST_NUMBERS and (greatest <= LARGEST_NUMBER or least * FAINT >= greatest)
    return values > (0 if exact and numbers else greatest / 2)


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[0]}x{shape[1]}"
