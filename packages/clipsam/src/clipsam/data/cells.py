"""Real photographs of solar cells: ELPV (CC BY-NC-SA 4.0: never train on it what is shipped).

It is imported where it is read, because it comes with the ``[demo]`` extra.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from clipsam.samples import GOOD, Entry, Sample

if TYPE_CHECKING:
    from frugal_shared.datasets import CellType, SolarCells

ELPV: dict[str, "CellType"] = {"elpv-mono": "mono", "elpv-poly": "poly"}
"""Name of a data set -> the cells in it."""
CELL, DEFECTIVE = "solar cell", "defective"
FUNCTIONAL_SURE, DEFECTIVE_SURE = 0.0, 1.0  # the experts' probability of a defect where they did not hesitate


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


def training_cells(name: str) -> SolarCellData:
    """Return the cells of ELPV's train split, whatever the experts said of them.

    Args:
        name: "elpv-mono" or "elpv-poly"; any other: both types.

    Raises:
        RunError: ELPV's package is missing.
    """
    from frugal_shared.datasets import elpv

    cells = elpv("train", ELPV.get(name))
    return SolarCellData(name, cells, tuple(range(len(cells.paths))))


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
    return [preprocess(photograph.numpy()) for photograph in cells.images(torch.tensor(list(rows)))]


def preprocess(photograph: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a photograph of a cell ``(H, W)`` without its border and in one exposure for all, ``(h, w, 3)``."""
    from frugal_shared.datasets import normalise_cell

    return np.repeat(normalise_cell(photograph)[..., None], 3, axis=2)
