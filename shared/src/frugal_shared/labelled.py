"""Labelled images by name: digits, solar cells, a torchvision data set, or a folder with a subfolder per class.

Nothing is ever downloaded, and no image is decoded before it is asked for. Which images validate or test, and which are
taken where not all are, follows from the data and the seeds alone: two runs are comparable only if they were given the
same ones. The test images are never what something is selected by.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from inspect import signature
from operator import index
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from frugal_shared.errors import RunError, UsageError
from frugal_shared.images import IMAGE_SUFFIXES, check_files, eight_bit, image_files, opened, read_image

DIGITS, TEXTURED, ELPV = "digits", "textured-digits", "elpv"
TORCHVISION = "torchvision:"
SPLITS = ("train", "val", "test")


@dataclass(frozen=True, eq=False)
class Images:
    """A labelled data set; an image is read when it is asked for, and nothing but its item is kept of it."""

    name: str
    """What results call it."""
    classes: tuple[str, ...]
    """Their names, in the order of the labels."""
    labels: tuple[int, ...]
    """A number in ``0 … len(classes) - 1`` per image."""
    items: Sequence[Any]
    """What ``read`` makes an image of: a file, a row number, or pixels."""
    read: Callable[[Any], Image.Image]
    """From an item to an image in 8 bits, grey (mode "L") or RGB; a function of a module (or a partial of one), so that
    workers can be sent it."""

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, number: int) -> tuple[Image.Image, int]:
        """Return an image as RGB, and its label.

        Raises:
            RunError: the image cannot be read; the message names its file.
        """
        return self.picture(number).convert("RGB"), self.labels[number]

    def picture(self, number: int) -> Image.Image:
        """Return an image in 8 bits, grey (mode "L") or RGB.

        Raises:
            RunError: it cannot be read; the message names its file.
        """
        return self.read(self.items[number])

    def subset(self, rows: Iterable[int]) -> "Images":
        """Return the images of these rows, in this order."""
        rows = tuple(rows)
        items = tuple(self.items[row] for row in rows)
        return Images(self.name, self.classes, tuple(self.labels[row] for row in rows), items, self.read)

    def limited(self, count: int, *, seed: int = 0) -> "Images":
        """Return at most ``count`` images, of each class in proportion (see :func:`in_proportion`)."""
        return self if count >= len(self) else self.subset(in_proportion(self.labels, count, seed))

    def check(self) -> None:
        """Read the header of every image file, which takes far less time than decoding all.

        Raises:
            ImageError: some cannot be read as images; the message names the first and counts the others.
        """
        check_files(item for item in self.items if isinstance(item, Path))


@dataclass(frozen=True)
class Splits:
    """Images to train on, to select by (there may be none), and to report."""

    train: Images
    val: Images
    test: Images

    def __iter__(self) -> Iterator[Images]:
        return iter((self.train, self.val, self.test))


def open_data(
    name: str,
    *,
    seed: int = 0,
    samples: int | None = None,
    val_share: float = 0.2,
    test_share: float = 0.2,
    test_seed: int = 0,
    least: int = 0,
) -> Splits:
    """Open a data set by name.

    Args:
        name: "digits", "textured-digits", "elpv", ``"torchvision:NAME:ROOT"``, or a folder: its subfolders are the
            classes, or ``train`` and optionally ``val`` (or ``validation``) and ``test`` hold them.
        seed: of the validation images, where the data has none of its own, and of ``samples``.
        samples: at most so many training images, of each class in proportion; default: all.
        val_share: share of the training images that validate, where the data has no validation images of its own.
        test_share: share of all images that test, where the data has no test images of its own; split off before.
        test_seed: of those test images.
        least: fewest images to split off (see :func:`split_off`).

    Raises:
        UsageError: no such data set, no classes or too few images, a class folder without images, or a class that the
            training images lack.
        RunError: the ``[demo]`` extra, which brings the solar cells, is missing.
        ImportError: scikit-learn, of the same extra, or torchvision is missing.
    """
    parts = _parts(name)
    if "test" not in parts:
        parts["test"], parts["train"] = split_off(parts["train"], test_share, test_seed, least=least)
    if "val" not in parts:
        parts["val"], parts["train"] = split_off(parts["train"], val_share, seed, least=least)
    splits = Splits(**parts)
    if samples is None:
        return splits
    if samples < len(splits.train.classes):
        raise UsageError(
            f"samples={samples!r} is too few; allowed: {len(splits.train.classes)}, one per class, or more"
        )
    return replace(splits, train=splits.train.limited(samples, seed=seed))


def _parts(name: str) -> dict[str, Images]:
    """Return the splits that the data has of its own, at least "train"."""
    if name in EMBEDDED:
        return {split: EMBEDDED[name](split) for split in SPLITS}
    return _torchvision(name) if name.startswith(TORCHVISION) else _folder(Path(name))


# --- choosing and splitting ---


def in_proportion(labels: ArrayLike, count: int, seed: int) -> list[int]:
    """Choose images at random, of each class in proportion.

    Every class gets one image first, as far as ``count`` goes; the others are apportioned by Webster's method, that is
    in the order of (rank within the class + ½) / class size. A smaller choice is part of every larger one.

    Args:
        labels: of all images, 0 or more.
        count: how many to choose; more than there are means all.
        seed: of the choice.

    Returns:
        Row numbers, ascending.
    """
    order = np.random.default_rng(seed).permutation(len(np.asarray(labels)))
    shuffled = np.asarray(labels, dtype=np.int64)[order]
    sizes, by_class = np.bincount(shuffled), np.argsort(shuffled, kind="stable")
    rank = np.empty(len(order))
    rank[by_class] = np.arange(len(order)) - np.repeat(sizes.cumsum() - sizes, sizes)
    turn = np.where(rank == 0, 0.0, (rank + 0.5) / sizes[shuffled])
    return np.sort(order[np.argsort(turn, kind="stable")[:count]]).tolist()


def split_off(images: Images, share: float, seed: int, *, least: int = 0) -> tuple[Images, Images]:
    """Divide images into ``share`` of them and the rest, which keeps an image of every class.

    Args:
        images: all.
        share: between 0 and 1.
        seed: of the choice.
        least: fewest images to split off; 0: as many of the share as can be spared.

    Raises:
        UsageError: there are too few images for ``least``, or for the whole share then.
    """
    kept = len(images) - max(least, round(share * len(images)))
    if least and kept < len(images.classes):
        raise UsageError(
            f"{images.name}: {len(images)} images of {len(images.classes)} classes are too few to split off "
            f"{share:g} of them and keep one of each class; allowed: more images, or a smaller val_share"
        )
    rows = in_proportion(images.labels, max(kept, len(images.classes)), seed)
    return images.subset(sorted(set(range(len(images))).difference(rows))), images.subset(rows)


# --- solar cells and digits ---

CELL_CLASSES = ("functional mono", "functional poly", "defective mono", "defective poly")
FUNCTIONAL_SURE, DEFECTIVE_SURE = 0.0, 1.0  # the experts' probability of a defect where they did not hesitate
TEXTURED_COUNTS = {"train": 4000, "val": 1000, "test": 1000}  # of an endless set


def _elpv(split: Any) -> Images:
    """Return the cells of a split that the experts were sure of."""
    from frugal_shared.datasets import elpv  # here, because it imports torch and scikit-learn

    cells = elpv(split)
    probability = cells.probability.numpy()
    labels = 2 * (probability == DEFECTIVE_SURE) + (np.array(cells.cell_type) == "poly")
    sure = np.flatnonzero((probability == FUNCTIONAL_SURE) | (probability == DEFECTIVE_SURE)).tolist()
    return Images(ELPV, CELL_CLASSES, tuple(labels.tolist()), cells.paths, read_cell).subset(sure)


def read_cell(path: Path) -> Image.Image:
    """Read a photograph of a solar cell without its border and in one exposure for all, grey.

    Raises:
        ImageError: it cannot be read.
    """
    from frugal_shared.datasets import normalise_cell

    with opened(path) as photograph:
        return Image.fromarray(normalise_cell(np.asarray(photograph.convert("L"))))


def _digits(split: Any) -> Images:
    """Return the digits of a split, 8×8 pixels."""
    from frugal_shared.datasets import digits

    pixels, labels = digits(split)
    items = tuple((pixels * 255).round().byte().numpy())
    return Images(DIGITS, tuple("0123456789"), tuple(labels.tolist()), items, Image.fromarray)


def _textured(split: Any) -> Images:
    from frugal_shared.datasets import TEXTURES, TexturedDigits

    pixels, labels = TexturedDigits(split).batch(0, TEXTURED_COUNTS[split])
    classes = tuple(f"{digit} {texture}" for digit in range(10) for texture in TEXTURES)
    items = tuple((pixels * 255).round().byte().permute(0, 2, 3, 1).contiguous().numpy())
    return Images(TEXTURED, classes, tuple(labels.tolist()), items, Image.fromarray)


EMBEDDED: dict[str, Callable[[str], Images]] = {DIGITS: _digits, TEXTURED: _textured, ELPV: _elpv}
"""What needs no file of the user's."""


# --- folders ---

SPLIT_FOLDERS = {"train": "train", "validation": "val", "val": "val", "test": "test"}


def _folder(root: Path) -> dict[str, Images]:
    """Return the splits that a folder has, at least ``train``, which is all of it if it has no such subfolder."""
    if not root.is_dir():
        known = ", ".join((*EMBEDDED, f"{TORCHVISION}NAME:ROOT"))
        raise UsageError(f"data={str(root)!r} is unknown; allowed: {known}, a folder")
    name = root.resolve().name
    folders = _split_folders(root)
    classes = tuple(folder.name for folder in class_folders(folders["train"]))
    if len(classes) < 2:
        raise UsageError(f"{folders['train']}: {len(classes)} class folders; allowed: 2 or more, with images in each")
    return {split: images_in(name, classes, _labels_of(folder, classes)) for split, folder in folders.items()}


def _split_folders(root: Path) -> dict[str, Path]:
    if not (root / "train").is_dir() or not class_folders(root / "train"):  # "train" may be a class: of vehicles
        return {"train": root}
    return {split: root / name for name, split in SPLIT_FOLDERS.items() if (root / name).is_dir()}


def _labels_of(root: Path, classes: Sequence[str]) -> dict[Path, int]:
    """Return the label of every class folder."""
    numbers = {name: label for label, name in enumerate(classes)}
    folders = class_folders(root)
    if unknown := [folder for folder in folders if folder.name not in numbers]:
        raise UsageError(f"{unknown[0]}: the training images have no class {unknown[0].name!r}; allowed: their classes")
    return {folder: numbers[folder.name] for folder in folders}


def class_folders(root: Path) -> list[Path]:
    """Return the subfolders, sorted by name; hidden ones are none."""
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def images_in(name: str, classes: tuple[str, ...], folders: Mapping[Path, int]) -> Images:
    """List the image files of some folders, subfolders included, each with its folder's label.

    Raises:
        UsageError: no folder, or a folder without images.
    """
    files = {folder: image_files(folder) for folder in folders}
    if empty := [folder for folder, paths in files.items() if not paths]:
        raise UsageError(f"{empty[0]}: no images in this class folder; allowed: {', '.join(sorted(IMAGE_SUFFIXES))}")
    if not files:
        raise UsageError(f"{name}: no class folders with images; allowed: one per class")
    paths = tuple(path for folder in folders for path in files[folder])
    labels = tuple(label for folder, label in folders.items() for _ in files[folder])
    return Images(name, classes, labels, paths, read_image)


# --- torchvision ---

SPLIT_NAMES = {"train": ("train", "trainval"), "val": ("val", "valid"), "test": ("test",)}
LABEL_ATTRIBUTES = ("targets", "labels", "_labels", "y")  # there is no common one
SAMPLE_ATTRIBUTES = ("samples", "_samples")  # (file, label)


def _torchvision(name: str) -> dict[str, Images]:
    """Return the splits that a torchvision data set has."""
    from torchvision import datasets

    kind, _, root = name.removeprefix(TORCHVISION).partition(":")
    if kind not in datasets.__all__ or not root:
        raise UsageError(f"data={name!r} is unknown; allowed: {TORCHVISION}NAME:ROOT, NAME of torchvision.datasets")
    looked_for = {split: _torchvision_split(getattr(datasets, kind), root, split) for split in SPLITS}
    found = {split: dataset for split, dataset in looked_for.items() if dataset is not None}
    if "train" not in found:
        raise UsageError(f"data={name!r}: torchvision's {kind} has no training split; allowed: one that has")
    labels = {split: _torchvision_labels(kind, dataset) for split, dataset in found.items()}
    classes = _torchvision_classes(found["train"], labels["train"])
    return {split: _torchvision_images(kind, dataset, labels[split], classes) for split, dataset in found.items()}


def _torchvision_split(factory: Any, root: str, split: str) -> Any:
    """Return a split of a torchvision data set, or None if it has none of that name."""
    for options in _split_options(factory, split):
        try:
            return factory(root, **options)
        except ValueError:  # what torchvision raises on another split's name
            continue
        except Exception as error:  # whatever the data set's own code stumbles over where files are missing
            why = _one_line(error).split(". You can use")[0]
            raise UsageError(f"{root}: no {factory.__name__} of torchvision ({why}); nothing is downloaded") from None
    return None


def _split_options(factory: Any, split: str) -> list[dict[str, Any]]:
    """Return how the constructor may call this split: it takes ``train``, or ``split``, or is one whole."""
    parameters = signature(factory).parameters
    if "train" in parameters:
        return {"train": [{"train": True}], "test": [{"train": False}]}.get(split, [])
    if "split" in parameters:
        return [{"split": name} for name in SPLIT_NAMES[split]]
    return [{}] if split == "train" else []


def _torchvision_labels(kind: str, dataset: Any) -> tuple[int, ...]:
    try:
        labels = tuple(index(label) for label in _raw_labels(dataset))
    except (TypeError, ValueError):
        labels = ()
    if not labels:
        raise UsageError(f"torchvision's {kind} does not have one class per image; allowed: e.g. CIFAR100, Food101")
    return labels


def _raw_labels(dataset: Any) -> Iterable[Any]:
    """Return the labels from where a data set keeps them; where that is not known, decode image by image."""
    for attribute in LABEL_ATTRIBUTES:
        if hasattr(dataset, attribute):
            return getattr(dataset, attribute)
    for attribute in SAMPLE_ATTRIBUTES:
        if hasattr(dataset, attribute):
            return [label for _, label in getattr(dataset, attribute)]
    return (dataset[row][1] for row in range(len(dataset)))


def _torchvision_classes(train: Any, labels: Sequence[int]) -> tuple[str, ...]:
    names = getattr(train, "classes", None) or getattr(train, "categories", None) or range(max(labels) + 1)
    return tuple(map(str, names))


def _torchvision_images(kind: str, dataset: Any, labels: tuple[int, ...], classes: tuple[str, ...]) -> Images:
    if not 0 <= min(labels) <= max(labels) < len(classes):
        raise UsageError(f"torchvision's {kind}: labels {min(labels)} to {max(labels)} of {len(classes)} classes")
    return Images(kind, classes, labels, range(len(labels)), partial(_read_torchvision, dataset))


def _read_torchvision(dataset: Any, row: int) -> Image.Image:
    try:
        return eight_bit(dataset[row][0])
    except Exception as error:  # as above
        raise RunError(f"torchvision's {type(dataset).__name__}, image {row}: {_one_line(error)}") from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
