"""Atomic checkpoints: safetensors + JSON, under a temporary name until whole.

A checkpoint is a folder ``step-00001200`` with ``tensors.safetensors`` and ``state.json``. It holds a *tree*: dicts and
lists of tensors and plain values, such as ``{"model": model.state_dict(), "optimizer": optimizer.state_dict()}``; a
tuple comes back as a list. The JSON keeps the tree's shape and the hash of both files; reading it executes nothing.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_bytes
from safetensors.torch import save as save_bytes

from frugal_shared.errors import RunError

FORMAT = 1
_TENSOR = "__tensor__"
_PAIRS = "__pairs__"  # a dict whose keys are not strings, e.g. an optimizer's state by parameter number


def write_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` so that a reader sees the old file or the whole new one, and nothing between."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # noqa: PTH101 (mkstemp made it 0600)
        os.replace(temporary, path)  # noqa: PTH105
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as JSON, atomically (see :func:`write_bytes`)."""
    write_bytes(path, (json.dumps(value, indent=2, default=str) + "\n").encode())


def read_json(path: Path, kind: type = dict) -> Any:
    """Return the object (or what ``kind`` says: the list) that a JSON file holds.

    Raises:
        RunError: the file is missing, torn, or holds something else; the message names it.
    """
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise RunError(f"{str(path.parent)!r} has no {path.name}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path.name} in {str(path.parent)!r} cannot be read: {error}") from error
    if not isinstance(value, kind):
        raise RunError(f"{path.name} in {str(path.parent)!r} holds no {'object' if kind is dict else kind.__name__}")
    return value


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield a hidden folder to fill, which then takes the place of ``path``; if filling it fails, it is removed."""
    temporary = path.with_name(f".{path.name}")
    shutil.rmtree(temporary, ignore_errors=True)  # what a killed process left
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if path.exists():
            shutil.rmtree(path)
        temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def save_checkpoint(folder: Path, step: int, tree: Any, *, keep: int = 3) -> Path:
    """Write ``tree`` as checkpoint ``step`` below ``folder``, keep the newest ``keep``, return the new one's path."""
    folder.mkdir(parents=True, exist_ok=True)
    for torn in folder.glob(".step-*"):
        shutil.rmtree(torn)
    tensors: dict[str, torch.Tensor] = {}
    shape = _pack(tree, "", tensors)
    data = save_bytes(tensors)
    target = folder / f"step-{step:08d}"
    with whole_folder(target) as temporary:
        write_bytes(temporary / "tensors.safetensors", data)
        state = {"format": FORMAT, "step": step, "sha256": _digest(data, step, shape), "tree": shape}
        write_json(temporary / "state.json", state)
    paths = _checkpoints(folder)
    newest = paths.index(target)  # what is later was torn, or the run would have gone on from there
    for path in paths:
        if path not in paths[: newest + 1][-keep:]:
            shutil.rmtree(path)
    return target


def load_checkpoint(path: Path) -> tuple[int, Any]:
    """Return ``(step, tree)`` of one checkpoint folder.

    Raises:
        RunError: a file is missing, torn, changed, or of another format.
    """
    try:
        state = json.loads((path / "state.json").read_text())
        data = (path / "tensors.safetensors").read_bytes()
        if state["format"] != FORMAT:
            raise RunError(f"checkpoint {str(path)!r} has format {state['format']!r}; allowed: {FORMAT}")
        if _digest(data, state["step"], state["tree"]) != state["sha256"]:
            raise RunError(f"checkpoint {str(path)!r} is torn: it does not match its hash")
        return int(state["step"]), _unpack(state["tree"], load_bytes(data))
    except (OSError, ValueError, LookupError, TypeError, RecursionError, SafetensorError) as error:
        raise RunError(f"checkpoint {str(path)!r} cannot be read: {error}") from error


def latest_checkpoint(folder: Path) -> tuple[int, Any] | None:
    """Return ``(step, tree)`` of the newest whole checkpoint below ``folder``; torn ones are passed over."""
    for path in reversed(_checkpoints(folder)):
        try:
            return load_checkpoint(path)
        except RunError:
            continue
    return None


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-[0-9]*"))


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
