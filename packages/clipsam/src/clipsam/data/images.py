"""Reading photographs and masks from files, whatever they were saved as, within a bounded amount of memory."""

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from frugal_shared.rgb import as_rgb

MAX_PIXELS = 64 * 2**20
"""Images with more pixels are refused before they are decoded; as many take 192 MB as RGB, 0.6 GB at the peak."""
IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})


FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What a file may be, whatever its name says: Pillow would also hand PostScript to Ghostscript, which runs it."""


class ImageError(ValueError):
    """A file that cannot be used as an image or as a mask; the one-line message names it."""


def read_image(path: str | Path) -> NDArray[np.uint8]:
    """Read a photograph.

    Turned as its EXIF orientation says. Grey and palette images become RGB; transparent ones are laid over white;
    16-bit grey is divided by 257, so that 65,535 becomes 255 (floating-point files are stretched from their least to
    their greatest value instead, for nothing states their range). Of an animation or a stack, the first picture.

    Returns:
        ``(H, W, 3)`` uint8 RGB.

    Raises:
        ImageError: missing, empty, damaged or unknown, or more than :data:`MAX_PIXELS` pixels.
    """
    with _opened(path) as image:
        return np.array(as_rgb(ImageOps.exif_transpose(image)))


def read_mask(path: str | Path, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Read a mask: every value above 0 is a defect, so maps of defect numbers (VisA) and of 255 (MVTec-AD) both work.

    Args:
        path: the file.
        size: height and width of the image that the mask belongs to.

    Returns:
        ``(H, W)`` bool.

    Raises:
        ImageError: as in :func:`read_image`, or a mask of another size.
    """
    with _opened(path) as image:
        image = ImageOps.exif_transpose(image)
        # a palette's entries are colours of defect numbers, and numbers are what counts; alpha is not part of a mask
        values = np.asarray(image if len(image.getbands()) == 1 else image.convert("RGB"))
        mask = np.any(np.atleast_3d(values) > 0, axis=2)
    if mask.shape != tuple(size):
        raise ImageError(f"{path}: the mask is {_size(mask.shape)}, but its image is {_size(size)} (height x width)")
    return mask


def check_files(paths: Iterable[str | Path]) -> None:
    """Read the headers of some files, which takes far less time than decoding them.

    Raises:
        ImageError: some are no images; the message names the first and counts the others.
    """
    errors = [error for path in paths if (error := _header_error(path))]
    if errors:
        raise ImageError(f"{errors[0]}{f' (and {len(errors) - 1} other files)' * (len(errors) > 1)}")


def _header_error(path: str | Path) -> ImageError | None:
    try:
        with _opened(path):
            return None
    except ImageError as error:
        return error


@contextmanager
def _opened(path: str | Path) -> Iterator[Image.Image]:
    """Open an image and turn whatever goes wrong inside the ``with`` block into an :class:`ImageError`."""
    try:
        with warnings.catch_warnings():
            # Pillow warns of sizes below ours and of odd metadata; neither is the reader's concern
            warnings.simplefilter("ignore")
            with Image.open(path, formats=FORMATS) as image:
                _check_size(path, image)
                yield image
    except ImageError:
        raise
    except FileNotFoundError:
        raise ImageError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise ImageError(f"{path}: a folder, not an image") from None
    except (UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise ImageError(f"{path}: {_why(path, error)}") from None
    except Exception as error:  # on damaged files Pillow's readers raise whatever their parsers stumble over
        raise ImageError(f"{path}: cannot be read as an image ({_one_line(error)})") from None


def _check_size(path: str | Path, image: Image.Image) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise ImageError(f"{path}: {_size((image.height, image.width))} pixels; allowed: at most {MAX_PIXELS:,}")


def _why(path: str | Path, error: Exception) -> str:
    if isinstance(error, Image.DecompressionBombError):
        return f"too many pixels; allowed: at most {MAX_PIXELS:,}"
    return "the file is empty" if Path(path).stat().st_size == 0 else "not an image that can be read"


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[0]}x{shape[1]}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
