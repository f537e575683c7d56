"""Tuned models read back from their deltas: the base opened again, the tuned tensors put into it."""

from collections.abc import Sequence
from pathlib import Path

from frugal_shared.errors import UsageError
from partial_finetune.checkpoint import Delta, load_delta, open_delta
from partial_finetune.commands.base import Base, open_base
from partial_finetune.commands.fit import DELTA
from partial_finetune.data.images import Splits, open_data


def find_deltas(paths: Sequence[Path]) -> list[Delta]:
    """Open one delta or more; see :func:`find_delta`.

    Raises:
        UsageError: none is named, or one is not there.
        ValueError: one is torn, or none at all.
    """
    if not paths:
        raise UsageError("deltas=() is empty; allowed: one folder or more")
    return [find_delta(path) for path in paths]


def find_delta(path: Path) -> Delta:
    """Open a delta's folder, or the delta in a run's folder.

    Raises:
        UsageError: there is none.
        ValueError: it is torn, or none at all.
    """
    if not path.is_dir():
        raise UsageError(f"deltas={str(path)!r} is not a folder; allowed: what `train` or `soup` wrote")
    return open_delta(path / DELTA if (path / DELTA).is_dir() else path)


def base_of(delta: Delta, weights: Path | None = None) -> Base:
    """Return the pretrained model of a delta, with a new classifier of its number of classes.

    Args:
        delta: the tuned tensors.
        weights: the file of the pretrained weights; default: the one that the delta names.

    Raises:
        UsageError: an unknown model, or a file that is not there.
        RunError: weights that cannot be fetched.
    """
    named = delta.info.get("weights")
    file = weights or (Path(named) if named else None)
    return open_base(delta.info["model"], len(delta.info["classes"]), weights=file, image_size=delta.info["image_size"])


def open_tuned(delta: Delta, weights: Path | None = None) -> Base:
    """Return the tuned model.

    Raises:
        ValueError: the base is not the one that was tuned.
    """
    base = base_of(delta, weights)
    load_delta(delta, base.model)
    return base


def data_of(delta: Delta) -> Splits:
    """Return the data that a delta was tuned on, split as it was then.

    Raises:
        UsageError: it is not there any more.
    """
    info = delta.info
    return open_data(info["data"], seed=info["data_seed"], samples=info["samples"], val_share=info["val_share"])
