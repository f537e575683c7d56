"""What can be trained on and what can be evaluated on, by name; no image is both.

Drawn images, painted photographs, real solar cells, and data sets on disk. Of the drawn images one half of the
categories is trained on, the held-out one evaluated on, with seeds far from each other. Solar cells are ELPV's test
split.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from clipsam.data.cells import CELL, ELPV, functional_cells, solar_cells, training_cells
from clipsam.data.derived import Joined, Subset
from clipsam.data.folders import Folder, load_folder
from clipsam.data.photographs import PHOTOGRAPHS, Painted
from clipsam.data.procedural import HELD_OUT_CATEGORIES, TRAIN_CATEGORIES, Procedural
from clipsam.samples import AnomalyData
from frugal_shared.errors import UsageError
from frugal_shared.images import check_files

PROCEDURAL, PAINTED, CELLS = "procedural", "photographs", "cells"
NAMES = (PROCEDURAL, PAINTED, CELLS, *ELPV)
EMPTY: Mapping[str, Any] = MappingProxyType({})

TRAINED_CATEGORIES = f"{PROCEDURAL}/train-categories"
"""What provenance calls the half of the drawn categories that is trained on."""
SHARES = {PROCEDURAL: 3, PAINTED: 1}  # of the images to train on: photographs there are only ten

# added to the seed: far from each other
VAL_SEED = 1_000_000
EVAL_SEED = 10_000
REFERENCE_SEED = 20_000
REFERENCE_DEFECTS = 0.2  # share of drawn references that are defective: most are sound, and nobody says which


def training_data(
    names: Iterable[str], images: int, val_images: int, seed: int, reading: Mapping[str, Any] = EMPTY
) -> tuple[AnomalyData, AnomalyData]:
    """Return what to train on and, of other images, what to validate on.

    Args:
        names: "procedural" (the half of the categories that may be trained on), "photographs", or folders of data
            sets, whose test split is the one with masks.
        images: how many drawn images.
        val_images: how many drawn images to validate on; folders hold back as many, but at most a fifth, and at least
            one defective image.
        seed: of everything that is drawn.
        reading: options of :func:`~clipsam.data.folders.load_folder`.

    Raises:
        ValueError: a folder without a data set, or without two defective images whose masks are known.
        ImageError: a folder with a file that is no image.
    """
    names = tuple(dict.fromkeys(names))
    check_mask_dir(names, reading)
    total = sum(SHARES.get(name, 0) for name in names)
    train, val = [], []
    for name in names:
        if name in SHARES:
            share = SHARES[name] / total
            train.append(drawn(name, round(images * share), seed))
            val.append(drawn(name, round(val_images * share), seed + VAL_SEED))
        else:
            data = load_folder(name, "test", require_normal=False, **reading)
            check_files(path for row in data.rows for path in (row.image, row.mask) if path is not None)
            held_back = held_back_rows(data, val_images)
            val.append(Subset(data, held_back))
            known = [row for row, entry in enumerate(data.entries) if entry.has_mask and row not in set(held_back)]
            train.append(Subset(data, tuple(known)))
    return Joined(tuple(train)), Joined(tuple(val))


def held_back_rows(data: Folder, count: int) -> tuple[int, ...]:
    """Return the rows to validate on: evenly of the normal images and of the defective ones, of these at least one.

    Raises:
        ValueError: fewer than two defective images have masks: one to train on and one to validate on.
    """
    known = [(row, entry.is_anomalous) for row, entry in enumerate(data.entries) if entry.has_mask]
    defective = [row for row, is_anomalous in known if is_anomalous]
    if len(defective) < 2:
        raise UsageError(f"data={data.name!r} has {len(defective)} defective images with masks; allowed: 2 or more")
    ordered = [row for row, is_anomalous in known if not is_anomalous] + defective
    rows = ordered[:: max(5, len(ordered) // count)]
    return tuple(sorted(rows if set(rows) & set(defective) else [*rows, defective[0]]))


def check_mask_dir(names: Iterable[str], reading: Mapping[str, Any]) -> None:
    """Refuse a folder of masks that would be of several data sets, or of none.

    Raises:
        ValueError: there is not just one folder of images.
    """
    folders = [name for name in names if name not in NAMES]
    if reading.get("mask_dir") is not None and len(folders) != 1:
        raise UsageError(f"mask_dir={str(reading['mask_dir'])!r} with {len(folders)} data folders; allowed: one")


def drawn(name: str, count: int, seed: int) -> AnomalyData:
    """Return drawn images of training categories, or photographs with painted defects."""
    if name == PROCEDURAL:
        return Procedural(count, TRAIN_CATEGORIES, seed=seed, name=TRAINED_CATEGORIES)
    return Painted(count, seed=seed)


def open_data(name: str, samples: int, seed: int, reading: Mapping[str, Any] = EMPTY) -> AnomalyData:
    """Return a data set to evaluate on.

    Args:
        name: one of :data:`NAMES`, or a data set's folder.
        samples: how many images, of a data set that is drawn.
        seed: of everything that is drawn.
        reading: options of :func:`~clipsam.data.folders.load_folder`, of a data set that is a folder.

    Raises:
        ValueError: no such name or folder, or no data set in the folder.
        RunError: ELPV's package, of the ``[demo]`` extra, is missing.
        ImportError: scikit-image, of the same extra, is missing.
    """
    seed += EVAL_SEED
    if name == PROCEDURAL:
        return Procedural(samples, HELD_OUT_CATEGORIES, 256, seed=seed)
    if name == PAINTED:
        return Painted(samples, seed=seed)
    if name == CELLS:
        return Painted(samples, {CELL: functional_cells()}, seed=seed, crop=1.0, grey_share=0, name=CELLS)
    if name in ELPV:
        return solar_cells(name)
    if not Path(name).exists():
        raise UsageError(f"data={name!r} is unknown; allowed: {', '.join(NAMES)}, or a folder")
    return load_folder(name, "test", require_normal=False, **reading)


def open_references(name: str, count: int, seed: int, reading: Mapping[str, Any] = EMPTY) -> AnomalyData:
    """Return other images of a data set's categories, drawn from its train split whatever their labels.

    Args:
        name: as in :func:`open_data`.
        count: how many of each category.
        seed: of the draw.
        reading: as in :func:`open_data`.

    Raises:
        ValueError: no such name or folder, no train split, or too few images in it.
        RunError, ImportError: as in :func:`open_data`.
    """
    seed += REFERENCE_SEED
    if name == PROCEDURAL:
        count *= len(HELD_OUT_CATEGORIES)
        return Procedural(count, HELD_OUT_CATEGORIES, 256, seed=seed, defect_share=REFERENCE_DEFECTS)
    if name == PAINTED:
        return Painted(count * len(PHOTOGRAPHS), seed=seed, defect_share=REFERENCE_DEFECTS)
    if name == CELLS or name in ELPV:
        return some_of(training_cells(name), count, seed)
    unmasked: dict[str, Any] = {**reading, "mask_dir": None}  # references have no labels
    return some_of(load_folder(name, "train", require_normal=False, **unmasked), count, seed)


def some_of(data: AnomalyData, count: int, seed: int) -> Subset:
    """Draw as many images of every category.

    Raises:
        ValueError: a category has fewer.
    """
    rows: list[int] = []
    for number, category in enumerate(data.categories):
        own = [row for row, entry in enumerate(data.entries) if entry.category == category]
        if len(own) < count:
            raise UsageError(f"references={count!r} of {category!r} in {data.name}; allowed: 0 to {len(own)}")
        rows += np.random.default_rng([seed, number]).permutation(own)[:count].tolist()
    return Subset(data, tuple(rows))
