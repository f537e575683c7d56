"""Data sets on disk, in the layouts that they are published in, or a folder of images with masks or without.

| layout | recognised by | normal / defective images | mask |
|---|---|---|---|
| table | ``split_csv/1cls.csv`` (VisA) | column ``label`` | column ``mask`` |
| list | ``meta.json`` | ``anomaly`` 0 / 1 | ``mask_path`` |
| VisA, raw | ``<category>/Data/Images/`` | ``Normal`` / ``Anomaly`` | ``Data/Masks/Anomaly/<name>.png`` |
| magnetic tiles | ``MT_<kind>/Imgs/`` | ``MT_Free`` / another kind | the ``.png`` beside the ``.jpg`` |
| KolektorSDD2 | ``<name>_GT.png`` in ``test/`` | a black mask / another one | ``<name>_GT.png`` beside it |
| MVTec-AD | ``<category>/test/`` | ``test/good`` / ``test/<defect>`` | ``ground_truth/<defect>/<name>_mask.png`` |
| MVTec-LOCO | as above | as above | all files of ``ground_truth/<defect>/<name>/`` |
| MVTec-AD2 | ``<category>/test_public/`` | as above | ``test_public/ground_truth/bad/<name>_mask.png`` |
| plain | image files | by folders, or black masks / other ones | by name, in ``mask/`` or the like |

The first that fits is taken, and ``<category>`` itself may be given as well as the folder above it. A mask's name is
its image's, with ``_mask``, ``_gt`` or ``_label`` behind it or without, in any case, of any kind of image file. ``ok``
and ``normal`` mean ``good``, too. A plain folder may be nested: ``line 2/good/a.png`` shows the category "line 2";
``bad``, ``defective`` and the like mean a defect. Nothing is decoded before a sample is asked for, but masks where
they alone tell what is normal: a damaged image spoils only itself. Where a tree has no ``ground_truth/``, nobody knows
the pixels.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from clipsam.data.images import camera_bits, read_image, read_mask
from clipsam.data.layouts import (
    Record,
    has_images,
    has_list,
    has_pairs,
    has_table,
    mvtec_categories,
    raw_categories,
    read_list,
    read_mvtec,
    read_pairs,
    read_plain,
    read_raw,
    read_table,
    read_tiles,
    tile_kinds,
)
from clipsam.samples import GOOD, UNKNOWN, Entry, Sample

Split = Literal["train", "test"]
SPLITS = ("train", "test")
TABLES = ("meta.json", "1cls.csv")

LAYOUTS: tuple[tuple[Callable[[Path], object], Callable[[Path, str], list[Record]]], ...] = (
    (has_table, read_table),
    (has_list, read_list),
    (raw_categories, read_raw),
    (tile_kinds, read_tiles),
    (has_pairs, read_pairs),
    (mvtec_categories, read_mvtec),
    (has_images, read_plain),
)


@dataclass(frozen=True, eq=False)
class Folder:
    """A data set on disk; see :func:`load_folder`."""

    name: str
    rows: tuple[Record, ...]
    bits: int | None = None
    """How many bits 16-bit grey images use; unset: see :func:`~clipsam.data.images.camera_bits`."""

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        """Read an image and its mask.

        Raises:
            ImageError: either cannot be read, or the mask has another size than the image.
        """
        row = self.rows[index]
        image = read_image(row.image, self.depth)
        size = image.shape[0], image.shape[1]
        mask = np.zeros(size, bool) if row.mask is None else read_mask(row.mask, size)
        return Sample(image, mask, row.category, row.defect, "", str(row.image))

    @cached_property
    def depth(self) -> int | None:
        """How many bits 16-bit grey images use; None: all, or there are none."""
        return self.bits or camera_bits(row.image for row in self.rows)

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
    path: str | Path,
    split: Split = "test",
    categories: Iterable[str] = (),
    *,
    require_normal: bool = True,
    mask_dir: str | Path | None = None,
    category: str | None = None,
    bits: int | None = None,
) -> Folder:
    """List a data set on disk in any of the layouts above.

    Args:
        path: the data set's folder, or that of one category, or a ``meta.json``, or a ``1cls.csv``.
        split: ``"train"`` or ``"test"``; a plain folder has no ``"train"``.
        categories: which of the data set's; default: all.
        require_normal: refuse a data set where every image is known to be defective: image-level figures and false
            alarms could not be measured on it.
        mask_dir: where the masks of a plain folder are; unset: below folders that are called so.
        category: what all images show, where the folders' names do not say it.
        bits: how many bits 16-bit grey images use; unset: see :func:`~clipsam.data.images.camera_bits`.

    Raises:
        ValueError: nothing there, no layout that fits, a table that lacks a column, an unknown split or category, no
            normal image, or a folder of masks beside another layout.
    """
    if split not in SPLITS:
        raise ValueError(f"split={split!r} is unknown; allowed: {', '.join(SPLITS)}")
    root, rows = _rows(Path(path), split, None if mask_dir is None else Path(mask_dir))
    rows = _of_categories(root, rows, tuple(categories))
    if not rows:
        raise ValueError(f"{path}: no images for split={split!r}")
    if require_normal and all(row.defect not in (GOOD, UNKNOWN) for row in rows):
        raise ValueError(f"{path}: none of the {len(rows)} images of split={split!r} is normal; at least one is needed")
    if category is not None:
        rows = [replace(row, category=category) for row in rows]
    return Folder(root.resolve().name, tuple(rows), bits)


def _rows(path: Path, split: str, mask_dir: Path | None) -> tuple[Path, list[Record]]:
    """Return the data set's folder and its images."""
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder")
    if path.is_file():
        if path.name not in TABLES:
            raise ValueError(f"{path}: not a data set; allowed: a folder, a meta.json or a 1cls.csv")
        path = path.parent if path.name == "meta.json" else path.parent.parent
    if mask_dir is not None:
        return path, _with_masks(path, split, mask_dir)
    for is_layout, read in LAYOUTS:
        if is_layout(path):
            return path, read(path, split)
    raise ValueError(
        f"{path}: no data set in it; allowed: MVTec-AD's folders, VisA's, split_csv/1cls.csv, meta.json, or images"
    )


def _with_masks(path: Path, split: str, mask_dir: Path) -> list[Record]:
    """Return the images of a plain folder whose masks lie elsewhere.

    Raises:
        ValueError: no such folder of masks, no image has one, or another layout.
    """
    if not mask_dir.is_dir():
        raise ValueError(f"mask_dir={str(mask_dir)!r} is no folder; allowed: one with masks named like the images")
    rows = read_plain(path, split, mask_dir)
    if not any(row.mask for row in rows):
        raise ValueError(f"mask_dir={str(mask_dir)!r} has no mask of an image in {path}; allowed: names like theirs")
    return rows


def _of_categories(root: Path, rows: list[Record], wanted: tuple[str, ...]) -> list[Record]:
    known = sorted({row.category for row in rows})
    unknown = [category for category in wanted if category not in known]
    if unknown:
        raise ValueError(f"category={unknown[0]!r} is not in {root}; allowed: {', '.join(known)}")
    return [row for row in rows if not wanted or row.category in wanted]
