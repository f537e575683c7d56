"""What architectures reach when they are trained in full: the table of a benchmark, in one small file without pickles.

Schema 1 is an ``.npz`` of these arrays, with N architectures of E edges (or blocks), K operations and D data sets:

====================  =================  ====================================================================
``schema``            ``()`` int         1
``space``             ``()`` text        a name in :data:`bdp_nas.spaces.SPACES`
``operation_names``   ``(K,)`` text      names of the operations
``operations``        ``(N, E)`` uint8   every architecture's operations, numbers into ``operation_names``, edges in
                                         the order of ``Space.operations``; rows in any order, none twice
``datasets``          ``(D,)`` text      names of the data sets
``validation``        ``(N, D)`` float   accuracy in percent on the validation set, NaN where nobody measured it
``test``              ``(N, D)`` float   accuracy in percent on the test set
====================  =================  ====================================================================

An ``.npz`` with ``ops``, ``op_names``, ``acc200`` and ``acc200_cols``, NAS-Bench-201 by the columns of its 200-epoch
training, is read as well, and so is the published ``nas-bench-macro_cifar10.json``.
"""

import json
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from bdp_nas.spaces import SPACES, get_space
from bdp_nas.writing import write_bytes

SCHEMA = 1
MOST_BYTES = 2**28  # that an .npz may unpack to; that of NAS-Bench-201 is a hundredth of it
ARRAYS = ("operation_names", "operations", "datasets", "validation", "test")
COLUMNS = {
    "cifar10": ("cifar10-valid/x-valid", "cifar10/ori-test"),
    "cifar100": ("cifar100/x-valid*", "cifar100/x-test"),
    "imagenet16": ("ImageNet16-120/x-valid*", "ImageNet16-120/x-test"),
}
"""Validation and test columns of a NAS-Bench-201 table, by our name of the data set."""


@dataclass(frozen=True)
class Standing:
    """How one architecture stands among all of the table.

    Args:
        validation: accuracy in percent, NaN if unknown.
        test: accuracy in percent.
        rank: 1 + number of architectures with a higher test accuracy.
        architectures: how many there are.
        regret: highest test accuracy of all − that of this one, in percentage points.
    """

    validation: float
    test: float
    rank: int
    architectures: int
    regret: float


@dataclass(frozen=True, eq=False)
class Table:
    """Accuracies of the architectures of a space; the arrays of the schema.

    Raises:
        ValueError: arrays that do not fit together.
    """

    space: str
    operation_names: NDArray[np.str_]
    operations: NDArray[np.uint8]
    datasets: NDArray[np.str_]
    validation: NDArray[np.floating[Any]]
    test: NDArray[np.floating[Any]]

    def __post_init__(self) -> None:
        """Check the arrays."""
        if self.space not in SPACES:
            raise ValueError(f"a table of the space {self.space!r}; allowed: {', '.join(SPACES)}")
        for name, values in (("operation_names", self.operation_names), ("datasets", self.datasets)):
            if values.ndim != 1:
                raise ValueError(f"a table's {name} have the shape {values.shape}; allowed: one row of texts")
        if self.operations.ndim != 2 or not self.operations.size:
            raise ValueError(f"a table's operations have the shape {self.operations.shape}; allowed: (N, E)")
        if self.operations.max() >= len(self.operation_names):
            raise ValueError(
                f"a table has operation {self.operations.max()}; allowed: below {len(self.operation_names)}"
            )
        shape = len(self.operations), len(self.datasets)
        for name, values in (("validation", self.validation), ("test", self.test)):
            if values.shape != shape:
                raise ValueError(f"a table's {name} has the shape {values.shape}; allowed: {shape}")
        if not np.isfinite(self.test).all():
            raise ValueError("a table's test has accuracies that are not numbers; allowed: percent")

    def query(self, genotype: str) -> dict[str, Standing]:
        """Return how an architecture stands, by data set.

        Raises:
            ValueError: a genotype that does not parse, or is not in the table.
        """
        row = self._row(genotype)
        test, best = self.test[row], self.test.max(0)
        ranks = 1 + (self.test > test).sum(0)
        return {
            str(name): Standing(
                validation=float(self.validation[row, column]),
                test=float(test[column]),
                rank=int(ranks[column]),
                architectures=len(self.test),
                regret=float(best[column] - test[column]),
            )
            for column, name in enumerate(self.datasets)
        }

    def _row(self, genotype: str) -> int:
        names = get_space(self.space).operations(genotype)
        known = self.operation_names.tolist()
        if len(names) == self.operations.shape[1] and set(names) <= set(known):
            rows = np.flatnonzero((self.operations == [known.index(name) for name in names]).all(1))
            if len(rows):
                return int(rows[0])
        raise ValueError(
            f"genotype {genotype!r} is not in the table; allowed: its {len(self.operations)} architectures"
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the table to an ``.npz`` file."""
        arrays, buffer = {name: getattr(self, name) for name in ARRAYS}, BytesIO()
        np.savez_compressed(buffer, schema=np.array(SCHEMA), space=np.array(self.space), **arrays)
        write_bytes(Path(path), buffer.getvalue())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a table; nothing in the file is executed.

        Raises:
            ValueError: no file, a pickle, or a table of another schema.
        """
        path = Path(path)
        if not path.is_file():
            raise ValueError(f"table {str(path)!r} is no file; allowed: an .npz or .json table")
        if path.suffix == ".json":
            return cls.from_macro(_read_json(path))
        arrays = _read_arrays(path)
        if "acc200_cols" in arrays:
            return cls.from_columns(arrays)
        if "schema" not in arrays or arrays["schema"].tolist() != SCHEMA:
            found = str(arrays["schema"])[:20] if "schema" in arrays else "none"
            raise ValueError(f"table {str(path)!r} has schema {found}; allowed: {SCHEMA}")
        _require(arrays, ("space", *ARRAYS))
        return cls(str(arrays["space"])[:20], **{name: arrays[name] for name in ARRAYS})

    @classmethod
    def from_columns(cls, arrays: Mapping[str, NDArray[Any]]) -> Self:
        """Return the table of NAS-Bench-201 by its columns of 200 epochs, see :data:`COLUMNS`.

        Raises:
            ValueError: an array or a column that is missing.
        """
        _require(arrays, ("ops", "op_names", "acc200", "acc200_cols"))
        columns = {name: number for number, name in enumerate(arrays["acc200_cols"].tolist())}
        missing = [name for pair in COLUMNS.values() for name in pair if name not in columns]
        if missing:
            raise ValueError(f"a table lacks the column {missing[0]!r}; it has: {', '.join(columns)}")
        validation, test = ([columns[pair[side]] for pair in COLUMNS.values()] for side in (0, 1))
        accuracy, names = arrays["acc200"], np.array(list(COLUMNS))
        return cls("nasbench201", arrays["op_names"], arrays["ops"], names, accuracy[:, validation], accuracy[:, test])

    @classmethod
    def from_macro(cls, published: Mapping[str, Mapping[str, Any]]) -> Self:
        """Return the table of NAS-Bench-Macro from its published form, digits → ``mean_acc`` on CIFAR-10's test set.

        Raises:
            ValueError: another form.
        """
        try:
            operations = np.array([[int(digit) for digit in digits] for digits in published], np.uint8)
            test = np.array([[float(entry["mean_acc"])] for entry in published.values()])
        except (AttributeError, KeyError, TypeError, ValueError):
            raise ValueError("a table's JSON is of another form; allowed: digits → an object with mean_acc") from None
        names, nobody = np.array(["identity", "k3e3", "k5e6"]), np.full_like(test, np.nan)
        return cls("macro", names, operations, np.array(["cifar10"]), nobody, test)


def _require(arrays: Mapping[str, NDArray[Any]], names: tuple[str, ...]) -> None:
    missing = [name for name in names if name not in arrays]
    if missing:
        raise ValueError(f"a table lacks the array {missing[0]!r}; allowed: one that has {', '.join(names)}")


def _read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(member.file_size for member in archive.infolist()) > MOST_BYTES:
                raise ValueError(f"it unpacks to more than {MOST_BYTES} bytes")
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except Exception:  # a damaged file raises whatever its reader stumbles over
        raise ValueError(f"table {str(path)!r} cannot be read; allowed: an .npz file without pickles") from None


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (ValueError, RecursionError):  # also what is not text
        raise ValueError(f"table {str(path)!r} cannot be read; allowed: JSON") from None
