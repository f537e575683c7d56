"""The recipe of the embedded SAM: prompt encoder and mask decoder on a frozen visual tower.

As Segment Anything was trained (arXiv 2304.02643, §3 and appendix A): prompts are made from masks, boxes with jitter
and points; three masks answer each prompt, and only the best one's loss counts, so that they become levels; a head
learns to say how good each is. The prompts are like those that MMR makes of rough maps: boxes that are too large and
shifted, points of which some miss. What a box asks for is all that is damaged inside it.
"""

import copy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import save
from scipy import ndimage
from segment_anything.modeling import Sam
from torch import Tensor, nn

from clipsam.data.features import Features, compute_features
from clipsam.data.procedural import HELD_OUT_CATEGORIES, Procedural
from clipsam.data.sources import PAINTED, PROCEDURAL, VAL_SEED, training_data
from clipsam.embedded.dinov2 import (
    SAM_WEIGHTS,
    DinoEncoder,
    build_clip,
    build_sam,
    frozen_backbone,
    trained_sam_part,
)
from clipsam.embedded.fitting import fit
from clipsam.metrics import EIGHT_CONNECTED
from clipsam.mmr import intersection_over_union, to_image
from clipsam.promptable import Prompts
from clipsam.sam import SamSegmenter
from clipsam.samples import AnomalyData
from frugal_shared.checkpoint import write_bytes
from frugal_shared.run import Run
from frugal_shared.training import share

CHECKED = 120  # images of each check, a prompt each
PROMPTS = 4  # of an image and step
POINTS = 5  # of a prompt, at most
MISSES = 0.1  # share of points anywhere in the box
POINTS_ONLY = 0.25  # share of images asked by points without a box
LEAST_AREA = 8  # pixels of the smallest region that is asked for
FOCAL_WEIGHT = 20.0


def train_sam(
    run: Run,
    *,
    images: int,
    val_images: int,
    features: Path | None,
    steps: int,
    batch_size: int,
    learning_rate: float,
    save_every: int,
    seed: int,
) -> dict[str, float]:
    """Train, and save ``sam.safetensors`` in fp16 in the run's folder.

    Args:
        run: started with ``unused_parameters``, because a batch may hold points alone.
        images: how many drawn images to train on.
        val_images: how many to validate on.
        features: folder that keeps the tower's features; unset: "features" in the run's.
        steps: of the optimizer.
        batch_size: images per step, each with several prompts, on all processes together.
        learning_rate: peak of the cosine, after the warm-up.
        save_every: steps between checkpoints.
        seed: every random number follows from it.

    Returns:
        What :func:`mean_ious` says of validation images and, as ``held_out_…``, of categories never seen.
    """
    train_data, val_data = training_data((PROCEDURAL, PAINTED), images, val_images, seed)
    torch.manual_seed(seed)
    model = Prompted(build_sam()).to(run.accelerator.device)
    tower, folder = frozen_backbone(build_clip()), features or run.folder / "features"
    source = Source(train_data, compute_features(folder, tower, train_data, run, "train"), model.sam)
    damaged = np.array([row for row, entry in enumerate(train_data.entries) if entry.is_anomalous])

    def loss(model: nn.Module, step: int) -> Tensor:
        rows = share(run.accelerator, np.random.default_rng([seed, step]).choice(damaged, batch_size))
        logits, scores, targets = model(*source.batch(rows, seed, step))
        return mask_loss(logits, scores, targets)

    course = {"steps": steps, "learning_rate": learning_rate, "save_every": save_every}
    validated = fit(run, model, loss, lambda _: mean_ious(model.sam, val_data), **course)
    halves = {name: value.half().contiguous() for name, value in trained_sam_part(model.sam).items()}
    if run.accelerator.is_main_process:
        write_bytes(run.folder / SAM_WEIGHTS, save(halves))
    unseen = Procedural(2 * CHECKED, HELD_OUT_CATEGORIES, seed=seed + VAL_SEED)
    held_out = {f"held_out_{name}": value for name, value in mean_ious(model.sam, unseen).items()}
    return {"parameters": sum(value.numel() for value in halves.values()), **validated, **held_out}


@dataclass(frozen=True, eq=False)
class Asked:
    """Prompts on one image, in pixels, and what they ask for.

    Args:
        prompts: Q of them.
        targets: ``(Q, S, S)`` float32, 0 or 1.
    """

    prompts: Prompts
    targets: Tensor


class Prompted(nn.Module):
    """The SAM as something to train: images and prompts in, masks on the small square with their targets out."""

    def __init__(self, sam: Sam) -> None:
        super().__init__()
        self.sam = sam

    def forward(self, images: Tensor, tokens: Tensor, asked: list[Asked]) -> tuple[Tensor, Tensor, Tensor]:
        """Return mask logits ``(Σ Q, 3, h, w)``, predicted IoUs ``(Σ Q, 3)`` and targets ``(Σ Q, h, w)``.

        Args:
            images: ``(B, 3, S, S)``, normalised.
            tokens: ``(B, stages · C, h, w)``, of the frozen tower.
            asked: B times prompts.
        """
        encoder: DinoEncoder = self.sam.image_encoder  # pyright: ignore[reportAssignmentType]
        found = [self.decode(one[None], ask.prompts) for one, ask in zip(encoder.combine(images, tokens), asked)]
        logits, scores = (torch.cat(part) for part in zip(*found))
        targets = torch.cat([ask.targets for ask in asked]).to(logits.device)
        scale = targets.shape[-1] // logits.shape[-1]
        return logits, scores, (F.avg_pool2d(targets, scale) >= 0.5).float()

    def decode(self, embedding: Tensor, prompts: Prompts) -> tuple[Tensor, Tensor]:
        """Return mask logits ``(Q, 3, h, w)`` and predicted IoUs ``(Q, 3)`` for an embedding ``(1, C, g, g)``."""
        device = embedding.device
        points = None
        if prompts.points is not None and prompts.labels is not None:
            points = prompts.points.to(device), prompts.labels.to(device)
        boxes = None if prompts.boxes is None else prompts.boxes.to(device)
        sparse, dense = self.sam.prompt_encoder(points=points, boxes=boxes, masks=None)
        return self.sam.mask_decoder(embedding, self.sam.prompt_encoder.get_dense_pe(), sparse, dense, True)


def mask_loss(logits: Tensor, scores: Tensor, targets: Tensor) -> Tensor:
    """Return min over levels of (20 focal + dice) + the squared error of the predicted IoUs, the mean over prompts.

    Args:
        logits: ``(Q, 3, h, w)``.
        scores: ``(Q, 3)``, predicted IoUs.
        targets: ``(Q, h, w)``, 0 or 1.
    """
    wanted = targets[:, None].expand_as(logits)
    p = logits.sigmoid()
    wrong = (p - wanted).abs()  # 1 − p_t
    focal = (wrong.square() * F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")).mean((2, 3))
    dice = 1 - (2 * (p * wanted).sum((2, 3)) + 1) / (p.sum((2, 3)) + wanted.sum((2, 3)) + 1)
    found = logits.detach() > 0
    overlap = intersection_over_union(found, wanted > 0.5)
    return (FOCAL_WEIGHT * focal + dice).amin(1).mean() + (scores - overlap).square().mean()


@dataclass(frozen=True, eq=False)
class Source:
    """Images with cached features, and prompts for them."""

    data: AnomalyData
    features: Features
    sam: Sam

    def batch(self, rows: NDArray, seed: int, step: int) -> tuple[Tensor, Tensor, list[Asked]]:
        """Return images ``(B, 3, S, S)``, tokens ``(B, stages · C, h, w)``, and prompts."""
        samples = [self.data[int(row)] for row in rows]
        images = torch.stack([torch.from_numpy(sample.image).permute(2, 0, 1).float() for sample in samples])
        stages, _ = self.features.batch(rows)
        device = self.sam.device
        asked = [ask(sample.mask, np.random.default_rng([seed, step, int(row)])) for sample, row in zip(samples, rows)]
        return self.sam.preprocess(images.to(device)), torch.cat(stages, dim=1).to(device), asked


def ask(mask: NDArray[np.bool_], random: np.random.Generator, count: int = PROMPTS) -> Asked:
    """Return random prompts for a mask ``(S, S)`` with something in it."""
    regions = find_regions(mask)
    chosen = [regions[random.integers(len(regions))] for _ in range(count)]
    boxes = np.stack([jittered(region, random) for region in chosen])
    inside = np.stack([within(mask, box) for box in boxes])
    targets = torch.from_numpy(inside.astype(np.float32))
    points = np.stack([sprinkled(target, box, random) for target, box in zip(inside, boxes)])
    if random.random() < POINTS_ONLY:
        used = int(random.integers(1, POINTS + 1))
        points = np.stack([sprinkled(region, box, random) for region, box in zip(chosen, boxes)])
        prompts = Prompts(None, torch.from_numpy(points[:, :used]), torch.ones(count, used))
        return Asked(prompts, torch.from_numpy(np.stack(chosen).astype(np.float32)))
    labels = torch.ones(count, POINTS)
    labels[torch.from_numpy(random.random(count) < 0.5)] = -1  # every other box is alone
    return Asked(Prompts(torch.from_numpy(boxes), torch.from_numpy(points), labels), targets)


def find_regions(mask: NDArray[np.bool_]) -> list[NDArray[np.bool_]]:
    """Return the connected regions of a mask without its specks, and the mask as a whole."""
    labels, count = ndimage.label(mask, EIGHT_CONNECTED)  # pyright: ignore[reportGeneralTypeIssues]
    regions = [labels == number for number in range(1, count + 1)]
    return [region for region in regions if region.sum() >= LEAST_AREA] + [mask]


def box_of(region: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return a region's box, x₀ y₀ x₁ y₁, ends exclusive."""
    rows, columns = np.flatnonzero(region.any(1)), np.flatnonzero(region.any(0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float32)


def jittered(region: NDArray[np.bool_], random: np.random.Generator) -> NDArray[np.float32]:
    """Return a region's box, sometimes tight, sometimes as loose as a rough map's."""
    box = box_of(region)
    size = np.tile(box[2:] - box[:2], 2)
    side = max(region.shape)
    slack = random.uniform(0, 0.06) * side + random.uniform(0, 0.3) * size
    outwards = np.array([-1, -1, 1, 1]) * random.uniform(-0.2, 1, 4)
    return np.clip(box + outwards * slack, 0, side).astype(np.float32)


def within(mask: NDArray[np.bool_], box: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return what of a mask lies in a box."""
    x0, y0, x1, y1 = np.round(box).astype(int)
    inside = np.zeros_like(mask)
    inside[y0:y1, x0:x1] = mask[y0:y1, x0:x1]
    return inside


def sprinkled(target: NDArray[np.bool_], box: NDArray[np.float32], random: np.random.Generator) -> NDArray[np.float32]:
    """Return random points in a target, ``(5, 2)``, x y; some anywhere in the box."""
    rows, columns = np.nonzero(target) if target.any() else (np.array([box[1]]), np.array([box[0]]))
    at = random.integers(len(rows), size=POINTS)
    points = np.stack([columns[at], rows[at]], axis=-1) + 0.5
    missing = random.random(POINTS) < MISSES
    points[missing] = random.uniform(box[:2], box[2:], (POINTS, 2))[missing]
    return points.astype(np.float32)


@torch.no_grad()
def mean_ious(sam: Sam, data: AnomalyData) -> dict[str, float]:
    """Return the mean IoU, on damaged images, of what one point, a tight box and a loose one are answered.

    Of the three masks the one that the model itself scores highest, as in use; ``_best``: the best one.
    """
    segmenter = SamSegmenter(copy.deepcopy(sam))  # which freezes what it is given
    rows = [row for row, entry in enumerate(data.entries) if entry.is_anomalous][:CHECKED]
    overlaps: dict[str, list[float]] = {}
    for row in rows:
        sample, random = data[row], np.random.default_rng(row)
        embedding = segmenter.embed(sample.image)
        region = find_regions(sample.mask)[0]
        boxes = {"box": box_of(region), "loose_box": jittered(region, random)}
        point = torch.from_numpy(sprinkled(region, boxes["box"], random)[None, :1])
        asked = {name: (Prompts(torch.from_numpy(box[None])), within(sample.mask, box)) for name, box in boxes.items()}
        asked["point"] = Prompts(None, point, torch.ones(1, 1)), region
        for name, (prompts, target) in asked.items():
            logits, scores = segmenter.decode(embedding, prompts)
            masks = to_image(logits, sample.image.shape[:2])[0] > 0
            found = intersection_over_union(masks, torch.from_numpy(target)[None])
            overlaps.setdefault(f"{name}_iou", []).append(float(found[scores[0].argmax()]))
            overlaps.setdefault(f"{name}_best_iou", []).append(float(found.max()))
    return {name: float(np.mean(values)) for name, values in overlaps.items()}
