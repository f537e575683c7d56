"""How rare a patch is in its own image: what a whole surface consists of, such as grain, is not its damage.

Not of the paper. The rarity r of a patch is its distance, 1 − cosine, to the 5 % of the image's patches that are most
like it, averaged over these and over the stages of the visual tower. The image's score is made of p · r, where p is
the rough map; the map itself stays p, because few of the pixels of a large defect are rare.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

SHARE = 0.05  # of the image's patches


def patch_rarity(patches: Sequence[Tensor]) -> Tensor:
    """Return r, ``(B, H, W)`` in [0, 1], of the patch tokens ``(B, C, H, W)`` of every stage."""
    return torch.stack([stage_rarity(stage) for stage in patches]).mean(0)


def stage_rarity(patches: Tensor) -> Tensor:
    """Return 1 − the mean cosine of each patch and its most similar others, ``(B, H, W)``, of one stage's tokens."""
    tokens = F.normalize(patches.flatten(2), dim=1)  # (B, C, N)
    similarity = torch.einsum("bcn,bcm->bnm", tokens, tokens)
    similarity.masked_fill_(torch.eye(tokens.shape[-1], dtype=torch.bool, device=tokens.device), -1)  # but for itself
    count = min(max(1, round(SHARE * tokens.shape[-1])), max(1, tokens.shape[-1] - 1))
    nearest = similarity.topk(count, dim=-1).values.mean(-1)
    return (1 - nearest).clamp(0, 1).unflatten(1, patches.shape[-2:])


def by_rarity(rough: Tensor, patches: Sequence[Tensor]) -> Tensor:
    """Return p · r, ``(B, H, W)`` in [0, 1], of rough maps p and the tokens they were made of."""
    return rough * patch_rarity(patches)
