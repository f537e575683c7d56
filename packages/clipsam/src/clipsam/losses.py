"""The training loss (ClipSAM, arXiv 2401.12665, §3): focal and Dice loss on the logits of every stage."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

STAGE_WEIGHTS = (0.1, 0.1, 0.1, 0.7)
"""λ of the four stages: recalled from the paper, not verified."""


def focal_loss(logits: Tensor, mask: Tensor, gamma: float = 2.0) -> Tensor:
    """−(1 − p_t)^γ log p_t, the mean over pixels (Lin et al., arXiv 1708.02002, without α).

    Args:
        logits: ``(B, 2, H, W)``: normal, abnormal.
        mask: ``(B, H, W)``, 0 or 1.
        gamma: γ; larger looks more at the pixels that are wrong.
    """
    log_p = F.log_softmax(logits, dim=1).gather(1, mask.long()[:, None])[:, 0]
    return (-((1 - log_p.exp()) ** gamma) * log_p).mean()


def dice_loss(logits: Tensor, mask: Tensor, smooth: float = 1.0) -> Tensor:
    """1 − (2 Σ p g + s) / (Σ p + Σ g + s), the mean over images, of the probability p of "abnormal".

    Args:
        logits: ``(B, 2, H, W)``.
        mask: g, ``(B, H, W)``, 0 or 1.
        smooth: s, in pixels; keeps the loss of an image without anomaly finite.
    """
    p, g = logits.softmax(1)[:, 1].flatten(1), mask.to(logits.dtype).flatten(1)
    return (1 - (2 * (p * g).sum(1) + smooth) / (p.sum(1) + g.sum(1) + smooth)).mean()


def stage_loss(stages: Sequence[Tensor], mask: Tensor, weights: Sequence[float] = STAGE_WEIGHTS) -> Tensor:
    """Σ_i λ_i (focal(S_i, g) + dice(S_i, g)), with every stage's logits upsampled to the mask.

    Args:
        stages: S_i, each ``(B, 2, h, w)``.
        mask: g, ``(B, H, W)``, 0 or 1.
        weights: λ_i, one per stage.

    Raises:
        ValueError: another number of weights than stages.
    """
    if len(stages) != len(weights):
        raise ValueError(f"weights={tuple(weights)!r} for {len(stages)} stages; allowed: one for each")
    large = [F.interpolate(s, mask.shape[-2:], mode="bilinear", align_corners=False) for s in stages]
    return torch.stack([w * (focal_loss(s, mask) + dice_loss(s, mask)) for w, s in zip(weights, large)]).sum()
