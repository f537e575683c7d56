"""What the run folders of a search and of a retraining hold, and genotypes that are given by such a folder."""

from pathlib import Path
from typing import TypeVar

from torch import Tensor, nn

from bdp_nas.blueprint import Blueprint
from bdp_nas.commands.bilevel import Found
from bdp_nas.commands.options import SearchConfig
from frugal_shared.errors import RunError
from frugal_shared.reading import read_dataclass
from frugal_shared.tensors import read_tensors

FOUND, SUPERNET, OPTIONS = "found.json", "supernet.safetensors", "options.json"
FACTS, NETWORK = "retrain.json", "network.safetensors"

T = TypeVar("T")


def read_found(folder: Path) -> Found:
    """Return what a search left in its folder.

    Raises:
        RunError: it left nothing, or something else.
    """
    return _read(folder / FOUND, Found)


def read_options(folder: Path) -> SearchConfig:
    """Return the options of the search that was done in a folder, with its own seed.

    Raises:
        RunError: it left nothing, or something else.
    """
    return _read(folder / OPTIONS, SearchConfig)


def _read(path: Path, kind: type[T]) -> T:
    try:
        return read_dataclass(path, kind)
    except RunError as error:
        raise RunError(f"{error}; allowed: the run folder of a search that is done") from None


def read_blueprint(folder: Path) -> Blueprint:
    """Return the blueprint of the network that a search or a retraining left in its folder.

    Raises:
        RunError: it left none, or something else.
    """
    try:
        return Blueprint.read(folder)
    except (OSError, ValueError) as error:
        raise RunError(f"{error}; allowed: the run folder of a search or a retraining that is done") from None


def blueprint_of(text: str) -> Blueprint | None:
    """Return the blueprint in a folder of a search or a retraining; None if the text names no folder.

    Raises:
        RunError: a folder of something else.
    """
    try:
        return read_blueprint(Path(text)) if Path(text).is_dir() else None
    except OSError:  # a genotype that is too long for a file's name
        return None


def genotype_of(text: str) -> str:
    """Return a genotype that is given as it is, or by the folder of a search or a retraining that found it.

    Raises:
        RunError: a folder of something else.
    """
    found = blueprint_of(text)
    return text if found is None else found.genotype


def read_weights(path: Path, model: nn.Module) -> dict[str, Tensor]:
    """Return what a file holds for a model.

    Raises:
        RunError: no such file, or it is of another model.
    """
    try:
        state, _ = read_tensors(path)
    except RunError as error:
        raise RunError(f"{error}; allowed: what a search or a retraining wrote") from None
    expected = {name: value.shape for name, value in model.state_dict().items()}
    if {name: value.shape for name, value in state.items()} != expected:
        raise RunError(f"{str(path)!r} is of another space, size or genotype; allowed: that of its genotype.json")
    return state
