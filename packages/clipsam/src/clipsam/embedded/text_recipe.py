"""The recipe of the embedded CLIP's text tower, trained against the frozen visual tower.

Locked-image tuning (Zhai et al., arXiv 2111.07991) on regions instead of images, because it is regions that the
anomaly map asks about: a defect, a window of sound surface, the whole image; each with a caption. Two losses::

    contrast  every region finds its caption among the batch's, and every caption its region; captions of the same
              category and defect count as right, too
    state     every region finds "normal" or "abnormal" of its own category, averaged over sentences as in use
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from open_clip import CustomTextCLIP
from safetensors.torch import save
from torch import Tensor, nn

from clipsam.data.captions import DEFECT_WORDS, caption, object_word
from clipsam.data.features import Features, compute_features
from clipsam.data.photographs import PHOTOGRAPHS
from clipsam.data.sources import PAINTED, PROCEDURAL, training_data
from clipsam.embedded.dinov2 import CLIP_WEIGHTS, LetterTokenizer, build_clip, frozen_backbone, trained_part
from clipsam.embedded.fitting import fit
from clipsam.metrics import ImageMetrics
from clipsam.pipeline import TEMPERATURE
from clipsam.prompt_bank import OBJECT, PromptBank, group_average
from clipsam.samples import GOOD, Entry
from frugal_shared.checkpoint import write_bytes
from frugal_shared.run import Run

PER_CATEGORY = 8  # regions of one category in a batch: its normal and its damaged ones are the hard negatives
SENTENCES = 3  # of each state and category in a batch
LAST = -1  # the stage whose tokens the projection reads
NONSENSE_SHARE = 0.15  # of names: what nobody has a word for can be damaged, too


def train_text(
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
    """Train, and save ``clip.safetensors`` in fp16 in the run's folder.

    Args:
        run: of one process; several would each see a part of the contrast only.
        images: how many drawn images to train on.
        val_images: how many to validate on.
        features: folder that keeps the tower's features; unset: "features" in the run's.
        steps: of the optimizer.
        batch_size: regions of images per step, each with a caption.
        learning_rate: peak of the cosine, after the warm-up.
        save_every: steps between checkpoints.
        seed: every random number follows from it.

    Returns:
        What :func:`agreement` says of validation images.
    """
    torch.manual_seed(seed)
    model = build_clip()
    backbone, folder = frozen_backbone(model), features or run.folder / "features"
    train_data, val_data = training_data((PROCEDURAL, PAINTED), images, val_images, seed)
    train_set = Regions(compute_features(folder, backbone, train_data, run, "train"), train_data.entries)
    val_set = Regions(compute_features(folder, backbone, val_data, run, "val"), val_data.entries)
    model.requires_grad_(True)
    model.visual.get_submodule("trunk").requires_grad_(False)

    def batch_loss(_: nn.Module, step: int) -> Tensor:
        return contrast_loss(model, train_set, batch_size, np.random.default_rng([seed, step]))

    course = {"steps": steps, "learning_rate": learning_rate, "save_every": save_every}
    validated = fit(run, model, batch_loss, lambda _: agreement(model, val_set), **course)
    halves = {name: value.half().contiguous() for name, value in trained_part(model).items()}
    if run.accelerator.is_main_process:
        write_bytes(run.folder / CLIP_WEIGHTS, save(halves))
    return {"parameters": sum(value.numel() for value in halves.values()), **validated}


@dataclass(frozen=True, eq=False)
class Regions:
    """Regions of images with cached features, and what they show."""

    features: Features
    entries: Sequence[Entry]

    def draw(self, random: np.random.Generator, count: int) -> list[tuple[int, Entry]]:
        """Return rows of images: as many of each of some random categories."""
        chosen = random.choice(sorted(self.by_category), max(1, count // PER_CATEGORY))
        rows = [int(row) for name in chosen for row in random.choice(self.by_category[str(name)], PER_CATEGORY)]
        return [(row, self.entries[row]) for row in rows]

    @cached_property
    def by_category(self) -> dict[str, list[int]]:
        """The rows of every category."""
        rows: dict[str, list[int]] = {}
        for row, entry in enumerate(self.entries):
            rows.setdefault(entry.category, []).append(row)
        return rows

    def weights(self, row: int, entry: Entry, random: np.random.Generator) -> tuple[np.ndarray, str]:
        """Return how much every patch of an image counts to a random region of it, ``(h, w)``, and what is there."""
        grid = self.features.tokens.shape[-1]
        mask = self.features.masks[row]
        patch = mask.shape[0] // grid
        covered = mask.reshape(grid, patch, grid, patch).mean((1, 3)).astype(np.float32)
        whole = random.random() < 0.2
        if whole:
            return np.ones_like(covered), entry.defect
        if entry.is_anomalous and covered.any() and random.random() < 0.6:
            return covered, entry.defect
        clean = window(random, grid) * (covered == 0)
        return (clean, GOOD) if clean.any() else (np.ones_like(covered), entry.defect)


def window(random: np.random.Generator, grid: int) -> np.ndarray:
    """Return a random window of 1 to 4 patches a side, ``(grid, grid)``, 1 in it."""
    side = int(random.integers(1, 5))
    top, left = random.integers(0, grid - side + 1, 2)
    inside = np.zeros((grid, grid), np.float32)
    inside[top : top + side, left : left + side] = 1
    return inside


def embed_regions(model: CustomTextCLIP, tokens: Tensor, weights: Tensor) -> Tensor:
    """Return regions in the joint space, of length 1, ``(B, D)``.

    Args:
        model: the CLIP.
        tokens: of the tower's last block, ``(B, C, h, w)``.
        weights: of the patches, ``(B, h, w)``.
    """
    visual: Any = model.visual
    patches = F.normalize(visual.head(visual.trunk.norm(tokens.movedim(1, -1))), dim=-1)  # (B, h, w, D)
    return F.normalize(torch.einsum("bhwd,bhw->bd", patches, weights), dim=-1)


def contrast_loss(model: CustomTextCLIP, regions: Regions, count: int, random: np.random.Generator) -> Tensor:
    """Return the contrast of regions and captions + the contrast of states, of a batch of ``count`` regions."""
    drawn = regions.draw(random, count)
    weights, defects = zip(*(regions.weights(row, entry, random) for row, entry in drawn))
    tokens = regions.features.stage([row for row, _ in drawn], LAST)
    embedded = embed_regions(model, tokens, torch.from_numpy(np.stack(weights)))

    kinds = [(entry.category, defect) for (_, entry), defect in zip(drawn, defects)]
    names = {category: index for index, category in enumerate(dict.fromkeys(category for category, _ in kinds))}
    captions = [caption(renamed(category, random), defect, "", random) for category, defect in kinds]
    sentences = [text for category in names for text in states(category, random)]
    texts = encode(model, captions + sentences)

    scale = model.logit_scale.exp().clamp(max=100)
    right = torch.tensor([[a == b for b in kinds] for a in kinds]).float()
    contrast = multi_positive(scale * embedded @ texts[: len(captions)].T, right)
    groups = texts[len(captions) :].view(len(names), 2, SENTENCES, -1)
    groups = F.normalize(groups.mean(2), dim=-1)  # (categories, 2, D)
    own = groups[torch.tensor([names[category] for category, _ in kinds])]
    logits = torch.einsum("bd,bld->bl", embedded, own) / TEMPERATURE
    state = F.cross_entropy(logits, torch.tensor([int(defect != GOOD) for _, defect in kinds]))
    return contrast + state


def multi_positive(logits: Tensor, right: Tensor) -> Tensor:
    """Return the mean cross-entropy of rows and of columns of ``(B, B)``, all that is right having equal shares."""
    rows = -(F.log_softmax(logits, 1) * right / right.sum(1, keepdim=True)).sum(1).mean()
    columns = -(F.log_softmax(logits, 0) * right / right.sum(0, keepdim=True)).sum(0).mean()
    return (rows + columns) / 2


def renamed(category: str, random: np.random.Generator) -> str:
    """Return a category, a photograph's subject, or now and then a word that means nothing."""
    if random.random() < NONSENSE_SHARE:
        letters = random.choice(list("abcdefghijklmnopqrstuvwxyz"), int(random.integers(3, 11)))
        return "".join(letters)
    return PHOTOGRAPHS.get(category, category)


def states(category: str, random: np.random.Generator) -> list[str]:
    """Return sentences that call a category normal, then as many that call it damaged, in the words of all banks."""
    bank = PromptBank()
    name = object_word(renamed(category, random), random)
    sentences = []
    for group in (bank.normal_states, bank.abnormal_states):
        for _ in range(SENTENCES):
            template, state = random.choice(bank.templates), random.choice(group)
            sentences.append(str(template).format(str(state).format(name)))
    return sentences


@torch.no_grad()
def agreement(model: CustomTextCLIP, regions: Regions) -> dict[str, float]:
    """Return how well the towers agree on images that were not trained on.

    ``state_auroc``: regions scored by the similarity with "abnormal" minus that with "normal" of their category, and
    ``state_auroc_object`` by that of "object". ``defect_accuracy``: the share of damaged regions whose most similar
    sentence, of one for each of the 15 kinds of defect, is that of their kind.
    """
    random = np.random.default_rng(0)
    rows = list(enumerate(regions.entries))
    weights, defects = zip(*(regions.weights(row, entry, random) for row, entry in rows))
    tokens = regions.features.stage([row for row, _ in rows], LAST)
    embedded = embed_regions(model, tokens, torch.from_numpy(np.stack(weights)))
    own, anything = ImageMetrics(), ImageMetrics()
    languages = {category: language(model, category) for category in {entry.category for _, entry in rows} | {OBJECT}}
    for region, (_, entry), defect in zip(embedded, rows, defects):
        for metric, category in ((own, entry.category), (anything, OBJECT)):
            normal, abnormal = languages[category] @ region
            metric.update(float(abnormal - normal), defect != GOOD)
    kinds = [f"an object with a {nouns[0]}" for _, nouns in DEFECT_WORDS.values()]
    found = (embedded @ encode(model, kinds).T).argmax(1)
    names = list(DEFECT_WORDS)
    hits = [names[int(index)] == defect for index, defect in zip(found, defects) if defect != GOOD]
    return {
        "state_auroc": own.compute()["image_auroc"],
        "state_auroc_object": anything.compute()["image_auroc"],
        "defect_accuracy": float(np.mean(hits)),
    }


def encode(model: CustomTextCLIP, texts: list[str]) -> Tensor:
    """Return texts in the joint space, of length 1, ``(N, D)``."""
    return F.normalize(model.encode_text(LetterTokenizer()(texts)), dim=-1)


def language(model: CustomTextCLIP, category: str) -> Tensor:
    """Return the two language tokens of a category, ``(2, D)``, as :meth:`Backbone.text` does."""
    return torch.stack([group_average(encode(model, group)) for group in PromptBank().prompts(category)])
