"""MMR, Multi-level Mask Refinement (ClipSAM, arXiv 2401.12665, Fig. 2): SAM sharpens a rough anomaly map.

::

    rough map O → threshold → connected components → a box and k points each → SAM → masks M_qj with scores s_qj
    paper:  final = norm(O + Σ_q Σ_j s_qj M_qj)
    soft:   final = (1 − w) O + w T,  near the components; O elsewhere

``refine`` takes anyone's map: of PatchCore, of anomalib, of ClipSAM's own UMCI.

"paper" is the figure taken literally, its norm a min-max per image. That lifts the highest score of *every* image to
1, so images can no longer be compared, and an object's whole mask counts as much as the defect's. "soft", the default,
is this package's: T and w follow from how well SAM's masks agree with the component that asked for them, the result
stays between O and the component's own peak, and a map without components comes back bit for bit. Of a large image it
shows SAM the surroundings of the components, not the whole, in which a small defect would be no larger than a pixel.
"""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from torch import Tensor

from clipsam.map_scale import MapScale, as_map
from clipsam.promptable import Prompts, Segmenter

Mode = Literal["soft", "paper"]

EIGHT_CONNECTED = np.ones((3, 3), int)
BAND = 0.04  # of the image's side: how far around a component its masks may change the map
CONTEXT = 4  # sides of a component's box that SAM sees of a large image
LEAST = 128  # pixels of a large image that SAM sees, at least


@dataclass(frozen=True)
class MMRConfig:
    """Options of the refinement.

    Args:
        mode: "soft", or "paper" for the figure taken literally.
        threshold: on the rough map, in (0, 1); lower prompts more often and finds fainter anomalies.
        points: k, positive points in each component.
        weight: w in [0, 1], how much a mask that agrees perfectly replaces the rough map ("soft").
        max_components: of the components, those with the highest score are used.
        min_area: pixels of the image below which a component is a speck.
        max_area: share of the image above which a component is no object to ask SAM for.
        seed: of the random points.
        whole: longest side in pixels of an image that SAM sees as a whole; of larger ones it sees what is around the
            components ("soft").

    Raises:
        ValueError: a value that is not possible.
    """

    mode: Mode = "soft"
    threshold: float = 0.5
    points: int = 5
    weight: float = 0.7
    max_components: int = 16
    min_area: int = 4
    max_area: float = 0.5
    seed: int = 0
    whole: int = 1536

    def __post_init__(self) -> None:
        """Check the values."""
        if self.mode not in get_args(Mode):
            raise ValueError(f"mode={self.mode!r} is unknown; allowed: {', '.join(get_args(Mode))}")
        if not 0 < self.threshold < 1:
            raise ValueError(f"threshold={self.threshold!r} is not possible; allowed: between 0 and 1")
        if not 0 <= self.weight <= 1:
            raise ValueError(f"weight={self.weight!r} is not possible; allowed: 0 to 1")
        if self.points < 1 or self.max_components < 1:
            raise ValueError(f"points={self.points!r}, max_components={self.max_components!r}; allowed: 1 or more")
        if not isinstance(self.min_area, int) or self.min_area < 0:
            raise ValueError(f"min_area={self.min_area!r} is not possible; allowed: a number of pixels, 0 or more")
        if not 0 < self.max_area <= 1:
            raise ValueError(f"max_area={self.max_area!r} is not possible; allowed: a share above 0, at most 1")
        if self.whole < 1:
            raise ValueError(f"whole={self.whole!r} is not possible; allowed: 1 or more")


@dataclass(frozen=True)
class CutOff:
    """How many components above the threshold SAM was not asked about, by the option that says so."""

    min_area: int = 0
    max_area: int = 0
    max_components: int = 0

    def __str__(self) -> str:
        """Tell what was left out, or nothing."""
        return ", ".join(f"{count} by {option}" for option, count in asdict(self).items() if count)


Component = tuple[tuple[slice, slice], NDArray[np.bool_]]
"""Where a component lies (rows, columns), and which pixels of that window are its."""


@dataclass(frozen=True, eq=False)
class Refinement:
    """A refined map, and what led to it.

    Args:
        anomaly_map: ``(H, W)`` float32 in [0, 1].
        boxes: ``(K, 4)``, x₀ y₀ x₁ y₁ in pixels, ends exclusive: one for each component, the highest score first.
        points: ``(K, k, 2)``, x y in pixels.
        masks: ``(K, H, W)`` bool, SAM's best mask of each component.
        scores: ``(K,)``, SAM's score of that mask × its agreement with the component, in [0, 1].
        cut_off: how many components SAM was not asked about.
    """

    anomaly_map: NDArray[np.float32]
    boxes: NDArray[np.float32]
    points: NDArray[np.float32]
    masks: NDArray[np.bool_]
    scores: NDArray[np.float32]
    cut_off: CutOff = field(default_factory=CutOff)


def refine(
    image: NDArray[np.uint8],
    anomaly_map: ArrayLike,
    segmenter: Segmenter,
    config: MMRConfig | None = None,
    *,
    scale: MapScale | None = None,
) -> Refinement:
    """Refine any anomaly map with a promptable segmenter.

    Args:
        image: ``(H, W, 3)`` RGB in 0..255.
        anomaly_map: O, ``(H, W)`` in [0, 1] on one scale for all images; also of another size, with an axis in front
            as anomalib's ``(1, h, w)``, or of raw distances with their scale.
        segmenter: e.g. :class:`~clipsam.sam.SamSegmenter`; not run if nothing exceeds the threshold.
        config: options.
        scale: of distances, the same for all images: given, or :meth:`~clipsam.map_scale.MapScale.calibrated`.

    Raises:
        ValueError: an image or a map of another shape, or scores that are not numbers in [0, 1].
    """
    config = config or MMRConfig()
    check(image)
    rough = as_map(anomaly_map, image.shape[:2], scale)
    components, cut_off = find_components(rough, config)
    masks, scores = np.zeros((len(components), *rough.shape), bool), np.zeros(len(components), np.float32)
    if not components:
        none = np.zeros((0, 4), np.float32)
        return Refinement(rough, none, np.zeros((0, config.points, 2), np.float32), masks, scores, cut_off)
    boxes = torch.tensor([[x.start, y.start, x.stop, y.stop] for (y, x), _ in components], dtype=torch.float32)
    points = choose_points(rough, components, config, image)
    final = torch.tensor(rough)
    for (y, x), members in regions(components, rough.shape, config):
        corner = torch.tensor([x.start, y.start], dtype=torch.float32)
        own = [moved(components[number], y.start, x.start) for number in members]
        prompts = both_ways(boxes[members] - corner.repeat(2), points[members] - corner)
        final[y, x], found, scores[members] = refine_region(image[y, x], final[y, x], own, prompts, segmenter, config)
        for number, mask in zip(members, found):
            masks[number, y, x] = mask
    return Refinement(final.numpy(), boxes.numpy(), points.numpy(), masks, scores, cut_off)


def refine_region(
    image: NDArray[np.uint8],
    rough: Tensor,
    components: list[Component],
    prompts: Prompts,
    segmenter: Segmenter,
    config: MMRConfig,
) -> tuple[Tensor, Iterator[NDArray[np.bool_]], NDArray[np.float32]]:
    """Return the refined map ``(h, w)`` of an image or a part of it, its K masks ``(h, w)`` and their scores.

    One mask at a time: all of a large image's at once would take gigabytes.
    """
    embedding = segmenter.embed(image)
    logits, scores = segmenter.decode(embedding, prompts)
    levels, scores = by_component(logits), by_component(scores)  # (K, 2M, h, w) and (K, 2M)
    inside = torch.stack([to_grid(region(component, rough.shape), levels.shape[-2:]) for component in components])
    agreement = intersection_over_union(levels > 0, inside[:, None] > 0.5)  # (K, 2M)
    combine = literal if config.mode == "paper" else soft
    final = combine(rough, levels, scores, agreement, inside, config)
    trust, best = (scores * agreement).max(1)
    chosen = levels[torch.arange(len(levels)), best]
    masks = ((to_image(level, rough.shape) > 0).numpy() for level in chosen)
    return final, masks, trust.numpy()


def check(image: NDArray[np.uint8]) -> None:
    """Refuse what is no image."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"an image of shape {image.shape} and {image.dtype}; allowed: (H, W, 3) and uint8")


def find_components(rough: NDArray[np.float32], config: MMRConfig) -> tuple[list[Component], CutOff]:
    """Return the connected components above the threshold, those with the highest score first, and what is left out.

    Not those with the largest sum of scores: in a large image any wide, faint area has more of it than a small defect.
    """
    labels, count = ndimage.label(rough > config.threshold, EIGHT_CONNECTED)  # pyright: ignore[reportGeneralTypeIssues]
    areas = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    peaks = ndimage.maximum(rough, labels, np.arange(1, count + 1))
    small, large = areas < config.min_area, areas > config.max_area * rough.size
    ranked = sorted(np.flatnonzero(~small & ~large), key=lambda index: -peaks[index])
    kept = ranked[: config.max_components]
    windows = ndimage.find_objects(labels)
    cut_off = CutOff(int(small.sum()), int(large.sum()), len(ranked) - len(kept))
    return [(windows[index], labels[windows[index]] == index + 1) for index in kept], cut_off


def regions(
    components: list[Component], shape: tuple[int, ...], config: MMRConfig
) -> Iterator[tuple[tuple[slice, slice], list[int]]]:
    """Yield the parts of an image that SAM sees, and the numbers of the components that it is asked about there.

    A component that lies in the middle half of an earlier one's part needs none of its own.
    """
    if max(shape) <= config.whole or config.mode == "paper":
        yield (slice(0, shape[0]), slice(0, shape[1])), list(range(len(components)))
        return
    left = list(range(len(components)))
    while left:
        box = components[left[0]][0]
        side = max(LEAST, CONTEXT * max(part.stop - part.start for part in box))
        members = [number for number in left if within(components[number][0], around(box, side // 2, shape))]
        left = [number for number in left if number not in members]
        yield around(box, side, shape), members


def around(box: tuple[slice, slice], side: int, shape: tuple[int, ...]) -> tuple[slice, slice]:
    """Return a square of an image around a box, cut off or moved where the image ends."""
    starts = (max(0, min((part.start + part.stop - side) // 2, end - side)) for part, end in zip(box, shape))
    y, x = (slice(start, min(start + side, end)) for start, end in zip(starts, shape))
    return y, x


def within(box: tuple[slice, slice], window: tuple[slice, slice]) -> bool:
    """Return whether a box lies in a window."""
    return all(outer.start <= inner.start and inner.stop <= outer.stop for inner, outer in zip(box, window))


def moved(component: Component, top: int, left: int) -> Component:
    """Return a component as it lies in a part of the image that begins at a row and a column."""
    (y, x), pixels = component
    return (slice(y.start - top, y.stop - top), slice(x.start - left, x.stop - left)), pixels


def choose_points(
    rough: NDArray[np.float32], components: list[Component], config: MMRConfig, image: NDArray[np.uint8]
) -> Tensor:
    """Return k random points in every component, ``(K, k, 2)``; in "soft" mode likelier where the map is higher.

    They follow from the seed and the image alone, not from the order in which images come.
    """
    random = np.random.default_rng([config.seed, zlib.crc32(np.ascontiguousarray(image).tobytes())])
    chosen = []
    for (y, x), pixels in components:
        rows, columns = np.nonzero(pixels)
        chance = np.ones(len(rows)) if config.mode == "paper" else rough[y, x][pixels].astype(float) ** 4
        at = random.choice(len(rows), config.points, p=chance / chance.sum())
        chosen.append(np.stack([columns[at] + x.start, rows[at] + y.start], axis=-1) + 0.5)  # centres of pixels
    return torch.from_numpy(np.array(chosen, np.float32))


def both_ways(boxes: Tensor, points: Tensor) -> Prompts:
    """Return 2K prompts: every box alone, then every box with its points."""
    labels = torch.ones(points.shape[:2])
    return Prompts(boxes.repeat(2, 1), points.repeat(2, 1, 1), torch.cat([-labels, labels]))


def by_component(values: Tensor) -> Tensor:
    """Bring what 2K prompts gave, ``(2K, M, ...)``, into the order of the components, ``(K, 2M, ...)``."""
    first, second = values.chunk(2)
    return torch.cat([first, second], dim=1)


def region(component: Component, shape: tuple[int, ...]) -> Tensor:
    """Return a component as a mask of the whole image, ``(H, W)`` float32."""
    (y, x), pixels = component
    mask = torch.zeros(shape)
    mask[y, x] = torch.from_numpy(pixels).float()
    return mask


def to_grid(values: Tensor, size: Sequence[int]) -> Tensor:
    """Bring values ``(H, W)`` on the image to the segmenter's small grid, ``(h, w)``."""
    [[small]] = F.interpolate(values[None, None], tuple(size), mode="bilinear", align_corners=False, antialias=True)
    return small


def to_image(values: Tensor, size: Sequence[int]) -> Tensor:
    """Enlarge values ``(K, h, w)`` or ``(h, w)`` on the small grid to the image, ``(..., H, W)``."""
    stack = values.reshape(-1, 1, *values.shape[-2:])
    large = F.interpolate(stack, tuple(size), mode="bilinear", align_corners=False)
    return large.reshape(*values.shape[:-2], *size)


def intersection_over_union(masks: Tensor, targets: Tensor) -> Tensor:
    """Return the IoU of bool masks with targets, both ``(..., h, w)``; of two empty ones 0."""
    return (masks & targets).sum((-2, -1)) / (masks | targets).sum((-2, -1)).clamp(min=1)


def soft(
    rough: Tensor,
    levels: Tensor,
    scores: Tensor,
    agreement: Tensor,
    inside: Tensor,
    config: MMRConfig,
) -> Tensor:
    """Return (1 − W) O + W T.

    With a_qj = s_qj · IoU(M_qj, component) and p the component's highest score, near the component::

        T = p · Σ_j a_qj² M_qj / Σ_j a_qj²        W = w · max_j a_qj

    Squares let the levels that fit speak; a mask of the whole object has a small IoU and hardly counts, and where no
    level fits W is small. T and W are formed on the segmenter's small grid and enlarged once.
    """
    a = scores * agreement  # (K, 2M)
    masks = (levels.sigmoid() * a.square()[..., None, None]).sum(1)
    masks = masks / a.square().sum(1).clamp(min=1e-12)[:, None, None]
    small = to_grid(rough, levels.shape[-2:])
    peak = (small * (inside > 0)).amax((1, 2))  # (K,)
    near = torch.from_numpy(np.stack([spread(mask) for mask in (inside > 0).numpy()]))
    trust = config.weight * a.amax(1)[:, None, None] * near  # (K, h, w)
    target = (trust * peak[:, None, None] * masks).sum(0) / trust.sum(0).clamp(min=1e-12)
    weight, target = to_image(torch.stack([trust.amax(0), target]), rough.shape).clamp(0, 1)
    return (1 - weight) * rough + weight * target


def spread(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return 1 on a mask ``(h, w)`` and around it, falling to 0 within twice the band."""
    band = BAND * max(mask.shape)
    distance = ndimage.distance_transform_edt(~mask)
    return np.clip(2 - np.asarray(distance) / band, 0, 1).astype(np.float32)


def literal(
    rough: Tensor,
    levels: Tensor,
    scores: Tensor,
    agreement: Tensor,
    inside: Tensor,
    config: MMRConfig,
) -> Tensor:
    """Return norm(O + Σ_q Σ_j s_qj M_qj), norm a min-max of the image."""
    masks = ((levels > 0) * scores[..., None, None]).sum((0, 1))
    total = rough + to_image(masks, rough.shape)
    return (total - total.min()) / (total.max() - total.min()).clamp(min=1e-12)
