"""A few other images of the same kind tell what is usual: an anomaly counts as it is unlike all of them.

Not of the paper. The distance d of a patch is 1 − cosine to the most similar patch of a reference, averaged over the
middle stages of the visual tower (the first sees edges, the last sees objects), and over the 30 % of the references
that come closest: nobody has to say which of them are sound, as long as most are. What sound images reach is learned
from the references themselves, each beside the others: with μ and σ the mean and the spread of their highest d, and of
their highest p, p the rough map and x what the image is scored by without references (p, or rarity times it)::

    z(v) = (v − μ) / σ
    distance, mutual:  map and score  σ(z(d))
    combined:          map            σ(z(d) + z(p) / 2)        score  σ(z(d) + z(x) / 4)

σ(z) is a logistic function, 0.5 three spreads above what sound images reach. The weights were chosen on drawn cells
and painted photographs: the map p knows the place better, the distance d whether there is anything at all.

Patches kept without training are PatchCore's idea (Roth et al. 2022, arXiv 2106.08265), references turned and the
nearest patch alone AnomalyDINO's (Damm et al. 2024, arXiv 2405.14529), images that are each other's references, the
manner "mutual", MuSc's (Li et al. 2024, arXiv 2401.16753).
"""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Self, get_args

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

Manner = Literal["distance", "combined", "mutual"]
MANNERS: tuple[Manner, ...] = get_args(Manner)

SHARE = 0.3  # of the references, those that come closest to a patch
MAP_WEIGHT, SCORE_WEIGHT = 1 / 2, 1 / 4  # of what is known without references, beside the distance
LIMIT = 2**30  # bytes of patch tokens
MOST_COMPARED = 32  # references beside the others: enough for a mean and a spread
SURE, SLOPE = 3.0, 2.0  # spreads above what sound images reach, where the logistic function is 0.5, and its width


@dataclass(frozen=True)
class Usual:
    """What sound images reach: mean and spread of their maps' highest values.

    Few references say little of a spread, so that it is drawn to what is common as if two more had that.
    """

    mean: float
    spread: float

    @classmethod
    def of(cls, peaks: Tensor, common: "Usual") -> "Usual":
        """Return what some peaks ``(K,)`` say, beside what is common; that alone without any."""
        if not len(peaks):
            return common
        mean = float(peaks.mean())
        squares = float((peaks - mean).square().sum()) + 2 * common.spread**2
        return cls(mean, (squares / (len(peaks) + 1)) ** 0.5)

    def deviation(self, values: Tensor) -> Tensor:
        """Return z."""
        return (values - self.mean) / self.spread


COMMON_DISTANCE, COMMON_MAP = Usual(0.3, 0.03), Usual(0.3, 0.1)  # of the drawn images, with the embedded model


class Memory:
    """The patch tokens of references.

    Args:
        patches: of every stage, ``(K, C, h, w)`` of K references.
        maps: their rough maps p, ``(K, h, w)``; unset: what is common is taken for them.
        counted: what they are scored by without references, x, ``(K, h, w)``; unset: p.
        manner: "distance", "combined", or "mutual" for references that are the scored images themselves: each leaves
            the one closest to it, itself, out.
        fingerprint: says which images it was made of; calibrations are compared by it.

    Raises:
        ValueError: an unknown manner.
    """

    def __init__(
        self,
        patches: Sequence[Tensor],
        maps: Tensor | None = None,
        counted: Tensor | None = None,
        *,
        manner: Manner = "combined",
        fingerprint: str = "",
    ) -> None:
        if manner not in MANNERS:
            raise ValueError(f"manner={manner!r} is unknown; allowed: {', '.join(MANNERS)}")
        self.stages = [units(stage) for stage in middle(patches)]
        self.manner: Manner = manner
        self.fingerprint = fingerprint
        known = patches[0].new_zeros(0, 1, 1) if maps is None else maps
        self.usual_map = Usual.of(known.amax((1, 2)), COMMON_MAP)
        self.usual_counted = Usual.of((known if counted is None else counted).amax((1, 2)), COMMON_MAP)

    def __len__(self) -> int:
        return len(self.stages[0])

    def seen_as(self, manner: Manner) -> Self:
        """Return the same references in another manner."""
        other = copy(self)
        other.manner = manner
        return other

    def distance(self, patches: Sequence[Tensor]) -> Tensor:
        """Return d, ``(B, H, W)`` in [0, 1], of the patch tokens ``(B, C, H, W)`` of every stage."""
        stages = [units(stage) for stage in middle(patches)]
        self.stages = [known.to(stages[0].device) for known in self.stages]  # it follows the pipeline
        each = torch.stack([self._to_one(stages, number) for number in range(len(self))])  # (K, B, N)
        return closest(each, int(self.manner == "mutual")).unflatten(1, patches[0].shape[-2:])

    @cached_property
    def usual_distance(self) -> Usual:
        """What sound images reach of d: the references, each beside the others."""
        if len(self) < 2:
            return COMMON_DISTANCE
        peaks = []
        for row in range(0, len(self), -(-len(self) // MOST_COMPARED)):
            own = [stage[row : row + 1] for stage in self.stages]
            others = [number for number in range(len(self)) if number != row]
            peaks.append(closest(torch.stack([self._to_one(own, number) for number in others])).max())
        return Usual.of(torch.stack(peaks), COMMON_DISTANCE)

    def seen(self, maps: Tensor, counted: Tensor, patches: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return map and scored map beside the references, ``(B, H, W)`` each in [0, 1].

        Args:
            maps: p, ``(B, H, W)``.
            counted: x, likewise.
            patches: the tokens that they were made of.
        """
        z = self.usual_distance.deviation(self.distance(patches))
        if self.manner != "combined":
            found = probability(z)
            return found, found
        maps = probability(z + MAP_WEIGHT * self.usual_map.deviation(maps))
        return maps, probability(z + SCORE_WEIGHT * self.usual_counted.deviation(counted))

    def _to_one(self, stages: Sequence[Tensor], number: int) -> Tensor:
        """Return the distance ``(B, N)`` to one reference; all at once would take K times the memory."""
        similar = [(own @ known[number].T).amax(-1) for own, known in zip(stages, self.stages)]
        return (1 - torch.stack(similar).mean(0)).clamp(0, 1)


def middle(patches: Sequence[Tensor]) -> Sequence[Tensor]:
    """Return the stages without the first and the last, where there are more than two."""
    return patches[1:-1] if len(patches) > 2 else patches


def closest(each: Tensor, skipped: int = 0) -> Tensor:
    """Return the mean of the distances ``(K, ...)`` to the references that come closest, but the ``skipped`` first."""
    ranked = each.sort(0).values[min(skipped, len(each) - 1) :]
    return ranked[: max(1, round(SHARE * len(ranked)))].mean(0)


def probability(z: Tensor) -> Tensor:
    """Return the logistic function of deviations."""
    return torch.sigmoid((z - SURE) / SLOPE)


def units(patches: Tensor) -> Tensor:
    """Return tokens ``(B, C, H, W)`` as ``(B, H·W, C)`` of length 1."""
    return F.normalize(patches.flatten(2).transpose(1, 2), dim=-1)


def turned(image: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    """Return an image ``(H, W, 3)`` in all of its eight positions: four quarter turns, each mirrored, too."""
    return [np.rot90(side, quarter).copy() for side in (image, image[:, ::-1]) for quarter in range(4)]


def coreset(patches: Sequence[Tensor], count: int) -> list[Tensor]:
    """Return the ``count`` patches of one image that cover the others best, ``(1, C, count, 1)`` of every stage.

    Greedy, as PatchCore's: the next one is the patch that is farthest from all that were taken, in all middle stages.

    Args:
        patches: ``(1, C, h, w)`` of every stage.
        count: fewer than there are patches; else all are kept.
    """
    tokens = torch.cat([units(stage)[0] for stage in middle(patches)], dim=-1)
    if count >= len(tokens):
        return list(patches)
    taken = [0]
    far = torch.full((len(tokens),), torch.inf, device=tokens.device)
    while len(taken) < count:
        far = torch.minimum(far, (tokens - tokens[taken[-1]]).square().sum(-1))
        taken.append(int(far.argmax()))
    return [stage.flatten(2)[..., taken, None] for stage in patches]
