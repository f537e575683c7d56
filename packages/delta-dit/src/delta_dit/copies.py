"""A copy of a cached transformer, by ``copy.deepcopy``, ``pickle`` or ``torch.save``, is one without the cache.

diffusers' hooks do not stand copying: they cannot be pickled, and those of a copy would call the original's blocks. So
the copy is made around them; the original keeps its cache.
"""

import copy
from functools import partial
from typing import Any

from torch import nn

_OURS = ("__deepcopy__", "__reduce_ex__")
_LEFT_OUT = object()


def copy_without_hooks(transformer: nn.Module) -> None:
    """Make a transformer one that can be copied and pickled, whatever hooks it has."""
    vars(transformer).update(zip(_OURS, (partial(_plain, transformer), partial(_reduce, transformer))))


def copy_as_usual(transformer: nn.Module) -> None:
    """Undo :func:`copy_without_hooks`."""
    for name in _OURS:
        vars(transformer).pop(name, None)


def _reduce(transformer: nn.Module, protocol: int) -> Any:
    tensors = (*transformer.parameters(), *transformer.buffers())
    shared = {id(tensor): tensor for tensor in tensors}  # what is only written to a file need not be copied before
    return _plain(transformer, shared).__reduce_ex__(protocol)


def _plain(transformer: nn.Module, memo: dict[int, Any]) -> nn.Module:
    for module in transformer.modules():
        if hasattr(module, "_diffusers_hook"):
            forward = "_old_forward" if hasattr(module, "_old_forward") else "forward"  # under accelerate's hook
            memo.update((id(vars(module)[name]), _LEFT_OUT) for name in ("_diffusers_hook", forward))
    plain = memo[id(transformer)] = type(transformer).__new__(type(transformer))
    attributes = {name: value for name, value in vars(transformer).items() if name not in (*_OURS, "_cache_config")}
    vars(plain).update(copy.deepcopy(attributes, memo))
    for module in plain.modules():
        for name in [name for name, value in vars(module).items() if value is _LEFT_OUT]:
            del vars(module)[name]
            if name == "_old_forward":
                vars(module)[name] = type(module).forward.__get__(module)
    return plain
