"""Labelled images by name: solar cells, digits, a torchvision data set, or a folder with a subfolder per class.

Nothing is ever downloaded, and no image is decoded before it is asked for. Which images validate follows from the data
and the seed alone: two runs are comparable, and their weights may be averaged, only if they were given the same seed
here. The test images are never what something is selected by.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from frugal_shared.errors import RunError, UsageError
from frugal_shared.rgb import as_rgb

ELPV, DIGITS, TEXTURED = "elpv", "digits", "textured-digits"
NAMES = (ELPV, DIGITS, TEXTURED)
SPLITS = ("train", "val", "test")
TORCHVISION = "torchvision:"
IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What a file may be, whatever its name says: Pillow would also hand PostScript to Ghostscript, which runs it."""
MAX_PIXELS = 64 * 2**20
"""Images with more pixels are refused before they are decoded; as many take 192 MB as RGB."""


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
    """From an item to an RGB image; a function of a module (or a partial of one), so that workers can be sent it."""

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        """Return an RGB image and its label.

        Raises:
            RunError: the image cannot be read; the message names its file.
        """
        return self.read(self.items[index]), self.labels[index]

    def subset(self, rows: Iterable[int]) -> "Images":
        """Return the images of these rows, in this order."""
        rows = tuple(rows)
        items = tuple(self.items[row] for row in rows)
        return Images(self.name, self.classes, tuple(self.labels[row] for row in rows), items, self.read)

    def limited(self, count: int, *, seed: int = 0) -> "Images":
        """Return at most ``count`` images, of each class in proportion (see :func:`stratified`)."""
        return self if count >= len(self) else self.subset(stratified(self.labels, count, seed=seed))


@dataclass(frozen=True)
class Splits:
    """Images to train on, to select by, and to report."""

    train: Images
    val: Images
    test: Images


def open_data(name: str, *, seed: int = 0, samples: int | None = None, val_share: float = 0.2) -> Splits:
    """Open a data set by name.

    Args:
        name: one of :data:`NAMES`, ``"torchvision:NAME:ROOT"``, or a folder: its subfolders are the classes, or
            ``train`` and optionally ``val`` (or ``validation``) and ``test`` hold them.
        seed: of the split, where the data has none, and of ``samples``.
        samples: at most so many training images, of each class in proportion; default: all.
        val_share: share of the training images that validate, where the data has no validation images of its own. Where
            it has no test images either, as large a share of all is split off for them before.

    Raises:
        UsageError: no such data set, no classes or too few images, a class without images, or a class that the
            training images lack.
        RunError: the ``[demo]`` extra, which brings the solar cells, is missing.
        ImportError: scikit-learn, of the same extra, or torchvision is missing.
    """
    splits = _open(name, seed, val_share)
    if samples is None:
        return splits
    if samples < len(splits.train.classes):
        raise UsageError(
            f"samples={samples!r} is too few; allowed: one per class, {len(splits.train.classes)}, or more"
        )
    return replace(splits, train=splits.train.limited(samples, seed=seed))


def _open(name: str, seed: int, val_share: float) -> Splits:
    if name in NAMES:
        return Splits(*({ELPV: _elpv, DIGITS: _digits, TEXTURED: _textured}[name](split) for split in SPLITS))
    parts = _torchvision(name) if name.startswith(TORCHVISION) else _folder(Path(name))
    test, train = (parts["test"], parts["train"]) if "test" in parts else split_off(parts["train"], val_share, seed)
    val, train = (parts["val"], train) if "val" in parts else split_off(train, val_share, seed)
    return Splits(train, val, test)


def check_images(images: Images) -> None:
    """Read the header of every image file, which takes far less time than decoding all.

    Raises:
        RunError: some cannot be read as images; the message names the first and counts the others.
    """
    errors = [error for item in images.items if isinstance(item, Path) if (error := _header_error(item))]
    if errors:
        others = f" (and {len(errors) - 1} other files)" if len(errors) > 1 else ""
        raise RunError(f"{errors[0]}{others}")


def _header_error(path: Path) -> RunError | None:
    try:
        with _opened(path):
            return None
    except RunError as error:
        return error


# --- splitting ---


def stratified(labels: Sequence[int], count: int, *, seed: int = 0) -> list[int]:
    """Choose images at random, of each class in proportion.

    Every class gets one image first, as far as ``count`` goes; the others are apportioned by Webster's method, that is
    in the order of (rank within the class + ½) / class size. A smaller choice is part of every larger one.

    Args:
        labels: of all images, 0 or more.
        count: how many to choose.
        seed: of the choice.

    Returns:
        Row numbers, ascending.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    shuffled = np.asarray(labels, dtype=np.int64)[order]
    rank, size = np.empty(len(order)), np.bincount(shuffled)[shuffled]
    for label in np.unique(shuffled):
        members = np.flatnonzero(shuffled == label)
        rank[members] = np.arange(len(members))
    turn = np.where(rank == 0, 0.0, (rank + 0.5) / size)
    return np.sort(order[np.argsort(turn, kind="stable")[:count]]).tolist()


def split_off(images: Images, share: float, seed: int = 0) -> tuple[Images, Images]:
    """Divide images into ``share`` of them, at least one, and the rest, which keeps an image of every class.

    Raises:
        UsageError: there are too few images for that.
    """
    kept = len(images) - max(1, round(share * len(images)))
    if kept < len(images.classes):
        raise UsageError(
            f"{images.name}: {len(images)} images of {len(images.classes)} classes are too few to split off "
            f"{share:g} of them and keep one of each class; allowed: more images, or a smaller val_share"
        )
    rows = stratified(images.labels, kept, seed=seed)
    return images.subset(sorted(set(range(len(images))).difference(rows))), images.subset(rows)


# --- solar cells and digits ---

CELL_CLASSES = ("functional mono", "functional poly", "defective mono", "defective poly")
FUNCTIONAL_SURE, DEFECTIVE_SURE = 0.0, 1.0  # the experts' probability of a defect where they did not hesitate
DIGIT_SIDE = 32  # pixels that the digits' 8 are enlarged to
TEXTURED_COUNTS = {"train": 4000, "val": 1000, "test": 1000}  # of an endless set


def _elpv(split: Any) -> Images:
    """Return the cells of a split that the experts were sure of."""
    from frugal_shared.datasets import elpv

    cells = elpv(split)
    probability = cells.probability.numpy()
    labels = 2 * (probability == DEFECTIVE_SURE) + (np.array(cells.cell_type) == "poly")
    sure = np.flatnonzero((probability == FUNCTIONAL_SURE) | (probability == DEFECTIVE_SURE)).tolist()
    return Images(ELPV, CELL_CLASSES, tuple(labels.tolist()), cells.paths, read_cell).subset(sure)


def read_cell(path: Path) -> Image.Image:
    """Read a photograph of a solar cell without its border and in one exposure for all, as RGB.

    Raises:
        RunError: it cannot be read.
    """
    return Image.fromarray(_cell(path)).convert("RGB")


@cache  # a training reads each cell in every epoch; all of them, decoded, are 155 MB
def _cell(path: Path) -> NDArray[np.uint8]:
    from frugal_shared.datasets import normalise_cell

    with _opened(path) as photograph:
        return normalise_cell(np.asarray(photograph.convert("L")))


def _digits(split: Any) -> Images:
    from frugal_shared.datasets import digits

    pixels, labels = digits(split)
    items = tuple((pixels * 255).round().byte().numpy())
    return Images(DIGITS, tuple("0123456789"), tuple(labels.tolist()), items, _enlarged)


def _enlarged(pixels: NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(pixels).resize((DIGIT_SIDE, DIGIT_SIDE), Image.Resampling.BICUBIC).convert("RGB")


def _textured(split: Any) -> Images:
    from frugal_shared.datasets import TEXTURES, TexturedDigits

    pixels, labels = TexturedDigits(split).batch(0, TEXTURED_COUNTS[split])
    classes = tuple(f"{digit} {texture}" for digit in range(10) for texture in TEXTURES)
    items = tuple((pixels * 255).round().byte().permute(0, 2, 3, 1).contiguous().numpy())
    return Images(TEXTURED, classes, tuple(labels.tolist()), items, Image.fromarray)


# --- folders ---

SPLIT_FOLDERS = {"train": "train", "validation": "val", "val": "val", "test": "test"}


def _folder(root: Path) -> dict[str, Images]:
    """Return the splits that a folder has, at least ``train``, which is all of it if it has no such subfolder."""
    if not root.is_dir():
        raise UsageError(
            f"data={str(root)!r} is unknown; allowed: {', '.join(NAMES)}, {TORCHVISION}NAME:ROOT, a folder"
        )
    name = root.resolve().name
    folders = _split_folders(root)
    classes = tuple(folder.name for folder in class_folders(folders["train"]))
    if len(classes) < 2:
        raise UsageError(f"{folders['train']}: {len(classes)} class folders; allowed: 2 or more, with images in each")
    return {split: labelled(name, classes, _labels_of(folder, classes)) for split, folder in folders.items()}


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


def labelled(name: str, classes: tuple[str, ...], folders: Mapping[Path, int]) -> Images:
    """List the image files of some folders, subfolders included, each with its folder's label.

    Raises:
        UsageError: no folder, or a folder without images.
    """
    files = {folder: _image_files(folder) for folder in folders}
    if empty := [folder for folder, paths in files.items() if not paths]:
        raise UsageError(f"{empty[0]}: no images in this class folder; allowed: {', '.join(sorted(IMAGE_SUFFIXES))}")
    if not files:
        raise UsageError(f"{name}: no class folders with images; allowed: one per class")
    paths = tuple(path for folder in folders for path in files[folder])
    labels = tuple(label for folder, label in folders.items() for _ in files[folder])
    return Images(name, classes, labels, paths, read_image)


def _image_files(folder: Path) -> list[Path]:
    files = (path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    return sorted(path for path in files if path.is_file() and not path.name.startswith("."))


# --- torchvision ---

SPLIT_NAMES = {"train": ("train", "trainval"), "val": ("val", "valid"), "test": ("test",)}
LABEL_ATTRIBUTES = (
    "targets",
    "labels",
    "_labels",
    "y",
)  # there is no common one, and reading labels one by one decodes
SAMPLE_ATTRIBUTES = ("samples", "_samples")  # (file, label)


def _torchvision(name: str) -> dict[str, Images]:
    """Return the splits that a torchvision data set has."""
    from torchvision import datasets

    kind, _, root = name.removeprefix(TORCHVISION).partition(":")
    if kind not in datasets.__all__ or not root:
        raise UsageError(
            f"data={name!r} is unknown; allowed: {TORCHVISION}NAME:ROOT with a name of torchvision.datasets"
        )
    found = {split: _torchvision_split(getattr(datasets, kind), root, split) for split in SPLITS}
    if found["train"] is None:
        raise UsageError(f"data={name!r}: torchvision's {kind} has no training split")
    return {split: _torchvision_images(kind, dataset) for split, dataset in found.items() if dataset is not None}


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


def _torchvision_images(kind: str, dataset: Any) -> Images:
    labels = _torchvision_labels(kind, dataset)
    names = getattr(dataset, "classes", None) or getattr(dataset, "categories", None) or range(max(labels) + 1)
    if not 0 <= min(labels) <= max(labels) < len(names):
        raise UsageError(f"torchvision's {kind}: labels {min(labels)} to {max(labels)} of {len(names)} classes")
    return Images(kind, tuple(map(str, names)), labels, range(len(labels)), partial(_read_torchvision, dataset))


def _torchvision_labels(kind: str, dataset: Any) -> tuple[int, ...]:
    for attribute in LABEL_ATTRIBUTES:
        if hasattr(dataset, attribute):
            return tuple(int(label) for label in getattr(dataset, attribute))
    for attribute in SAMPLE_ATTRIBUTES:
        if hasattr(dataset, attribute):
            return tuple(int(label) for _, label in getattr(dataset, attribute))
    raise UsageError(f"torchvision's {kind} is not known to have one class per image; allowed: e.g. CIFAR100, Food101")


def _read_torchvision(dataset: Any, row: int) -> Image.Image:
    try:
        return as_rgb(dataset[row][0])
    except Exception as error:  # as above
        raise RunError(f"torchvision's {type(dataset).__name__}, image {row}: {_one_line(error)}") from None


# --- reading a file ---


def read_image(path: Path) -> Image.Image:
    """Read a photograph, whatever it was saved as, within a bounded amount of memory.

    Turned as its EXIF orientation says. Grey and palette images become RGB; transparent ones are laid over white;
    16-bit grey is divided by 257 (floating-point files are stretched from their least to their greatest value instead,
    for nothing states their range). Of an animation or a stack, the first picture.

    Raises:
        RunError: missing, empty, damaged or unknown, or more than :data:`MAX_PIXELS` pixels; the message names it.
    """
    with _opened(path) as image:
        return as_rgb(ImageOps.exif_transpose(image))


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open an image and turn whatever goes wrong inside the ``with`` block into a :class:`RunError`."""
    try:
        with warnings.catch_warnings():
            # Pillow warns of sizes below ours and of odd metadata; neither is the reader's concern
            warnings.simplefilter("ignore")
            with Image.open(path, formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise Image.DecompressionBombError
                yield image
    except Image.DecompressionBombError:
        raise RunError(f"{path}: too many pixels; allowed: at most {MAX_PIXELS:,}") from None
    except FileNotFoundError:
        raise RunError(f"{path}: no such file") from None
    except UnidentifiedImageError:
        why = "the file is empty" if path.stat().st_size == 0 else "not an image that can be read"
        raise RunError(f"{path}: {why}") from None
    except Exception as error:  # on damaged files Pillow's readers raise whatever their parsers stumble over
        raise RunError(f"{path}: cannot be read as an image ({_one_line(error)})") from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
