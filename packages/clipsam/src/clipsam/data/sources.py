"""What can be evaluated on, by name: drawn images, painted photographs, real solar cells, and data sets on disk.

Nothing of it is trained on: of the drawn images the held-out half of the categories, and seeds far from the training's.
Solar cells are ELPV's test split (CC BY-NC-SA 4.0: never train on it what is shipped).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from clipsam.data.folders import load_folder
from clipsam.data.photographs import PHOTOGRAPHS as PHOTOGRAPH_NAMES
from clipsam.data.photographs import Painted
from clipsam.data.procedural import HELD_OUT_CATEGORIES, Procedural
from clipsam.data.sample import GOOD, AnomalyData, Entry, Sample
from clipsam.data.training import PHOTOGRAPHS, PROCEDURAL, Subset
from frugal_shared.errors import UsageError

if TYPE_CHECKING:
    from frugal_shared.datasets import CellType, SolarCells

CELLS = "cells"
ELPV: dict[str, "CellType"] = {"elpv-mono": "mono", "elpv-poly": "poly"}
NAMES = (PROCEDURAL, PHOTOGRAPHS, CELLS, *ELPV)

EVAL_SEED = 10_000  # added to the seed: far from any that is trained with
REFERENCE_SEED = 20_000  # likewise, and far from what is evaluated
REFERENCE_DEFECTS = 0.2  # share of drawn references that are defective: most are sound, and nobody says which
CELL, DEFECTIVE = "solar cell", "defective"
FUNCTIONAL_SURE, DEFECTIVE_SURE = 0.0, 1.0  # the experts' probability of a defect where they did not hesitate


def open_data(name: str, samples: int, seed: int) -> AnomalyData:
    """Return a data set to evaluate on.

    Args:
        name: one of :data:`NAMES`, or a data set's folder.
        samples: how many images, of a data set that is drawn.
        seed: of everything that is drawn.

    Raises:
        ValueError: no such name or folder, or no data set in the folder.
        RunError: ELPV's package, of the ``[demo]`` extra, is missing.
        ImportError: scikit-image, of the same extra, is missing.
    """
    seed += EVAL_SEED
    if name == PROCEDURAL:
        return Procedural(samples, HELD_OUT_CATEGORIES, 256, seed=seed)
    if name == PHOTOGRAPHS:
        return Painted(samples, seed=seed)
    if name == CELLS:
        return Painted(samples, {CELL: functional_cells()}, seed=seed, crop=1.0, grey_share=0, name=CELLS)
    if name in ELPV:
        return solar_cells(name)
    if not Path(name).exists():
        raise UsageError(f"data={name!r} is unknown; allowed: {', '.join(NAMES)}, or a folder")
    return load_folder(name, "test")


def open_references(name: str, count: int, seed: int) -> AnomalyData:
    """Return other images of a data set's categories, drawn from its train split whatever their labels.

    Args:
        name: as in :func:`open_data`.
        count: how many of each category.
        seed: of the draw.

    Raises:
        ValueError: no such name or folder, no train split, or too few images in it.
        RunError, ImportError: as in :func:`open_data`.
    """
    seed += REFERENCE_SEED
    if name == PROCEDURAL:
        count *= len(HELD_OUT_CATEGORIES)
        return Procedural(count, HELD_OUT_CATEGORIES, 256, seed=seed, defect_share=REFERENCE_DEFECTS)
    if name == PHOTOGRAPHS:
        return Painted(count * len(PHOTOGRAPH_NAMES), seed=seed, defect_share=REFERENCE_DEFECTS)
    if name == CELLS or name in ELPV:
        from frugal_shared.datasets import elpv

        cells = elpv("train", ELPV.get(name))
        return some_of(SolarCellData(name, cells, tuple(range(len(cells.paths)))), count, seed)
    return some_of(load_folder(name, "train", require_normal=False), count, seed)


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


@dataclass(frozen=True, eq=False)
class SolarCellData:
    """Real photographs of solar cells, of which is known whether they are defective, but not where.

    Args:
        name: what results call this data set.
        cells: the photographs.
        rows: which of them, in this order.
    """

    name: str
    cells: "SolarCells"
    rows: tuple[int, ...]

    categories = (CELL,)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        """Read a cell; its mask is all false, because it is not known."""
        entry = self._entry(index)
        [cell] = prepared(self.cells, self.rows[index : index + 1])
        return Sample(cell, np.zeros(cell.shape[:2], bool), CELL, entry.defect, "", entry.source)

    @property
    def entries(self) -> Sequence[Entry]:
        """Kind and file of every cell."""
        return tuple(self._entry(index) for index in range(len(self)))

    def _entry(self, index: int) -> Entry:
        row = self.rows[index]
        good = float(self.cells.probability[row]) == FUNCTIONAL_SURE
        return Entry(CELL, GOOD if good else DEFECTIVE, str(self.cells.paths[row]), has_mask=good)


def solar_cells(name: str, limit: int | None = None) -> SolarCellData:
    """Return the test cells of one type that the experts were sure of, functional ones first.

    Args:
        name: "elpv-mono" or "elpv-poly".
        limit: at most so many of each kind; default: all.

    Raises:
        RunError: ELPV's package is missing.
    """
    from frugal_shared.datasets import elpv

    cells = elpv("test", ELPV[name])
    kinds = [np.flatnonzero(cells.probability == sure)[:limit] for sure in (FUNCTIONAL_SURE, DEFECTIVE_SURE)]
    return SolarCellData(name, cells, tuple(np.concatenate(kinds).tolist()))


def functional_cells() -> list[NDArray[np.uint8]]:
    """Return the functional test cells of both types, as :func:`preprocess` leaves them, to paint defects onto.

    Raises:
        RunError: ELPV's package is missing.
    """
    from frugal_shared.datasets import elpv

    cells = elpv("test")
    return prepared(cells, np.flatnonzero(cells.probability == FUNCTIONAL_SURE).tolist())


def prepared(cells: "SolarCells", rows: Iterable[int]) -> list[NDArray[np.uint8]]:
    """Read some cells and :func:`preprocess` them."""
    import torch

    return [preprocess(photograph.numpy()) for photograph in cells.images(torch.tensor(list(rows)))]


def preprocess(photograph: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a photograph of a cell ``(H, W)`` without its border and in one exposure for all, ``(h, w, 3)``."""
    from frugal_shared.datasets import normalise_cell

    return np.repeat(normalise_cell(photograph)[..., None], 3, axis=2)
