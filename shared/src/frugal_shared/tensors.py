"""Tensor files that notice damage: safetensors whose metadata hold the sha256 of everything else in them."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from frugal_shared.errors import RunError

ENTRY = "frugal"  # one entry, because safetensors writes several in an order that changes from run to run
State = dict[str, torch.Tensor]


def pack_tensors(tensors: Mapping[str, torch.Tensor], notes: Mapping[str, str] | None = None) -> bytes:
    """Return the bytes of a safetensors file with these tensors, these notes and their hash.

    Args:
        tensors: name → tensor, on any device; none shares memory with another.
        notes: texts to keep beside them.
    """
    state, notes = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, dict(notes or {})
    return save(state, {ENTRY: json.dumps({"notes": notes, "sha256": _digest(state, notes)})})


def read_tensors(path: Path) -> tuple[State, dict[str, str]]:
    """Return the tensors and the notes of a file that :func:`pack_tensors` made.

    Raises:
        RunError: the file is missing, torn, changed, or of another kind; the message names it.
    """
    try:
        with safe_open(path, framework="pt") as file:
            entry = json.loads((file.metadata() or {}).get(ENTRY, "{}"))
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
    except (OSError, ValueError, TypeError, AttributeError, RecursionError, SafetensorError) as error:
        raise RunError(f"{str(path)!r} cannot be read: {error}") from error
    if entry.get("sha256") != _digest(state, entry.get("notes")):
        raise RunError(f"{str(path)!r} cannot be used: it was changed, or has no hash at all")
    return state, entry["notes"]


def _digest(state: Mapping[str, torch.Tensor], notes: Any) -> str:
    kinds = {name: (str(tensor.dtype), list(tensor.shape)) for name, tensor in sorted(state.items())}
    digest = hashlib.sha256(json.dumps([kinds, notes], sort_keys=True).encode())
    for name in kinds:
        digest.update(state[name].reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
