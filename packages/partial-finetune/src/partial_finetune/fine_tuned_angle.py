"""The fine-tuned angle: how far training turned a layer's weights away from the pretrained ones.

θ(u, v) = arccos(⟨u, v⟩ / ‖u‖‖v‖) for the flattened weights u before and v after. Behind a normalisation only the
direction of weights acts, and weight decay alone turns nothing. The arccos loses an angle as small as fine-tuning makes
them, so Kahan's form of the same angle is computed, with û = u/‖u‖ and v̂ = v/‖v‖ in float64::

    θ = 2·atan2(‖û − v̂‖, ‖û + v̂‖)

Source: the metric is of arXiv 2312.15681; which weights make up a layer's vector is a reconstruction. Angles compare
layers that were trained with the same learning rate.
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

if TYPE_CHECKING:
    from partial_finetune.parts import Anatomy

ALLOWED = (torch.float32, torch.float64)

Pair = tuple[Tensor, Tensor]


def angle(u: Tensor, v: Tensor) -> float:
    """Return the angle between two tensors, flattened, in radians in [0, π]; NaN where one of them is zero.

    Args:
        u: float32 or float64, of any shape.
        v: of the same shape.

    Raises:
        ValueError: other dtypes (rounding to half precision alone turns weights by 1.66e-3), other shapes, or values
            that are not finite.
    """
    return _angle([_pair("the vector", u, v)])


def angles(
    base: Mapping[str, Tensor] | Path,
    model: nn.Module | Mapping[str, Tensor],
    anatomy: "Anatomy",
    *,
    biases: bool = False,
) -> dict[str, float]:
    """Return the angle of every unit that changed: of its matrices as if they were one vector.

    Left out are units whose compared tensors are all as before (an angle of 0 would say "trained, and not turned"),
    those whose angle is undefined because all weights are or were 0, and the classifier, which is new.

    Args:
        base: the weights before, by parameter name, or their safetensors file, read unit by unit: during training no
            second copy of the model is needed.
        model: the model now, or its tensors by name.
        anatomy: of the model.
        biases: compare also what has fewer than 2 dimensions: biases, norms, scales.

    Returns:
        Radians in [0, π] by unit name, in the model's order.

    Raises:
        ValueError: the base lacks a tensor or has it in another shape, or a tensor is one that :func:`angle` refuses.
        OSError: the file cannot be read.
    """
    now, found = _named(model), {}
    with _opened(base) as (names, read):
        for unit in anatomy.units:
            compared = [name for name in unit.parameters if biases or now[name].ndim >= 2]
            if unit.kind == "classifier" or not compared:
                continue
            if missing := [name for name in compared if name not in names]:
                raise ValueError(f"the base lacks {missing[0]!r} of unit {unit.name}; allowed: the model's own base")
            pairs = [_pair(repr(name), read(name), now[name]) for name in compared]
            if _changed(pairs):
                found[unit.name] = _angle(pairs)
    return _defined(found)


def tensor_angles(base: Mapping[str, Tensor] | Path, model: nn.Module | Mapping[str, Tensor]) -> dict[str, float]:
    """Return the angle of every single tensor that changed, biases and norms too, where it is defined.

    Compared are the floating-point tensors that both have in the same shape: a new head has no angle.

    Args:
        base: the weights before, by name, or their safetensors file.
        model: the model now (its parameters), or tensors by name.

    Returns:
        Radians in [0, π] by tensor name.

    Raises:
        ValueError: half precision, or values that are not finite.
        OSError: the file cannot be read.
    """
    now, found = _named(model), {}
    with _opened(base) as (names, read):
        for name in (name for name in now if name in names):
            before = read(name)
            if before.shape == now[name].shape and before.is_floating_point():
                pair = _pair(repr(name), before, now[name])
                if _changed([pair]):
                    found[name] = _angle([pair])
    return _defined(found)


def _angle(pairs: Sequence[Pair]) -> float:
    """Return the angle of two concatenations; only a pair at a time is held in float64."""
    norm_u, norm_v = (math.sqrt(sum(map(_square, side))) for side in zip(*pairs))
    if not norm_u or not norm_v:
        return math.nan
    apart = together = 0.0
    for u, v in pairs:
        u_hat, v_hat = u.double() / norm_u, v.double() / norm_v
        apart += _square(u_hat - v_hat)
        together += _square(u_hat + v_hat)
    return 2 * math.atan2(math.sqrt(apart), math.sqrt(together))


def _square(tensor: Tensor) -> float:
    return tensor.double().square().sum().item()


def _pair(name: str, u: Tensor, v: Tensor) -> Pair:
    """Return the two as they can be compared, on the CPU; a name for the message if they cannot."""
    if u.shape != v.shape:
        raise ValueError(f"{name} has shape {tuple(v.shape)}; allowed: that of the base, {tuple(u.shape)}")
    for tensor in (u, v):
        if tensor.dtype not in ALLOWED:
            floor = "; rounding to half precision alone makes an angle of up to 1.66e-3 rad" * (tensor.itemsize == 2)
            raise ValueError(f"{name} is {tensor.dtype}; allowed: float32 or float64{floor}")
        if not tensor.isfinite().all():
            raise ValueError(f"{name} holds NaN or infinity; allowed: finite weights")
    return u.detach().cpu(), v.detach().cpu()


def _changed(pairs: Sequence[Pair]) -> bool:
    return not all(torch.equal(u, v) for u, v in pairs)


def _defined(found: dict[str, float]) -> dict[str, float]:
    return {name: theta for name, theta in found.items() if not math.isnan(theta)}


def _named(model: nn.Module | Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    return dict(model.named_parameters()) if isinstance(model, nn.Module) else model


@contextmanager
def _opened(base: Mapping[str, Tensor] | Path) -> Iterator[tuple[Collection[str], Callable[[str], Tensor]]]:
    """Yield the names of the base's tensors and what reads one of them."""
    if not isinstance(base, Path):
        yield base.keys(), base.__getitem__
        return
    try:
        with safe_open(base, framework="pt") as file:
            yield file.keys(), file.get_tensor
    except SafetensorError as error:
        raise ValueError(f"base={str(base)!r} cannot be read ({error}); allowed: a safetensors file") from error
