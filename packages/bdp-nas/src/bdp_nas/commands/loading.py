"""Batches: the same samples and pixels for the same seed, on any number of processes, also after a kill."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from bdp_nas.commands.data import Images
from frugal_shared.errors import UsageError
from frugal_shared.seeds import generator

UNIT = 24  # batches are multiples of it if they can be, so that 1, 2, 3, 4, 6 and 8 processes see the same ones
CROP = 8  # a crop shifts by up to 1 / CROP of the side: 4 of 32 pixels
ORDER, CHANGES = 20, 21  # streams of random numbers

Batch = tuple[Tensor, tuple[Tensor, Tensor]]
"""Indices ``(B,)``, and the images ``(B, C, H, W)`` float32 with their labels ``(B,)``."""


@dataclass(eq=False)
class Augmented(Dataset[Batch]):
    """Training images as the network sees them in one epoch.

    What changes an image follows from the seed, the epoch and its index, whatever batch and process it is in.

    Args:
        images: to train on.
        mean: of each channel, ``(C,)``; subtracted.
        std: of each channel, ``(C,)``; divided by.
        kinds: of changes: flip, crop, cutout.
        seed: of the changes.
        epoch: in which the images are seen.
    """

    images: Images
    mean: Tensor
    std: Tensor
    kinds: Sequence[str] = ()
    seed: int = 0
    epoch: int = 0
    draws: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        draws = torch.rand(len(self.images), 5, generator=generator(self.seed, CHANGES, self.epoch))
        self.draws = draws.to(self.images.pixels.device)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: Sequence[int]) -> Batch:
        """Return a whole batch."""
        indices = torch.tensor(rows)
        places = indices.to(self.draws.device)
        pixels, labels = self.images[places]
        return indices, (self.change(pixels, self.draws[places]), labels)

    def change(self, pixels: Tensor, draws: Tensor) -> Tensor:
        """Flip, crop, normalise and cut out, as far as asked for: each sample by its own five numbers in [0, 1)."""
        if "flip" in self.kinds:
            pixels = torch.where(draws[:, 0, None, None, None] < 0.5, pixels.flip(3), pixels)
        if "crop" in self.kinds:
            pixels = crop(pixels, draws[:, 1:3])
        images = normalise(pixels, self.mean, self.std)
        return cutout(images, draws[:, 3:5]) if "cutout" in self.kinds else images


def normalise(pixels: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Return ``(p / 255 − mean) / std`` of uint8 pixels ``(B, C, H, W)``."""
    mean, std = (values.to(pixels.device)[:, None, None] for values in (mean, std))
    return (pixels / 255 - mean) / std


def crop(pixels: Tensor, draws: Tensor) -> Tensor:
    """Shift every image by up to an eighth of its side; black comes in from outside.

    Args:
        pixels: ``(B, C, H, W)``.
        draws: ``(B, 2)`` in [0, 1), down and right.
    """
    count, _, height, width = pixels.shape
    pad = max(1, min(height, width) // CROP)
    padded = torch.nn.functional.pad(pixels, (pad,) * 4)
    start = (draws * (2 * pad + 1)).long()
    rows = (start[:, :1] + torch.arange(height, device=pixels.device))[:, :, None]
    columns = (start[:, 1:] + torch.arange(width, device=pixels.device))[:, None]
    each = torch.arange(count, device=pixels.device)[:, None, None]
    return padded[each, :, rows, columns].permute(0, 3, 1, 2)


def cutout(images: Tensor, draws: Tensor) -> Tensor:
    """Set a square of half the side, around a random pixel, to 0 (arXiv 1708.04552).

    Args:
        images: ``(B, C, H, W)``.
        draws: ``(B, 2)`` in [0, 1), down and right.
    """
    inside = torch.ones(len(images), 1, 1, 1, dtype=torch.bool, device=images.device)
    half = min(images.shape[2:]) // 4
    for axis, draw in zip((2, 3), draws.unbind(1)):
        place = torch.arange(images.shape[axis], device=images.device)
        centre = (draw * images.shape[axis]).long()[:, None]
        near = (place >= centre - half) & (place < centre + half)
        inside = inside & (near[:, None, :, None] if axis == 2 else near[:, None, None, :])
    return images.masked_fill(inside, 0.0)


class EpochBatches:
    """The batches of an epoch: a new permutation whenever they are iterated, in parts of nearly equal size.

    What is left of a multiple of the unit waits for another epoch.

    Args:
        rows: what is permuted.
        size: largest global batch, a multiple of ``unit``.
        unit: batches are multiples of it.
        stream: seed and numbers that name the stream of random numbers.
        rank: which share of every batch is meant.
        world: number of shares.
    """

    def __init__(
        self, rows: Sequence[int], size: int, unit: int, stream: tuple[int, ...], rank: int = 0, world: int = 1
    ) -> None:
        self.rows, self.rank, self.world = torch.tensor(rows), rank, world
        units = len(rows) // unit
        self.count = math.ceil(units * unit / size)
        self.bounds = [units * batch // self.count * unit if batch else 0 for batch in range(self.count + 1)]
        self.random = generator(*stream)

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[list[int]]:
        order = self.rows[torch.randperm(len(self.rows), generator=self.random)].tolist()
        for start, stop in pairwise(self.bounds):
            own = (stop - start) // self.world  # in one piece, as if one process computed the batch in parts
            yield order[start + self.rank * own : start + (self.rank + 1) * own]


def unit_of(batch_size: int, world: int) -> int:
    """Return what batches are multiples of.

    Raises:
        UsageError: the batch does not divide evenly among the processes.
    """
    unit = math.lcm(math.gcd(batch_size, UNIT), world)
    if batch_size % unit:
        raise UsageError(f"batch_size={batch_size!r} does not divide among {world} processes; allowed: multiples of it")
    return unit


def loader_of(
    data: Augmented, rows: Sequence[int], batch_size: int, stream: tuple[int, ...], accelerator: Accelerator
) -> DataLoader[Any]:
    """Return the loader of one epoch for this process."""
    world = accelerator.num_processes
    unit = unit_of(batch_size, world)
    batches = EpochBatches(rows, batch_size, unit, stream, accelerator.process_index, world)
    return DataLoader(data, sampler=batches, batch_size=None)
