"""Deltas: of a fine-tuned model only what differs from its base, exactly, and strictly checked.

A delta is a folder with ``delta.safetensors``, the *values* (not differences, which would round) of every tuned tensor,
of the new head and of whatever else changed, such as batch norm's statistics, and ``delta.json``: which base they
belong to, tensor by tensor, how they were chosen, and how to use them. Reading one executes nothing.

The *base* is the model that training started from: the pretrained tensors, and a head whose initial values (random, or
fitted by a linear probe) the delta keeps too, as ``initial/<name>``. A tensor here is a parameter or a persistent
buffer: an entry of ``model.state_dict()``.

::

    base = base_hashes(model)          # after reset_classifier, before training
    ...
    save_delta(folder, model, base, selection=selection, info=info, initial_head=head)
    load_delta(folder, timm.create_model(name, pretrained=True, num_classes=4))
"""

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from partial_finetune.writing import whole

if TYPE_CHECKING:
    from partial_finetune.strategy import Selection

SCHEMA = "partial-finetune-delta-1"
TENSORS, FACTS = "delta.safetensors", "delta.json"
REQUIRED = ("model", "classes", "mean", "std", "image_size")
INITIAL = "initial/"


@dataclass(frozen=True, eq=False)
class Delta:
    """An opened delta checkpoint; its tensors are read when asked for."""

    path: Path
    names: tuple[str, ...]
    """Of the stored tensors, in the model's order."""
    info: dict[str, Any] = field(repr=False)
    """``model`` (timm's name), ``classes`` (labels in order), ``mean``, ``std``, ``image_size``, ``head``, and more."""
    base: dict[str, str] = field(repr=False)
    """Hash of every tensor of the base, in the model's order."""
    expression: str | None
    """The strategy."""
    digest: str = field(repr=False)
    """sha256 of all tensors and facts: equal deltas have equal digests."""

    @property
    def head(self) -> tuple[str, ...]:
        """Names of the tensors that the pretrained model does not have: those of the new head."""
        return tuple(self.info["head"])

    @property
    def initial_head(self) -> dict[str, Tensor]:
        """The head's values before training, by name."""
        return {name: self._read(INITIAL + name) for name in self.head}

    def tensor(self, name: str) -> Tensor:
        """Read one of the stored tensors.

        Raises:
            ValueError: the delta does not store it.
        """
        if name not in self.names:
            raise ValueError(f"delta {str(self.path)!r} has no tensor {name!r}; allowed: {', '.join(self.names)}")
        return self._read(name)

    def tensors(self) -> dict[str, Tensor]:
        """Read all stored tensors, by name."""
        return {name: self._read(name) for name in self.names}

    def _read(self, name: str) -> Tensor:
        with safe_open(self.path / TENSORS, framework="pt") as file:
            return file.get_tensor(name)


def base_hashes(model: nn.Module) -> dict[str, str]:
    """Return the sha256 of dtype, shape and bytes of every parameter and persistent buffer, by name."""
    return {name: _hash(tensor) for name, tensor in model.state_dict().items()}


def save_delta(
    path: Path,
    model: nn.Module,
    base: dict[str, str],
    *,
    selection: "Selection | None",
    info: dict[str, Any],
    initial_head: Mapping[str, Tensor],
) -> None:
    """Write what ``model`` has beyond its base, atomically; an older delta at ``path`` is replaced.

    Args:
        path: the folder, which holds nothing else.
        model: after training.
        base: :func:`base_hashes` of the model before training, with its new head.
        selection: what was tuned: it is stored even if it did not change. None: only what changed.
        info: plain values; at least timm's name of the ``model``, the ``classes`` in the order of the logits, and
            ``mean``, ``std`` and ``image_size`` of the input.
        initial_head: values before training of the tensors that the pretrained model does not have, by name; empty
            if it is used with its own head.

    Raises:
        ValueError: the model's tensors are not those of the base, ``info`` lacks something, or ``path`` holds
            something else.
        TypeError: ``info`` holds what JSON cannot.
    """
    now = model.state_dict()
    _check_names("the model", now, base)
    _check_complete(info)
    _check_hashes("initial_head", initial_head, {name: base.get(name, "") for name in initial_head})
    tuned = {*(selection.parameters if selection else ()), *initial_head}
    if unknown := sorted(tuned - now.keys()):
        raise ValueError(f"the selection names {unknown[0]!r}, which the model lacks; allowed: a selection of its own")
    stored = {name: tensor for name, tensor in now.items() if name in tuned or _hash(tensor) != base[name]}
    facts = {
        "schema": SCHEMA,
        "expression": selection.expression if selection else None,
        "names": list(stored),
        "info": {**info, "head": list(initial_head)},
        "base": base,
        "versions": {package: version(package) for package in ("partial-finetune", "timm", "torch", "safetensors")},
    }
    _write(path, stored | {INITIAL + name: tensor for name, tensor in initial_head.items()}, facts)


def open_delta(path: Path) -> Delta:
    """Open a delta checkpoint after checking that it is whole.

    Raises:
        ValueError: it is torn, changed, of another schema, or no delta at all.
        OSError: it cannot be read.
    """
    try:
        facts = json.loads((path / FACTS).read_bytes())
        if facts.get("schema") != SCHEMA:
            raise ValueError(f"its schema is {facts.get('schema')!r}; allowed: {SCHEMA!r}")
        digest = facts.pop("sha256", None)
        if digest != _digest(path / TENSORS, facts):
            raise ValueError("it is torn or was changed: its hash is another; allowed: the bytes that were saved")
        info, names = facts["info"], tuple(facts["names"])
        _check_complete(info)
        expected = {*names, *(INITIAL + name for name in info["head"])}
        with safe_open(path / TENSORS, framework="pt") as file:
            _check_names(TENSORS, file.keys(), expected)
        return Delta(path, names, info, facts["base"], facts["expression"], digest)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, SafetensorError) as error:
        raise ValueError(f"delta {str(path)!r} cannot be used: {error}") from error


def load_delta(delta: Delta | Path, model: nn.Module) -> None:
    """Give the base model the fine-tuned values; on any error the model stays as it is.

    Args:
        delta: opened, or its folder.
        model: the pretrained model with a head of the right shape, whose values do not matter.

    Raises:
        ValueError: the delta cannot be used, or the model is not its base; names the first tensor that differs.
        OSError: the delta cannot be read.
    """
    delta = _as_delta(delta)
    state = model.state_dict()
    _check_base(delta, state)
    tensors = delta.tensors()
    for name, tensor in tensors.items():
        if name not in state or _kind(state[name]) != _kind(tensor):
            found = _kind(state[name]) if name in state else "missing"
            raise ValueError(
                f"the model's {name!r} is {found}; allowed: {_kind(tensor)}, as in delta {str(delta.path)!r}"
            )
    model.load_state_dict(state | tensors)


def merge(delta: Delta | Path, base: nn.Module) -> dict[str, Tensor]:
    """Return the fine-tuned model's plain timm state dict, in memory of its own.

    Args:
        delta: opened, or its folder.
        base: the pretrained model, with whatever head; it is not changed.

    Raises:
        ValueError: the delta cannot be used, or the model is not its base; names the first tensor that differs.
        OSError: the delta cannot be read.
    """
    delta = _as_delta(delta)
    state = base.state_dict()
    _check_base(delta, state)
    tensors = delta.tensors()
    return {name: tensors[name] if name in tensors else _copy(state[name]) for name in delta.base}


def start_of(delta: Delta, pretrained: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what the training of a delta started from: pretrained tensors, copied, and the initial head.

    Args:
        delta: any ingredient of a soup, say.
        pretrained: the pretrained model's state dict, with whatever head.

    Raises:
        ValueError: these are other pretrained tensors, or the head is not the one that the delta names; names the
            first tensor that differs.
    """
    _check_base(delta, pretrained)
    head = delta.initial_head
    _check_hashes(f"the initial head of delta {str(delta.path)!r}", head, {name: delta.base[name] for name in head})
    return {name: head[name] if name in head else _copy(pretrained[name]) for name in delta.base}


@torch.no_grad()
def overwrite(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy tensors into the model's parameters and buffers of the same names, byte for byte."""
    state = model.state_dict()
    for name, value in tensors.items():
        state[name].copy_(value)


def _as_delta(delta: Delta | Path) -> Delta:
    return delta if isinstance(delta, Delta) else open_delta(delta)


def _write(path: Path, tensors: Mapping[str, Tensor], facts: dict[str, Any]) -> None:
    """Write a delta's two files, both or none."""
    if path.exists() and (foreign := {file.name for file in path.iterdir()} - {TENSORS, FACTS}):
        raise ValueError(f"path={str(path)!r} holds {min(foreign)!r}; allowed: a new folder, or one with only a delta")
    facts = json.loads(json.dumps(facts))  # as it will be read: tuples become lists, and keys strings
    with whole(path) as folder:
        # copies, because safetensors refuses two names for one memory, as tied weights have
        save_file({name: _copy(tensor) for name, tensor in tensors.items()}, folder / TENSORS)
        (folder / TENSORS).chmod(folder.stat().st_mode & 0o666)  # as the umask has it; save_file opens it to nobody
        facts["sha256"] = _digest(folder / TENSORS, facts)
        (folder / FACTS).write_text(json.dumps(facts, indent=1) + "\n")


def _digest(file: Path, facts: dict[str, Any]) -> str:
    """Return the sha256 of the tensors' file followed by the facts."""
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256")
    digest.update(json.dumps(facts, sort_keys=True).encode())
    return digest.hexdigest()


def _hash(tensor: Tensor) -> str:
    digest = hashlib.sha256(_kind(tensor).encode())
    digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _kind(tensor: Tensor) -> str:
    return f"{tensor.dtype} of shape {tuple(tensor.shape)}"


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()


def _check_complete(info: Mapping[str, Any]) -> None:
    if missing := [key for key in REQUIRED if key not in info]:
        raise ValueError(f"info lacks {missing[0]!r}; allowed: at least {', '.join(REQUIRED)}")


def _check_base(delta: Delta, tensors: Mapping[str, Tensor]) -> None:
    """Raise ``ValueError`` unless these tensors, apart from the head, are exactly those that a delta belongs to."""
    where, hashes = f"the base given for delta {str(delta.path)!r}", dict(delta.base)
    for name in delta.head:
        del hashes[name]
    _check_names(where, tensors.keys() - set(delta.head), hashes)
    _check_hashes(where, tensors, hashes)


def _check_hashes(what: str, tensors: Mapping[str, Tensor], hashes: Mapping[str, str]) -> None:
    for name, expected in hashes.items():
        if _hash(tensors[name]) != expected:
            raise ValueError(f"{what}: {name!r} has other values ({_kind(tensors[name])}); allowed: the original's")


def _check_names(what: str, found: Collection[str], expected: Collection[str]) -> None:
    found, expected = set(found), set(expected)
    if missing := sorted(expected - found):
        raise ValueError(f"{what} lacks {missing[0]!r}; allowed: exactly the declared tensors")
    if extra := sorted(found - expected):
        raise ValueError(f"{what} has {extra[0]!r} besides; allowed: exactly the declared tensors")
