"""How near pictures are to those that they should be: tensors only."""

from torch import Tensor

IDENTICAL_DB = 100.0
"""What two identical images count as: their PSNR is infinite and has no mean."""


def psnr(images: Tensor, reference: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio of each image to its reference.

    Args:
        images: ``(B, ...)``, pixels in [0, 1] or what stands in for them.
        reference: of the same shape.

    Returns:
        ``(B,)`` in dB; identical images count as :data:`IDENTICAL_DB`.
    """
    error = (images.double() - reference.double()).square().mean(tuple(range(1, images.ndim)))
    return (-10 * error.log10()).clamp(max=IDENTICAL_DB)


def relative_l1(latents: Tensor, reference: Tensor) -> Tensor:
    """Return ‖x − x_ref‖₁ / ‖x_ref‖₁ per sample, ``(B,)``."""
    return (latents - reference).abs().flatten(1).sum(1) / reference.abs().flatten(1).sum(1)
