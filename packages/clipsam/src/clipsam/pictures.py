"""An image with what was found in it, to look at; needs matplotlib for the colours of heat."""

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

HEAT = 0.6  # share of the heat in an overlay where the map is 1
OUTLINE, BOX = (0, 255, 255), (255, 255, 255)
THICKNESS = 1 / 200  # of lines in an overlay, as a share of its longer side


def overlay(
    image: NDArray[np.uint8],
    anomaly_map: NDArray[np.float32],
    mask: NDArray[np.bool_],
    boxes: NDArray[np.float32] | None = None,
) -> Image.Image:
    """Return an image with its map as heat, the outline of a mask in cyan, and boxes in white.

    Args:
        image: ``(H, W, 3)`` uint8.
        anomaly_map: ``(H, W)`` in [0, 1].
        mask: ``(H, W)``.
        boxes: ``(K, 4)``, x₀ y₀ x₁ y₁, ends exclusive.
    """
    levels = np.rint(anomaly_map * 255).astype(np.uint8)
    heat = Image.fromarray(matplotlib.colormaps["inferno"](levels, bytes=True)[..., :3].copy())
    picture = Image.composite(heat, Image.fromarray(image), Image.fromarray((levels * HEAT).astype(np.uint8)))
    thickness = max(1, round(THICKNESS * max(mask.shape)))
    inside = np.asarray(ndimage.binary_erosion(mask, iterations=thickness), bool)
    picture.paste(OUTLINE, mask=Image.fromarray(mask & ~inside))
    draw = ImageDraw.Draw(picture)
    for left, top, right, bottom in () if boxes is None else boxes.tolist():
        draw.rectangle((left, top, right - 1, bottom - 1), outline=BOX, width=thickness)
    return picture
