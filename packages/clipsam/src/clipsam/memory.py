"""A few other images of the same kind tell what is usual: an anomaly counts as it is unlike all of them.

Not of the paper. The distance d of a patch is 1 − cosine to the most similar patch of a reference, averaged over the
stages of the visual tower, and over the 30 % of the references that come closest: nobody has to say which of them are
sound, as long as most are. The image's score is made of the weighted geometric mean (x · d⁴)^(1/5), where x is what it
is made of without references: the rough map, or rarity times it. The map itself stays.

Patches kept without training are PatchCore's idea (Roth et al. 2022, arXiv 2106.08265), references without labels
MuSc's (Li et al. 2024, arXiv 2401.16753), which takes the test images for it; here they are other images, so that an
image's score does not depend on the images beside it.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

SHARE = 0.3  # of the references, those that come closest to a patch
WEIGHT = 4  # of d beside x


class Memory:
    """The patch tokens of references.

    Args:
        patches: of every stage, ``(K, C, h, w)`` of K references.
    """

    def __init__(self, patches: Sequence[Tensor]) -> None:
        self.stages = [units(stage) for stage in patches]

    def __len__(self) -> int:
        return len(self.stages[0])

    def distance(self, patches: Sequence[Tensor]) -> Tensor:
        """Return d, ``(B, H, W)`` in [0, 1], of the patch tokens ``(B, C, H, W)`` of every stage."""
        stages = [units(stage) for stage in patches]
        each = torch.stack([self._to_one(stages, number) for number in range(len(self))])  # (K, B, N)
        closest = each.sort(0).values[: max(1, round(SHARE * len(self)))].mean(0)
        return closest.clamp(0, 1).unflatten(1, patches[0].shape[-2:])

    def weighted(self, maps: Tensor, patches: Sequence[Tensor]) -> Tensor:
        """Return (x · d⁴)^(1/5), ``(B, H, W)`` in [0, 1], of maps x and the patch tokens they were made of."""
        return (maps * self.distance(patches) ** WEIGHT) ** (1 / (1 + WEIGHT))

    def _to_one(self, stages: Sequence[Tensor], number: int) -> Tensor:
        """Return the distance ``(B, N)`` to one reference; all at once would take K times the memory."""
        similar = [(own @ known[number].T).amax(-1) for own, known in zip(stages, self.stages)]
        return 1 - torch.stack(similar).mean(0)


def units(patches: Tensor) -> Tensor:
    """Return tokens ``(B, C, H, W)`` as ``(B, H·W, C)`` of length 1."""
    return F.normalize(patches.flatten(2).transpose(1, 2), dim=-1)
