"""Data sets that show the classes of ImageNet or CIFAR otherwise: what a tuned model does out of its distribution.

====================  ======================================  ==========================================
kind                  layout                                  columns of the classifier that count
====================  ======================================  ==========================================
imagenet-v2           ``<0 … 999>/…``                         all
imagenet-sketch       ``<wnid>/…``                            all
imagenet-r, -a        ``<wnid>/…`` (200 of the 1,000)         those of the folder's classes
imagenet-c            ``<corruption>/<severity>/<wnid>/…``    all
cifar-10-c, -100-c    ``<corruption>.npy``, ``labels.npy``    all
====================  ======================================  ==========================================

A class is found among the model's by its name, never by its place: sorted as text, folder ``10`` comes before ``2``.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from frugal_shared.errors import UsageError, check_choice
from frugal_shared.labelled import Images, class_folders, images_in

SEVERITIES = ("1", "2", "3", "4", "5")
LABELS = "labels.npy"
MASKED = ("imagenet-r", "imagenet-a")
FOLDERS = ("imagenet-v2", "imagenet-sketch", *MASKED)
CIFAR_10 = "airplane automobile bird cat deer dog frog horse ship truck"
CIFAR_100 = (
    "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle "
    "caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant "
    "flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man "
    "maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree "
    "plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper "
    "snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train "
    "trout tulip turtle wardrobe whale willow_tree wolf woman worm"
)
CIFAR = {"cifar-10-c": CIFAR_10.split(), "cifar-100-c": CIFAR_100.split()}
"""The classes by name, in the order of the labels."""
KINDS = (*FOLDERS, "imagenet-c", *CIFAR)


@dataclass(frozen=True)
class Shift:
    """A shifted data set, and which of the classifier's columns it is scored on."""

    name: str
    """The kind; of corruptions followed by ``/<corruption>/<severity>``."""
    mask: tuple[int, ...] | None
    """Columns of the classifier that count, ascending: ``logits[:, mask]`` is what is scored; None: all."""
    load: Callable[[], Images]

    @property
    def images(self) -> Images:
        """The images; their labels are places among the columns that count.

        So ``logits[:, mask].argmax(1)`` is compared with them. Listed anew at every access: the file names of
        all of ImageNet-C would take a gigabyte at once.

        Raises:
            UsageError: a class folder without images.
        """
        return self.load()


def open_shift(spec: str, classes: Sequence[str] | None = None) -> list[Shift]:
    """Open a shifted data set: one of most kinds, one per corruption and severity of the kinds that end in ``-c``.

    Args:
        spec: ``"KIND:FOLDER"`` with one of :data:`KINDS`; the kind is not guessed from the folder.
        classes: the model's, in the order of its columns: WordNet ids ("n01440764") or CIFAR's names; default: the
            1,000 sorted ids of timm's ImageNet classifiers.

    Raises:
        UsageError: an unknown kind, another layout than the kind's, or a class that the model lacks.
    """
    kind, _, folder = spec.partition(":")
    if not folder:
        raise UsageError(f"shift={spec!r} is not possible; allowed: KIND:FOLDER")
    check_choice("kind of shift", kind, KINDS)
    root, classes = Path(folder), tuple(classes or imagenet_classes())
    if not root.is_dir():
        raise UsageError(f"{folder}: no such folder")
    if kind in FOLDERS:
        return [_folder_shift(kind, root, classes, masked=kind in MASKED)]
    return _imagenet_c(kind, root, classes) if kind == "imagenet-c" else _cifar_c(kind, root, classes)


def imagenet_classes() -> tuple[str, ...]:
    """Return ImageNet-1k's WordNet ids in the order of the columns of its classifiers."""
    from timm.data import ImageNetInfo  # pyright: ignore[reportAttributeAccessIssue]

    return tuple(ImageNetInfo().label_names())


def _columns(root: Path, names: Iterable[str], classes: Sequence[str]) -> list[int]:
    """Return the model's column of every class."""
    columns = {name: column for column, name in enumerate(classes)}
    names = list(names)
    if missing := [name for name in names if name not in columns]:
        raise UsageError(
            f"{root}: the model has no class {missing[0]!r}, nor {len(missing) - 1} others of {len(names)}; "
            f"allowed: a model of {len(names)} classes with these names"
        )
    return [columns[name] for name in names]


# --- folders of classes ---


def _folder_shift(name: str, root: Path, classes: tuple[str, ...], *, masked: bool) -> Shift:
    columns = _folder_columns(name, root, classes)
    if not masked:
        return Shift(name, None, partial(images_in, name, classes, columns))
    mask = tuple(sorted(columns.values()))
    labels = {folder: mask.index(column) for folder, column in columns.items()}
    return Shift(name, mask, partial(images_in, name, tuple(classes[column] for column in mask), labels))


def _folder_columns(name: str, root: Path, classes: Sequence[str]) -> Mapping[Path, int]:
    """Return the model's column of every class folder."""
    folders = class_folders(root)
    if not folders:
        raise UsageError(f"{root}: no class folders; allowed: one per class of {name}")
    names = [folder.name for folder in folders]
    wnids = _numbered(root, names) if name == "imagenet-v2" else names
    return dict(zip(folders, _columns(root, wnids, classes), strict=True))


def _numbered(root: Path, names: Sequence[str]) -> list[str]:
    """Return the WordNet ids of ImageNet-V2's folders, which are named by their place."""
    wnids = imagenet_classes()
    if wrong := [name for name in names if not name.isdecimal() or int(name) >= len(wnids)]:
        raise UsageError(f"{root}: class folder {wrong[0]!r} is not imagenet-v2's; allowed: 0 to {len(wnids) - 1}")
    return [wnids[int(name)] for name in names]


def _imagenet_c(kind: str, root: Path, classes: tuple[str, ...]) -> list[Shift]:
    found = [(corruption, severity) for corruption in class_folders(root) for severity in class_folders(corruption)]
    if wrong := [severity for _, severity in found if severity.name not in SEVERITIES]:
        raise UsageError(f"{wrong[0]}: not a severity; allowed: {root}/<corruption>/<1 to 5>/<wnid>")
    if not found:
        raise UsageError(f"{root}: no corruptions; allowed: {root}/<corruption>/<1 to 5>/<wnid>")
    return [
        _folder_shift(f"{kind}/{corruption.name}/{severity.name}", severity, classes, masked=False)
        for corruption, severity in found
    ]


# --- CIFAR's arrays ---


def _cifar_c(kind: str, root: Path, classes: tuple[str, ...]) -> list[Shift]:
    """Return five shifts per array: the severities lie behind each other in it, and so do their labels."""
    columns, labels = np.array(_columns(root, CIFAR[kind], classes)), _cifar_labels(kind, root / LABELS)
    files = sorted(path for path in root.glob("*.npy") if path.name != LABELS)
    if not files:
        raise UsageError(f"{root}: no corruptions; allowed: <corruption>.npy beside {LABELS}")
    for path in files:
        _check_stack(path, len(labels))
    size = len(labels) // len(SEVERITIES)
    blocks = {severity: range(place * size, (place + 1) * size) for place, severity in enumerate(SEVERITIES)}
    numbers = {severity: tuple(columns[labels[rows]].tolist()) for severity, rows in blocks.items()}
    return [
        _cifar_shift(f"{kind}/{path.stem}/{severity}", classes, numbers[severity], path, rows)
        for path in files
        for severity, rows in blocks.items()
    ]


def _cifar_shift(name: str, classes: tuple[str, ...], labels: tuple[int, ...], path: Path, rows: range) -> Shift:
    return Shift(name, None, partial(Images, name, classes, labels, rows, partial(_read_row, path)))


def _cifar_labels(kind: str, path: Path) -> NDArray:
    labels, names = _array(path), CIFAR[kind]
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or not np.isin(labels, range(len(names))).all():
        raise UsageError(f"{path}: not labels of {kind}; allowed: numbers 0 to {len(names) - 1}")
    return labels


def _read_row(path: Path, row: int) -> Image.Image:
    return Image.fromarray(np.array(_array(path)[row]))


def _array(path: Path) -> NDArray:
    """Return an array as it lies on the disk: one of CIFAR-C's is 154 MB."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file") from None
    except Exception as error:  # a damaged file raises whatever its reader stumbles over
        raise UsageError(f"{path}: not an array ({' '.join(str(error).split())})") from None


def _check_stack(path: Path, count: int) -> None:
    images = _array(path)
    if images.dtype != np.uint8 or images.shape != (count, 32, 32, 3) or count % len(SEVERITIES):
        raise UsageError(
            f"{path}: {images.dtype} {images.shape} with {count} labels; "
            f"allowed: uint8 (N, 32, 32, 3) with N labels, N a multiple of {len(SEVERITIES)}"
        )
