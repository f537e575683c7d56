"""A tuned network, read back from its delta: the pretrained one opened again, and the tuned tensors put into it."""

from collections.abc import Callable
from pathlib import Path

from partial_finetune.deltas import Delta, load_delta, open_delta
from partial_finetune.network import Network, open_pretrained, with_classes


def load_tuned(delta: Delta | Path, base: Network | None = None) -> Network:
    """Return the network that a delta was saved of, with its classifier and the way its images are prepared.

    Args:
        delta: opened, or its folder.
        base: the pretrained network with a head of the right shape, which then holds the tuned values; default:
            :func:`base_of` the delta.

    Raises:
        ValueError: the delta cannot be used, its network is none of timm's, or the base is not the one that was tuned.
        OSError: the delta cannot be read, or the base's weights cannot be fetched.
    """
    delta = delta if isinstance(delta, Delta) else open_delta(delta)
    base = base or base_of(delta)
    load_delta(delta, base.model)
    return base


def base_of(delta: Delta, *, weights: Path | None = None, opener: Callable[..., Network] = open_pretrained) -> Network:
    """Return the pretrained network that a delta belongs to, with a new classifier of its number of classes.

    Args:
        delta: its ``info`` names the network, the image size and, where it was one, the file of the weights.
        weights: that file, if it lies elsewhere now.
        opener: of networks that are none of timm's; called as :func:`~partial_finetune.network.open_pretrained` is.

    Raises:
        ValueError: the network is unknown, or the file is not there or not the network's.
        OSError: the weights cannot be fetched.
    """
    info = delta.info
    named = info.get("weights")
    file = weights or (Path(named) if named else None)
    return with_classes(opener(info["model"], weights=file, image_size=info["image_size"]), len(info["classes"]))
