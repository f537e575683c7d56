"""What the commands work on: pretrained networks by name, and tuned ones by the folder of their delta."""

from collections.abc import Sequence
from pathlib import Path

import timm
import torch

from frugal_shared.errors import UsageError
from frugal_shared.hub import hub_errors
from frugal_shared.labelled import Splits
from frugal_shared.weights import DINOV2_VITS14, EFFICIENTNET_LITE0, dinov2_vits14, efficientnet_lite0
from partial_finetune.commands.options import DELTA, DINOV2, EFFICIENTNET
from partial_finetune.data.images import open_data
from partial_finetune.deltas import Delta, open_delta
from partial_finetune.network import Network, open_pretrained
from partial_finetune.tuned import base_of, load_tuned

DINOV2_SIZE = 98  # pixels: 50 tokens, a fifth of the cost of 224
EFFICIENTNET_SIZE = 224
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""What ``--dtype`` stands for."""


def open_model(name: str, *, weights: Path | None = None, image_size: int | None = None) -> Network:
    """Return a pretrained network, with the classifier that it was trained with, if it was with one.

    Args:
        name: "dinov2-vits14", "efficientnet-lite0", or a name of timm's.
        weights: a local file for timm's network; default: timm fetches its own.
        image_size: side of the square images; default: see :class:`~partial_finetune.commands.options.BaseConfig`.

    Raises:
        ValueError: an unknown name, an impossible image size, or a file that is not this network's.
        RunError: a package of the ``[demo]`` extra is missing, or the hub does not give the weights.
        OSError: the weights cannot be fetched for another reason.
    """
    if name == DINOV2:
        size, given = image_size or DINOV2_SIZE, DINOV2_VITS14
        return Network(name, dinov2_vits14(size), size, given.mean, given.std)
    if name == EFFICIENTNET:
        size, given = image_size or EFFICIENTNET_SIZE, EFFICIENTNET_LITE0
        return Network(name, efficientnet_lite0(), size, given.mean, given.std)
    if not timm.is_model(name):
        raise UsageError(f"model={name!r} is unknown; allowed: {DINOV2}, {EFFICIENTNET}, or a name of timm's")
    asked = name if weights is None else None  # a file of weights asks nothing of the hub
    with hub_errors("model", asked, "a network that can be fetched, or the file of its weights"):
        return open_pretrained(name, weights=weights, image_size=image_size)


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


def open_base(delta: Delta, weights: Path | None = None) -> Network:
    """Return the pretrained network of a delta, whose weights may lie in another file than the delta names."""
    return base_of(delta, weights=weights, opener=open_model)


def open_tuned(delta: Delta, weights: Path | None = None) -> Network:
    """Return the tuned network.

    Raises:
        ValueError: the base is not the one that was tuned.
    """
    return load_tuned(delta, open_base(delta, weights))


def data_of(delta: Delta) -> Splits:
    """Return the data that a delta was tuned on, split as it was then.

    Raises:
        UsageError: it is not there any more.
    """
    info = delta.info
    return open_data(info["data"], seed=info["data_seed"], samples=info["samples"], val_share=info["val_share"])
