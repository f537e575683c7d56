"""Reading image files that strangers made, whatever they were saved as, within a bounded amount of memory.

One contract for all packages: a file is what its content says, never its name; its size is known before it is decoded;
and whatever goes wrong with it is one line that names it. Imports numpy and Pillow alone.
"""

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from frugal_shared.errors import RunError

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
"""How the names of image files in a folder end."""
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What a file may be, whatever its name says: Pillow would also hand PostScript to Ghostscript, which runs it."""
MAX_PIXELS = 64 * 2**20
"""Images with more pixels are refused before they are decoded; as many take 192 MB as RGB, 0.6 GB at the peak."""


class ImageError(RunError):
    """A file that cannot be used as an image; the one-line message names it."""


def read_image(path: str | Path, bits: int | None = None) -> Image.Image:
    """Read a photograph, turned as its EXIF orientation says; of an animation or a stack, the first picture.

    Args:
        path: the file.
        bits: see :func:`eight_bit`.

    Returns:
        8 bits, grey (mode "L") or RGB; see :func:`eight_bit`.

    Raises:
        ImageError: missing, empty, damaged or unknown, or more than :data:`MAX_PIXELS` pixels.
    """
    with opened(path) as image:
        return eight_bit(ImageOps.exif_transpose(image), bits)


def eight_bit(image: Image.Image, bits: int | None = None) -> Image.Image:
    """Return an image in any of Pillow's modes in 8 bits: grey as grey (mode "L"), everything else as RGB.

    Transparent images are laid over white, so that a colour nobody could see does not show. Deep grey is divided by 257
    if it consists of whole numbers up to 65,535, else stretched from its least to its greatest value, for nothing
    states its range.

    Args:
        image: to be converted.
        bits: how many bits deep grey fills, such as a camera's 12 of a file's 16; unset: all of them.

    Raises:
        ValueError: floating-point values none of which is finite.
    """
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = Image.fromarray(_scaled(np.asarray(image), 2 ** (bits or 16) - 1))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def image_files(folder: Path) -> list[Path]:
    """Return the image files below a folder, sorted; links count even if they lead nowhere, so that this is told."""
    files = (path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    return sorted(path for path in files if not path.name.startswith(".") and (path.is_symlink() or path.is_file()))


def check_files(paths: Iterable[str | Path]) -> None:
    """Read the headers of some files, which takes far less time than decoding them.

    Raises:
        ImageError: some are no images; the message names the first and counts the others.
    """
    errors = [error for path in paths if (error := _header_error(path))]
    if errors:
        raise ImageError(f"{errors[0]}{f' (and {len(errors) - 1} other files)' * (len(errors) > 1)}")


@contextmanager
def opened(path: str | Path) -> Iterator[Image.Image]:
    """Open an image as it is stored, not yet decoded, and let whatever goes wrong with it be an :class:`ImageError`.

    Raises:
        ImageError: as :func:`read_image`; also in place of what the ``with`` block raises.
    """
    try:
        with warnings.catch_warnings():
            # Pillow warns of sizes below ours and of odd metadata; neither is the reader's concern
            warnings.simplefilter("ignore")
            with Image.open(path, formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    size = f"{image.height}x{image.width} pixels"
                    raise ImageError(f"{path}: {size}; allowed: at most {MAX_PIXELS:,}")
                yield image
    except ImageError:
        raise
    except FileNotFoundError:
        raise ImageError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise ImageError(f"{path}: a folder, not an image") from None
    except Image.DecompressionBombError:
        raise ImageError(f"{path}: too many pixels; allowed: at most {MAX_PIXELS:,}") from None
    except UnidentifiedImageError:
        why = "the file is empty" if Path(path).stat().st_size == 0 else "not an image that can be read"
        raise ImageError(f"{path}: {why}") from None
    except Exception as error:  # on damaged files Pillow's readers raise whatever their parsers stumble over
        why = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(f"{path}: cannot be read as an image ({why})") from None


def _header_error(path: str | Path) -> ImageError | None:
    try:
        with opened(path):
            return None
    except ImageError as error:
        return error


def _scaled(values: NDArray, white: float) -> NDArray[np.uint8]:
    """Return deep grey in 8 bits; ``white`` is what white is in whole numbers."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        raise ValueError("no finite value")
    low, high = float(finite.min()), float(finite.max())
    if values.dtype.kind in "iu" and low >= 0 and high <= 65535:
        low, high = 0.0, white
    levels = np.nan_to_num(values.astype(np.float32), nan=low, posinf=high, neginf=low)
    scaled = (levels - low) * (255 / max(high - low, 1e-12))
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
