"""Images in batches: the same pixels for the same seed, on any number of processes and workers, also after a kill."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from frugal_shared.labelled import Images
from frugal_shared.seeds import derived_seed
from partial_finetune.network import Transform

Key = tuple[int, int]
"""An image to load: the epoch, and its number in the data set."""


@dataclass(frozen=True)
class Transformed(Dataset):
    """Images as a model sees them; every image of every epoch has random numbers of its own."""

    images: Images
    transform: Transform
    seed: int = 0

    def __getitem__(self, key: Key) -> tuple[Tensor, int]:
        """Return the image ``(3, H, W)`` and its label."""
        image, label = self.images[key[1]]
        with own_random_numbers(derived_seed(self.seed, *key)):
            return self.transform(image), label


def batches(data: Transformed, keys: Sequence[Sequence[Key]], workers: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the batches of these keys: images ``(B, 3, H, W)`` and labels ``(B,)``."""
    return iter(DataLoader(data, batch_sampler=keys, num_workers=workers))  # type: ignore[arg-type]


def epoch_batches(count: int, batch_size: int, seed: int, epoch: int) -> list[list[Key]]:
    """Return the global batches of one epoch: a permutation, of which what fills no batch waits for another epoch.

    Args:
        count: training images; fewer than a batch make one smaller batch.
        batch_size: global.
        seed: of the permutation.
        epoch: which one.
    """
    order = np.random.default_rng([seed, epoch]).permutation(count).tolist()
    size = min(batch_size, count)
    return [[(epoch, row) for row in order[start : start + size]] for start in range(0, count - size + 1, size)]


@contextmanager
def own_random_numbers(seed: int) -> Iterator[None]:
    """Seed every source of random numbers that timm's augmentations draw from, and give all back afterwards."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002 (timm draws from numpy's global generator)
    with torch.random.fork_rng(devices=[]):
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002
