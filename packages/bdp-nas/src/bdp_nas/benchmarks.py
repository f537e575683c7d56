"""The published files of NAS-Bench-201 and NATS-Bench, read without executing what a pickle may bring.

=========================================  ===========================================================
``NAS-Bench-201-v1_1-096897.pth``          one file (arXiv 2001.00326)
``NATS-tss-v1_0-3ffb9-simple/``            a file for each architecture, ``000000.pickle.pbz2`` and on
``NATS-tss-v1_0-3ffb9.pickle.pbz2``        one file (arXiv 2009.00437)
=========================================  ===========================================================

All hold, for each architecture and recipe, trials by (data set, seed), each with its accuracies by ``set@epoch``. The
table has their means over the seeds after the last epoch.
"""

import bz2
import os
import pickle
import re
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bdp_nas.spaces.nasbench201 import OPERATIONS, genotype_to_columns
from bdp_nas.table import Table

SETS = {
    "cifar10": (("cifar10-valid", "x-valid"), ("cifar10", "ori-test")),
    "cifar100": (("cifar100", "x-valid"), ("cifar100", "x-test")),
    "imagenet16": (("ImageNet16-120", "x-valid"), ("ImageNet16-120", "x-test")),
}
"""By our name of a data set: where the benchmark trained and validated, where it trained and tested."""

RECIPES = {12: ("12", "less"), 200: ("200", "full")}
"""By number of epochs: the recipe's name in NATS-Bench and in NAS-Bench-201."""

PICKLED = (".pbz2", ".pickle")
SCALAR: Any = np.float64(0).__reduce__()[0]
PLAIN = {
    ("collections", "OrderedDict"): OrderedDict,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "scalar"): SCALAR,
    ("numpy._core.multiarray", "scalar"): SCALAR,
}
"""What a file may name besides Python's plain values."""


def read_benchmark(
    source: str | os.PathLike[str], epochs: int = 200, watch: Callable[[Sequence[Path]], Iterable[Path]] = iter
) -> Table:
    """Return the table of a benchmark's files.

    Args:
        source: as above, or whatever :meth:`bdp_nas.table.Table.load` reads.
        epochs: 12 or 200, of the trainings.
        watch: passes on the 15,625 files of a folder one by one, to show how far they are; such as ``tqdm``.

    Raises:
        ValueError: files that cannot be read, or of another form, or another number of epochs.
    """
    source = Path(source)
    if epochs not in RECIPES:
        raise ValueError(f"epochs={epochs!r} is not possible; allowed: {', '.join(map(str, RECIPES))}")
    if source.is_dir():
        files = sorted(path for path in source.glob("*.pbz2") if re.fullmatch(r"\d+\.pickle", path.stem))
        if not files:
            raise ValueError(
                f"{str(source)!r} has no files as 000000.pickle.pbz2; allowed: an unpacked NATS-tss folder"
            )
        return table_of((unpickle(path) for path in watch(files)), epochs, source)
    if source.suffix == ".pth":
        return table_of(architectures(load_torch(source), source), epochs, source)
    if source.suffix in PICKLED and source.is_file():
        return table_of(architectures(unpickle(source), source), epochs, source)
    return Table.load(source)


def table_of(infos: Iterable[Mapping[str, Any]], epochs: int, source: Path) -> Table:
    """Return the table of architectures, each a mapping from recipes to what came out.

    Raises:
        ValueError: a mapping of another form, or no architecture.
    """
    operations, accuracies = [], []
    try:
        for info in infos:
            recipe = next(info[name] for name in RECIPES[epochs] if name in info)
            operations.append(genotype_to_columns(recipe["arch_str"]))
            accuracies.append([[mean_accuracy(recipe, *where) for where in pair] for pair in SETS.values()])
    except (KeyError, TypeError, AttributeError, StopIteration) as error:
        raise ValueError(f"{str(source)!r} lacks {error}; allowed: a benchmark's own file") from None
    if not operations:
        raise ValueError(f"{str(source)!r} has no architectures; allowed: a benchmark's own file")
    columns = np.array(accuracies).transpose(2, 0, 1)
    names, datasets = np.array(OPERATIONS), np.array(list(SETS))
    return Table("nasbench201", names, np.array(operations, np.uint8), datasets, columns[0], columns[1])


def mean_accuracy(recipe: Mapping[str, Any], dataset: str, part: str) -> float:
    """Return the mean accuracy in percent over the seeds, after the last epoch."""
    trials = [recipe["all_results"][dataset, seed] for seed in recipe["dataset_seed"][dataset]]
    return float(np.mean([trial["eval_acc1es"][f"{part}@{trial['epochs'] - 1}"] for trial in trials]))


def architectures(content: Any, source: Path) -> Iterable[Mapping[str, Any]]:
    """Return the architectures of a file that holds all."""
    if not isinstance(content, Mapping) or not isinstance(content.get("arch2infos"), Mapping):
        raise ValueError(f"{str(source)!r} lacks 'arch2infos'; allowed: a benchmark's own file")
    return content["arch2infos"].values()


class PlainUnpickler(pickle.Unpickler):
    """Reads plain values, and refuses whatever could run code."""

    def find_class(self, module: str, name: str) -> Any:
        """Return one of the few things that a file may name."""
        if (module, name) not in PLAIN:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return PLAIN[module, name]


def unpickle(path: Path) -> Any:
    """Read a pickle of plain values.

    Raises:
        ValueError: it cannot be read, or holds something else.
    """
    try:
        with bz2.open(path) if path.suffix == ".pbz2" else path.open("rb") as file:
            return PlainUnpickler(file).load()
    except Exception as error:  # a damaged pickle raises whatever its instructions stumble over
        raise _unreadable(path, error) from None


def load_torch(path: Path) -> Any:
    """Read a file of ``torch.save`` with plain values.

    Raises:
        ValueError: it cannot be read, or holds something else.
    """
    try:
        numbers: list[Any] = [SCALAR, np.dtype, np.dtypes.Float64DType, np.dtypes.Int64DType]
        with torch.serialization.safe_globals(numbers), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd pickles, which are refused anyway
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # as above
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> ValueError:
    why = " ".join(str(error).split())[:120] or type(error).__name__
    return ValueError(f"{str(path)!r} cannot be read ({why}); allowed: a benchmark's own file, of plain values")
