"""Whatever an image file holds, as 8-bit RGB."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def as_rgb(image: Image.Image) -> Image.Image:
    """Return an image in any of Pillow's modes as 8-bit RGB; transparent ones are laid over white.

    Deep grey is divided by 257 if it consists of whole numbers up to 65,535, else stretched from its least to its
    greatest value, for nothing states its range.

    Raises:
        ValueError: floating-point values none of which is finite.
    """
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = Image.fromarray(_eight_bit(np.asarray(image)))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _eight_bit(values: NDArray) -> NDArray[np.uint8]:
    finite = values[np.isfinite(values)]
    if not finite.size:
        raise ValueError("no finite value")
    low, high = float(finite.min()), float(finite.max())
    if values.dtype.kind in "iu" and low >= 0 and high <= 65535:
        low, high = 0.0, 65535.0
    levels = np.nan_to_num(values.astype(np.float32), nan=low, posinf=high, neginf=low)
    scaled = (levels - low) * (255 / max(high - low, 1e-12))
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
