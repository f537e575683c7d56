"""The images that are searched on, as tensors; which there are is told by :mod:`frugal_shared.labelled`."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from bdp_nas.commands.options import TaskConfig
from frugal_shared import labelled
from frugal_shared.errors import UsageError

TEST_SHARE = 0.2  # of all images, where the data has no test images of its own
CELL_SIDE = 32  # pixels that solar cells are shrunk to, unless asked otherwise


@dataclass(frozen=True, eq=False)
class Images(Dataset[tuple[Tensor, Tensor]]):
    """Images of one size with their labels.

    Args:
        classes: their names, in the order of the labels.
        pixels: ``(N, C, H, W)`` uint8, C = 1 (grey) or 3 (RGB).
        labels: ``(N,)`` int64 in 0 … len(classes) − 1.
    """

    classes: tuple[str, ...]
    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int | Tensor) -> tuple[Tensor, Tensor]:
        """Return one image or several, as they are stored, with labels."""
        return self.pixels[index], self.labels[index]

    def to(self, device: torch.device) -> "Images":
        """Return the same on a device."""
        return Images(self.classes, self.pixels.to(device), self.labels.to(device))

    def moments(self) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of each channel, ``(C,)``, of pixels in [0, 1]."""
        counts = torch.stack([channel.flatten().bincount(minlength=256) for channel in self.pixels.transpose(0, 1)])
        share, values = counts.double() / counts.sum(1, keepdim=True), torch.arange(256).double() / 255
        mean = share @ values
        return mean.float(), (share @ values.square() - mean.square()).clamp(min=1e-6).sqrt().float()


@dataclass(frozen=True)
class Splits:
    """Images to search and train on, to validate (there may be none), and to report."""

    train: Images
    val: Images
    test: Images


def open_data(config: TaskConfig, seed: int = 0) -> Splits:
    """Open the data set of a command; its test images are the same for every seed.

    Args:
        config: names it, and says how many images, and of which size.
        seed: of the training images, where not all are taken, and of the validation images, where the data has none.

    Raises:
        UsageError: no such data set, too few images or classes, or images of several sizes.
        RunError: an image cannot be read, or the ``[demo]`` extra, which brings the solar cells, is missing.
        ImportError: torchvision is missing.
    """
    splits = labelled.open_data(
        config.data, seed=seed, samples=config.samples, val_share=config.val_share, test_share=TEST_SHARE
    )
    train = splits.train
    if absent := sorted(set(range(len(train.classes))).difference(train.labels)):
        told = f"class {train.classes[absent[0]]!r} has 0 training images"
        raise UsageError(f"data={config.data!r}: {told}; allowed: some of each")
    if not len(splits.test):
        raise UsageError(f"data={config.data!r}: {len(train)} images are too few to test on some; allowed: more")
    return Splits(*stack(tuple(splits), config.image_size or (CELL_SIDE if config.data == labelled.ELPV else None)))


def stack(parts: Sequence[labelled.Images], side: int | None) -> list[Images]:
    """Decode all images and return those of each part as one tensor, grey if all of all parts are, else RGB.

    Args:
        parts: of one data set.
        side: of the square that every image is resized to; None: they stay as they are.

    Raises:
        UsageError: several sizes and ``side=None``.
        RunError: an image cannot be read.
    """
    pictures = [[_resized(part.picture(number), side) for number in range(len(part))] for part in parts]
    sizes = sorted({picture.size for part in pictures for picture in part})
    if len(sizes) > 1:
        told = f"images of {len(sizes)} sizes, such as {sizes[0]} and {sizes[-1]} pixels"
        raise UsageError(f"the data has {told}; allowed: images of one size, or --image-size")
    mode = "L" if {picture.mode for part in pictures for picture in part} == {"L"} else "RGB"
    shape = (1 if mode == "L" else 3, sizes[0][1], sizes[0][0])
    return [
        Images(part.classes, _tensor(each, mode).view(len(part), *shape), torch.tensor(part.labels, dtype=torch.int64))
        for part, each in zip(parts, pictures)
    ]


def _resized(picture: Image.Image, side: int | None) -> Image.Image:
    if side is None or picture.size == (side, side):
        return picture
    return picture.resize((side, side), Image.Resampling.BICUBIC)


def _tensor(pictures: Sequence[Image.Image], mode: str) -> Tensor:
    """Return pictures as ``(N, C, H, W)`` uint8; of none, nothing."""
    if not pictures:
        return torch.empty(0, dtype=torch.uint8)
    pixels = torch.from_numpy(np.stack([np.atleast_3d(np.asarray(picture.convert(mode))) for picture in pictures]))
    return pixels.permute(0, 3, 1, 2).contiguous()
