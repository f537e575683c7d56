"""Pictures for files, reports and scores."""

from io import BytesIO
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from frugal_shared.report import grid

SIDE = 96  # pixels that a small picture is enlarged to


def to_bytes(images: Tensor) -> Tensor:
    """Return images ``(B, C, H, W)`` in [0, 1] as uint8."""
    return (images * 255).round().clamp(0, 255).to(torch.uint8)


def picture(image: Tensor) -> Image.Image:
    """Return an image ``(3, H, W)`` in [0, 1] as a picture."""
    return Image.fromarray(to_bytes(image).permute(1, 2, 0).numpy())


def png(picture: Image.Image) -> bytes:
    """Return a picture as the bytes of a PNG file."""
    buffer = BytesIO()
    picture.save(buffer, format="png")
    return buffer.getvalue()


def tiles(images: Tensor, scale: int | None = None) -> Image.Image:
    """Return images ``(B, 3, H, W)``, six in a row, every pixel enlarged by ``scale``; default: small ones a little."""
    return grid(images.permute(0, 2, 3, 1).numpy(), 6, scale or max(1, SIDE // images.shape[-1]))


def caption(row: dict[str, Any]) -> str:
    """Return what a method's pictures cost and how close they are, from its row."""
    fidelity = "" if row["psnr_db"] is None else f", {row['psnr_db']:.1f} dB to the uncached"
    return f"{row['method']}: {row['mac_speedup']:.2f}× fewer MACs{fidelity}."
