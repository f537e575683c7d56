"""Data sets on disk: MVTec-AD, VisA (raw, or its ``1cls.csv``), ``meta.json``, or a folder of images without masks.

| layout | recognised by | normal / defective images | mask |
|---|---|---|---|
| table | ``split_csv/1cls.csv`` (VisA) | column ``label`` | column ``mask`` |
| list | ``meta.json`` | ``anomaly`` 0 / 1 | ``mask_path`` |
| VisA, raw | ``<category>/Data/Images/`` | ``Normal`` / ``Anomaly`` | ``Data/Masks/Anomaly/<name>.png`` |
| MVTec-AD | ``<category>/test/`` | ``test/good`` / ``test/<defect>`` | ``ground_truth/<defect>/<name>_mask.png`` |
| plain | image files | folder ``good`` / another folder's name / not known | none |

The first that fits is taken, and ``<category>`` itself may be given as well as the folder above it. ``ok`` and
``normal`` mean ``good``, too. Nothing is decoded before a sample is asked for: a damaged image spoils only itself.
"""

import csv
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from clipsam.data.images import read_image, read_mask
from clipsam.samples import GOOD, UNKNOWN, Entry, Sample
from frugal_shared.images import IMAGE_SUFFIXES

Split = Literal["train", "test"]
SPLITS = ("train", "test")
NORMAL_NAMES = frozenset({"good", "normal", "ok"})
MASK_SUFFIXES = (".png", ".bmp", ".tif", ".tiff", ".jpg", ".jpeg")
HELD_BACK = 10
"""Raw VisA has no split: every tenth normal image is for testing (``1cls.csv`` chose others, as many)."""


@dataclass(frozen=True)
class Record:
    """One image of a data set on disk."""

    category: str
    defect: str
    image: Path
    mask: Path | None


@dataclass(frozen=True, eq=False)
class Folder:
    """A data set on disk; see :func:`load_folder`."""

    name: str
    rows: tuple[Record, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        """Read an image and its mask.

        Raises:
            ImageError: either cannot be read, or the mask has another size than the image.
        """
        row = self.rows[index]
        image = read_image(row.image)
        size = image.shape[0], image.shape[1]
        mask = np.zeros(size, bool) if row.mask is None else read_mask(row.mask, size)
        return Sample(image, mask, row.category, row.defect, "", str(row.image))

    @property
    def categories(self) -> tuple[str, ...]:
        """The categories in this data set, sorted."""
        return tuple(sorted({row.category for row in self.rows}))

    @property
    def entries(self) -> Sequence[Entry]:
        """Category, defect and path of every image."""
        return self._entries

    @cached_property  # beside the property, because a protocol's property accepts no other kind
    def _entries(self) -> Sequence[Entry]:
        return tuple(
            Entry(row.category, row.defect, str(row.image), row.defect == GOOD or row.mask is not None)
            for row in self.rows
        )


def load_folder(
    path: str | Path, split: Split = "test", categories: Iterable[str] = (), *, require_normal: bool = True
) -> Folder:
    """List a data set on disk in any of the layouts above.

    Args:
        path: the data set's folder, or that of one category, or a ``meta.json``, or a ``1cls.csv``.
        split: ``"train"`` or ``"test"``; a plain folder has no ``"train"``.
        categories: which of the data set's; default: all.
        require_normal: refuse a data set where every image is known to be defective: image-level figures and false
            alarms could not be measured on it.

    Raises:
        ValueError: nothing there, no layout that fits, a table that lacks a column, an unknown split or category, or
            no normal image.
    """
    if split not in SPLITS:
        raise ValueError(f"split={split!r} is unknown; allowed: {', '.join(SPLITS)}")
    root, rows = _rows(Path(path), split)
    rows = _of_categories(root, rows, tuple(categories))
    if not rows:
        raise ValueError(f"{path}: no images for split={split!r}")
    if require_normal and all(row.defect not in (GOOD, UNKNOWN) for row in rows):
        raise ValueError(f"{path}: none of the {len(rows)} images of split={split!r} is normal; at least one is needed")
    return Folder(root.resolve().name, tuple(rows))


def _rows(path: Path, split: str) -> tuple[Path, list[Record]]:
    """Return the data set's folder and its images."""
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder")
    if path.is_file():
        if path.name not in ("meta.json", "1cls.csv"):
            raise ValueError(f"{path}: not a data set; allowed: a folder, a meta.json or a 1cls.csv")
        path = path.parent if path.name == "meta.json" else path.parent.parent
    for is_layout, read in LAYOUTS:
        if is_layout(path):
            return path, read(path, split)
    raise ValueError(
        f"{path}: no data set in it; allowed: MVTec-AD's folders, VisA's, split_csv/1cls.csv, meta.json, or images"
    )


def _of_categories(root: Path, rows: list[Record], wanted: tuple[str, ...]) -> list[Record]:
    known = sorted({row.category for row in rows})
    unknown = [category for category in wanted if category not in known]
    if unknown:
        raise ValueError(f"category={unknown[0]!r} is not in {root}; allowed: {', '.join(known)}")
    return [row for row in rows if not wanted or row.category in wanted]


# --- VisA's split_csv/1cls.csv: object,split,label,image,mask ---


def _has_table(root: Path) -> bool:
    return (root / "split_csv" / "1cls.csv").is_file()


def _read_table(root: Path, split: str) -> list[Record]:
    path = root / "split_csv" / "1cls.csv"
    fields = ("object", "split", "label", "image", "mask")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file)
            _check_fields(path, fields, table.fieldnames or ())
            lines = [line for line in table if line["split"] == split]
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: no table ({error})") from None
    for line in lines:
        _check_fields(path, fields[:-1], [field for field in fields if line[field] is not None])
    return [_listed(root, line["object"], line["label"], line["image"], line["mask"]) for line in lines]


def _listed(root: Path, category: str, label: str, image: str, mask: str | None) -> Record:
    """Return the row of an image named in a table, whose paths start at the data set's folder."""
    defect = _defect(label)
    return Record(category, defect, root / image, root / mask if mask and defect != GOOD else None)


# --- meta.json: {split: {category: [{img_path, mask_path, specie_name, anomaly}]}} ---


def _has_list(root: Path) -> bool:
    return (root / "meta.json").is_file()


def _read_list(root: Path, split: str) -> list[Record]:
    path = root / "meta.json"
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({error})") from None
    images = listed.get(split) if isinstance(listed, dict) else None
    if not isinstance(images, dict) or not all(isinstance(items, list) for items in images.values()):
        raise ValueError(f"{path}: {split!r} is missing; allowed: {{split: {{category: [image, ...]}}}}")
    return [_item(path, category, item) for category, items in images.items() for item in items]


def _item(path: Path, category: str, item: dict) -> Record:
    _check_fields(path, ("img_path", "anomaly"), item if isinstance(item, dict) else ())
    for field, kinds in (("img_path", str), ("mask_path", str | None), ("specie_name", str | None)):
        if not isinstance(item.get(field), kinds):
            raise ValueError(f"{path}: {field}={item.get(field)!r} of an image; allowed: a text")
    label = (item.get("specie_name") or "defect") if item["anomaly"] else GOOD
    return _listed(path.parent, category, label, item["img_path"], item.get("mask_path"))


# --- VisA as it is downloaded: <category>/Data/{Images/{Normal,Anomaly},Masks/Anomaly} ---


def _raw_categories(root: Path) -> list[Path]:
    return [folder for folder in (root, *_folders(root)) if (folder / "Data" / "Images").is_dir()]


def _read_raw(root: Path, split: str) -> list[Record]:
    return [row for folder in _raw_categories(root) for row in _raw_category(folder, split)]


def _raw_category(folder: Path, split: str) -> list[Record]:
    category, data = folder.resolve().name, folder / "Data"
    normal = _images(data / "Images" / "Normal")
    held_back = normal[::HELD_BACK]
    if split == "train":
        return [Record(category, GOOD, image, None) for image in normal if image not in held_back]
    masks = data / "Masks" / "Anomaly"
    defective = [
        Record(category, "anomaly", image, _mask(masks, image)) for image in _images(data / "Images" / "Anomaly")
    ]
    return [Record(category, GOOD, image, None) for image in held_back] + defective


# --- MVTec-AD: <category>/{train/good,test/<defect>,ground_truth/<defect>} ---


def _mvtec_categories(root: Path) -> list[Path]:
    return [folder for folder in (root, *_folders(root)) if any((folder / split).is_dir() for split in SPLITS)]


def _read_mvtec(root: Path, split: str) -> list[Record]:
    return [
        _mvtec_image(folder, kind.name, image)
        for folder in _mvtec_categories(root)
        for kind in _folders(folder / split)
        for image in _images(kind)
    ]


def _mvtec_image(folder: Path, kind: str, image: Path) -> Record:
    defect = _defect(kind)
    mask = None if defect == GOOD else _mask(folder / "ground_truth" / kind, image)
    return Record(folder.resolve().name, defect, image, mask)


# --- a plain folder ---


def _has_images(root: Path) -> bool:
    return bool(_images(root)) or any(_images(folder) for folder in _folders(root))


def _read_plain(root: Path, split: str) -> list[Record]:
    if split == "train":
        raise ValueError(f"{root}: a plain folder has no masks and no split='train'; allowed: test")
    category = root.resolve().name
    loose = [Record(category, UNKNOWN, image, None) for image in _images(root)]
    sorted_ones = [(_defect(kind.name), image) for kind in _folders(root) for image in _images(kind)]
    return loose + [Record(category, defect, image, None) for defect, image in sorted_ones]


LAYOUTS: tuple[tuple[Callable[[Path], object], Callable[[Path, str], list[Record]]], ...] = (
    (_has_table, _read_table),
    (_has_list, _read_list),
    (_raw_categories, _read_raw),
    (_mvtec_categories, _read_mvtec),
    (_has_images, _read_plain),
)


# --- shared by the layouts ---


def _defect(name: str) -> str:
    return GOOD if name.lower() in NORMAL_NAMES else name


def _mask(folder: Path, image: Path) -> Path:
    """Return the image's mask: ``<name>_mask`` or ``<name>``; the usual name if there is none, to say so when read."""
    names = [f"{image.stem}{ending}{suffix}" for ending in ("_mask", "") for suffix in MASK_SUFFIXES]
    return next((folder / name for name in names if (folder / name).is_file()), folder / names[0])


def _folders(root: Path) -> list[Path]:
    if not root.is_dir():
        return []
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def _images(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    files = (path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    return sorted(path for path in files if path.is_file() and not path.name.startswith("."))


def _check_fields(path: Path, needed: Iterable[str], given: Iterable[str]) -> None:
    missing = [field for field in needed if field not in given]
    if missing:
        raise ValueError(f"{path}: {', '.join(missing)} is missing")
