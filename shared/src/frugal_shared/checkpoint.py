"""Atomic checkpoints: safetensors + JSON, under a temporary name until whole.

A checkpoint is a folder ``step-00001200`` with ``tensors.safetensors`` and ``state.json``. It holds a *tree*: dicts and
lists of tensors and plain values, such as ``{"model": model.state_dict(), "optimizer": optimizer.state_dict()}``; a
tuple comes back as a list. The JSON keeps the tree's shape and the hash of both files; reading it executes nothing.

What cannot be read is never deleted: a run that goes on without it renames it to ``aside-step-00001200-…``.
"""

import hashlib
import json
import os
import re
import secrets
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as load_bytes
from safetensors.torch import save as save_bytes

from frugal_shared.errors import RunError
from frugal_shared.notices import warn
from frugal_shared.reading import read_json as read_json
from frugal_shared.writing import put_back, whole_folder, write_bytes, write_json

FORMAT = 1
TENSORS, STATE = "tensors.safetensors", "state.json"
_TENSOR = "__tensor__"
_PAIRS = "__pairs__"  # a dict whose keys are not strings, e.g. an optimizer's state by parameter number
# what is raised where a file holds something else than what was written, or is not there
_TORN = (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError, LookupError, TypeError, RecursionError)


class TornError(RunError):
    """A checkpoint does not hold what was written, as after a power cut."""


def save_checkpoint(folder: Path, step: int, tree: Any, *, keep: int = 3) -> Path:
    """Write ``tree`` as checkpoint ``step`` below ``folder``, keep the newest ``keep``, return the new one's path."""
    folder.mkdir(parents=True, exist_ok=True)
    put_back(folder, "step-*")
    for torn in folder.glob(".step-*"):
        shutil.rmtree(torn, ignore_errors=True)
    tensors: dict[str, torch.Tensor] = {}
    shape = _pack(tree, "", tensors)
    data = save_bytes(tensors)
    target = folder / f"step-{step:08d}"
    _set_aside(folder, step)
    with whole_folder(target) as temporary:
        write_bytes(temporary / TENSORS, data)
        state = {"format": FORMAT, "step": step, "sha256": _digest(data, step, shape), "tree": shape}
        write_json(temporary / STATE, state)
    for path in [path for path in _checkpoints(folder) if _looks_whole(path)][:-keep]:
        shutil.rmtree(path)
    return target


def load_checkpoint(path: Path) -> tuple[int, Any]:
    """Return ``(step, tree)`` of one checkpoint folder.

    Raises:
        TornError: a file is missing, torn or changed.
        RunError: a file may not or cannot be read, or is of a newer format.
    """
    try:
        state = json.loads((path / STATE).read_text())
        data = (path / TENSORS).read_bytes()
        newer = isinstance(state["format"], int) and state["format"] > FORMAT
        if not newer:
            return _unpack_checked(state, data)
    except (*_TORN, SafetensorError) as error:
        raise TornError(f"checkpoint {str(path)!r} is torn: {error}") from error
    except OSError as error:
        raise RunError(f"checkpoint {str(path)!r} cannot be read: {error}") from error
    raise RunError(f"checkpoint {str(path)!r} has the newer format {state['format']!r}; allowed: {FORMAT}")


def latest_checkpoint(folder: Path) -> tuple[int, Any] | None:
    """Return ``(step, tree)`` of the newest whole checkpoint below ``folder``, or None if there is no checkpoint.

    The newest is passed over, with a warning, if it is torn and the one before it is whole.

    Raises:
        RunError: there are checkpoints and none of these two can be read; the message names the one to look at.
    """
    put_back(folder, "step-*")
    paths = _checkpoints(folder)
    try:
        return _load_newest(paths) if paths else None
    except RunError as error:
        raise RunError(f"{error}; to go on without it, move it away") from error


def _load_newest(paths: list[Path]) -> tuple[int, Any]:
    try:
        return load_checkpoint(paths[-1])
    except TornError as error:
        if len(paths) == 1:
            raise
        found = load_checkpoint(paths[-2])
        warn(f"{error}; going on from step {found[0]}")
        return found


def _checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints below a folder, the newest last."""
    try:
        names = os.listdir(folder)  # noqa: PTH208 (Path.glob finds nothing where nothing may be listed)
        found = [folder / name for name in names if re.fullmatch(r"step-\d{8,}", name) and (folder / name).is_dir()]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RunError(f"checkpoints in {str(folder)!r} cannot be listed: {error}") from error
    return sorted(found, key=_step)


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _set_aside(folder: Path, step: int) -> None:
    """Rename the checkpoints that a run has passed over which now saves at ``step``."""
    for path in _checkpoints(folder):
        if _step(path) > step or (_step(path) == step and not _is_whole(path)):
            path.rename(folder / f"aside-{path.name}-{secrets.token_hex(4)}")


def _is_whole(path: Path) -> bool:
    try:
        load_checkpoint(path)
    except RunError:
        return False
    return True


def _looks_whole(path: Path) -> bool:
    """Return whether a checkpoint can be read, as far as that is known without reading its tensors."""
    try:
        with safe_open(path / TENSORS, "pt"):
            return json.loads((path / STATE).read_text())["format"] == FORMAT
    except (*_TORN, OSError, SafetensorError):
        return False


def _digest(data: bytes, step: int, shape: Any) -> str:
    digest = hashlib.sha256(data)
    digest.update(json.dumps([step, shape]).encode())
    return digest.hexdigest()


def _pack(value: Any, name: str, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        name = f"{len(tensors)}{name}"  # numbered, because two paths can read the same: {"a/b": …} and {"a": {"b": …}}
        # a clone, because safetensors refuses two names for one memory
        tensors[name] = value.detach().to("cpu", copy=True).contiguous()
        return {_TENSOR: name}
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: _pack(item, f"{name}/{key}", tensors) for key, item in value.items()}
    if isinstance(value, dict) and all(isinstance(key, str | int) for key in value):
        return {_PAIRS: [[key, _pack(item, f"{name}/{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return [_pack(item, f"{name}/{index}", tensors) for index, item in enumerate(value)]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a checkpoint holds tensors and plain values, not {type(value).__name__} (at {name or '/'!r})")


def _unpack_checked(state: dict[str, Any], data: bytes) -> tuple[int, Any]:
    """Return ``(step, tree)``; raise ValueError if this is not what was written."""
    if state["format"] != FORMAT or _digest(data, state["step"], state["tree"]) != state["sha256"]:
        raise ValueError("it does not match its hash")
    return int(state["step"]), _unpack(state["tree"], load_bytes(data))


def _unpack(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, dict) and value.keys() == {_TENSOR}:
        return tensors[value[_TENSOR]]
    if isinstance(value, dict) and value.keys() == {_PAIRS}:
        return {key: _unpack(item, tensors) for key, item in value[_PAIRS]}
    if isinstance(value, dict):
        return {key: _unpack(item, tensors) for key, item in value.items()}
    if isinstance(value, list):
        return [_unpack(item, tensors) for item in value]
    return value
