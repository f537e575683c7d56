"""Labelled images as tensors: digits, solar cells, a torchvision data set, or a folder with a subfolder per class.

Nothing is ever downloaded. Which images validate, and which are taken where not all are, follows from the data and the
seed alone; the test images are the same for every seed, and nothing is ever selected by them.
"""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset

from bdp_nas.commands.options import TaskConfig
from frugal_shared.errors import RunError, UsageError

TORCHVISION = "torchvision:"
SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What a file may be, whatever its name says: Pillow would also hand PostScript to Ghostscript, which runs it."""
MAX_PIXELS = 64 * 2**20  # of an image; files with more are refused before they are decoded
TEST_SHARE = 0.2  # of all images, where the data has no test images of its own
Sample = tuple[Image.Image, int]


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

    def subset(self, rows: Sequence[int]) -> "Images":
        """Return the images of these rows, in this order."""
        return Images(self.classes, self.pixels[list(rows)], self.labels[list(rows)])

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
    """Open the data set of a command.

    Args:
        config: names it, and says how many images, and of which size.
        seed: of the training images, where not all are taken, and of the validation images, where the data has none.

    Raises:
        UsageError: no such data set, too few images or classes, or images of several sizes.
        RunError: an image cannot be read, or the ``[demo]`` extra, which brings the solar cells, is missing.
        ImportError: torchvision is missing.
    """
    parts = _parts(config.data, config.image_size)
    if "test" not in parts:
        parts["test"], parts["train"] = split_off(parts["train"], TEST_SHARE, 0)
    if "val" not in parts:
        parts["val"], parts["train"] = split_off(parts["train"], config.val_share, seed)
    train, test = parts["train"], parts["test"]
    if len({part.pixels.shape[1:] for part in parts.values()}) > 1 or not len(test):
        raise UsageError(f"data={config.data!r}: other images to test than to train on, or none; allowed: alike ones")
    if (absent := sorted(set(range(len(train.classes))) - set(train.labels.tolist()))) or len(train.classes) < 2:
        told = f"class {train.classes[absent[0]]!r} has 0" if absent else f"{len(train.classes)} class has all"
        raise UsageError(f"data={config.data!r}: {told} training images; allowed: 2 classes or more, some of each")
    if config.samples is not None:
        if config.samples < len(train.classes):
            raise UsageError(f"samples={config.samples!r} is too few; allowed: {len(train.classes)}, one per class")
        parts["train"] = train.subset(in_proportion(train.labels, config.samples, seed))
    return Splits(**parts)


def in_proportion(labels: ArrayLike, count: int, seed: int) -> list[int]:
    """Choose images at random, of each class in proportion.

    Every class gets one first, as far as ``count`` goes; the others in the order of (rank in its class + ½) / size.

    Args:
        labels: ``(N,)``, 0 or more.
        count: how many; more than there are means all.
        seed: of the choice.

    Returns:
        Their rows, ascending.
    """
    order = np.random.default_rng(seed).permutation(len(np.asarray(labels)))
    shuffled = np.asarray(labels)[order]
    sizes, by_class = np.bincount(shuffled), np.argsort(shuffled, kind="stable")
    rank = np.empty(len(order))
    rank[by_class] = np.arange(len(order)) - np.repeat(sizes.cumsum() - sizes, sizes)
    turn = np.where(rank == 0, 0.0, (rank + 0.5) / sizes[shuffled])
    return np.sort(order[np.argsort(turn, kind="stable")[:count]]).tolist()


def split_off(images: Images, share: float, seed: int) -> tuple[Images, Images]:
    """Divide images into a share of them and the rest, which is at least one of every class."""
    kept = max(len(images.classes), len(images) - round(share * len(images)))
    rows = in_proportion(images.labels, kept, seed)
    return images.subset(sorted(set(range(len(images))).difference(rows))), images.subset(rows)


def _parts(name: str, size: int | None) -> dict[str, Images]:
    if name in EMBEDDED:
        return {split: EMBEDDED[name](split, size) for split in ("train", "val", "test")}
    return _torchvision(name, size) if name.startswith(TORCHVISION) else _folder(Path(name), size)


# --- digits and solar cells ---

TEXTURED_COUNTS = {"train": 4000, "val": 1000, "test": 1000}  # of an endless set
CELL_CLASSES = ("functional mono", "functional poly", "defective mono", "defective poly")
CELL_SIDE = 32
BORDER = 15  # pixels around a cell that show the gap to its neighbour
GREY = 110  # the median grey value that every cell is brought to: exposures differ a lot


def _digits(split: Any, size: int | None) -> Images:
    from frugal_shared.datasets import digits  # here, because it imports scikit-learn, which takes its time

    pixels, labels = digits(split)
    return _stack(tuple("0123456789"), zip(map(_picture, pixels), labels.tolist()), size)


def _textured(split: Any, size: int | None) -> Images:
    from frugal_shared.datasets import TEXTURES, TexturedDigits

    pixels, labels = TexturedDigits(split).batch(0, TEXTURED_COUNTS[split])
    classes = tuple(f"{digit} {texture}" for digit in range(10) for texture in TEXTURES)
    return _stack(classes, zip(map(_picture, pixels.movedim(1, -1)), labels.tolist()), size)


def _elpv(split: Any, size: int | None) -> Images:
    """Return the cells that the experts were sure of."""
    from frugal_shared.datasets import elpv

    cells = elpv(split)
    probability = cells.probability.numpy()
    labels = 2 * (probability == 1) + (np.array(cells.cell_type) == "poly")
    sure = np.flatnonzero((probability == 0) | (probability == 1)).tolist()
    samples = ((_exposed(cells.images(slice(row, row + 1))[0].numpy()), int(labels[row])) for row in sure)
    return _stack(CELL_CLASSES, samples, size or CELL_SIDE)


EMBEDDED = {"digits": _digits, "textured-digits": _textured, "elpv": _elpv}


def _picture(values: Tensor) -> Image.Image:
    """Return values in [0, 1], ``(H, W)`` or ``(H, W, 3)``, as a picture."""
    return Image.fromarray((values * 255).round().byte().numpy())


def _exposed(cell: NDArray[np.uint8]) -> Image.Image:
    """Return ``clip(GREY · cell / median)`` without the border."""
    inner = cell[BORDER:-BORDER, BORDER:-BORDER].astype(np.float32)
    return Image.fromarray(np.clip(np.rint(inner * (GREY / max(float(np.median(inner)), 1.0))), 0, 255).astype("uint8"))


# --- folders ---

SPLIT_FOLDERS = {"train": "train", "val": "val", "validation": "val", "test": "test"}


def _folder(root: Path, size: int | None) -> dict[str, Images]:
    """Return the splits that a folder has as subfolders; without them, all of it is ``train``."""
    if not root.is_dir():
        known = ", ".join(EMBEDDED)
        raise UsageError(f"data={str(root)!r} is unknown; allowed: {known}, {TORCHVISION}NAME:ROOT, a folder")
    splits = {"train": root}
    if (root / "train").is_dir() and any(path.is_dir() for path in (root / "train").iterdir()):
        splits = {split: root / name for name, split in SPLIT_FOLDERS.items() if (root / name).is_dir()}
    classes = tuple(path.name for path in _subfolders(splits["train"]))
    return {split: _stack(classes, _files(folder, classes), size) for split, folder in splits.items()}


def _subfolders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def _files(root: Path, classes: Sequence[str]) -> Iterator[Sample]:
    for folder in _subfolders(root):
        if folder.name not in classes:
            raise UsageError(f"{folder}: the training images have no class {folder.name!r}; allowed: their classes")
        for path in sorted(folder.rglob("*")):
            if path.suffix.lower() in SUFFIXES and not path.name.startswith("."):
                yield _read(path), classes.index(folder.name)


def _read(path: Path) -> Image.Image:
    """Read an image file, turned as its EXIF orientation says."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sizes below ours, and of odd metadata
            with Image.open(path, formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise ValueError(f"more than {MAX_PIXELS:,} pixels")
                if image.mode.startswith(("I", "F")):
                    raise ValueError("more than 8 bits")
                return ImageOps.exif_transpose(image).copy()
    except Exception as error:  # on damaged files Pillow's readers raise whatever their parsers stumble over
        raise RunError(f"{path}: cannot be read as an image ({' '.join(str(error).split())})") from None


# --- torchvision ---

SPLIT_OPTIONS = {
    "train": ({"train": True}, {"split": "train"}, {"split": "trainval"}),
    "val": ({"split": "val"}, {"split": "valid"}),
    "test": ({"train": False}, {"split": "test"}),
}


def _torchvision(name: str, size: int | None) -> dict[str, Images]:
    """Return the splits that a torchvision data set has; without any, all of it is ``train``."""
    from torchvision import datasets

    kind, _, root = name.removeprefix(TORCHVISION).partition(":")
    if kind not in datasets.__all__ or not root:
        raise UsageError(f"data={name!r} is unknown; allowed: {TORCHVISION}NAME:ROOT, NAME of torchvision.datasets")
    factory = getattr(datasets, kind)
    found = {split: _torchvision_split(factory, root, options) for split, options in SPLIT_OPTIONS.items()}
    if found["train"] is None:
        raise UsageError(f"data={name!r}: torchvision's {kind} has no training split; allowed: one that has")
    names = tuple(map(str, getattr(found["train"], "classes", ())))
    return {split: _labelled(kind, names, data, size) for split, data in found.items() if data is not None}


def _torchvision_split(factory: Any, root: str, options: Sequence[dict[str, Any]]) -> Any:
    """Return a split of a torchvision data set, or None if it has none of these names."""
    takes = signature(factory).parameters
    whole = () if takes.keys() & {"train", "split"} or {"train": True} not in options else ({},)
    for option in (*(option for option in options if option.keys() <= takes.keys()), *whole):
        try:
            return factory(root, **option)
        except ValueError:  # what torchvision raises on another split's name
            continue
        except Exception as error:  # whatever the data set's own code stumbles over where files are missing
            why = " ".join(str(error).split()).split(". You can use")[0]
            raise UsageError(f"{root}: no {factory.__name__} of torchvision ({why}); nothing is downloaded") from None
    return None


def _labelled(kind: str, names: tuple[str, ...], data: Any, size: int | None) -> Images:
    samples = [data[row] for row in range(len(data))]
    if not all(isinstance(label, int) for _, label in samples):
        raise UsageError(f"torchvision's {kind} does not have one class per image; allowed: e.g. CIFAR100, Food101")
    names = names or tuple(map(str, range(1 + max(label for _, label in samples))))
    return _stack(names, samples, size)


# --- tensors ---


def _stack(classes: tuple[str, ...], samples: Iterable[Sample], size: int | None) -> Images:
    """Return pictures as one tensor, all grey if all are, else RGB.

    Raises:
        UsageError: several sizes and ``size=None``, a label out of range, or no images.
    """
    pictures, labels = [], []
    for picture, label in samples:
        if not 0 <= label < len(classes):
            raise UsageError(f"label {label!r} is out of range; allowed: 0 to {len(classes) - 1}")
        pictures.append(_resized(picture, size))
        labels.append(label)
    sizes = sorted({picture.size for picture in pictures})
    if len(sizes) != 1:
        told = f"images of {len(sizes)} sizes, such as {sizes[0]} and {sizes[-1]} pixels" if sizes else "no images"
        raise UsageError(f"the data has {told}; allowed: images of one size, or --image-size")
    mode = "L" if {picture.mode for picture in pictures} == {"L"} else "RGB"
    pixels = torch.from_numpy(np.stack([np.asarray(picture.convert(mode)) for picture in pictures]))
    pixels = pixels[:, None] if mode == "L" else pixels.permute(0, 3, 1, 2)
    return Images(classes, pixels.contiguous(), torch.tensor(labels))


def _resized(picture: Image.Image, size: int | None) -> Image.Image:
    picture = picture.convert("L" if picture.mode in ("1", "L") else "RGB")
    if size is None or picture.size == (size, size):
        return picture
    return picture.resize((size, size), Image.Resampling.BICUBIC)
