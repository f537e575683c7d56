"""Let ``transformer.enable_cache(DeltaCacheConfig(...))`` work, the way diffusers switches on its own caches.

diffusers' ``CacheMixin.enable_cache`` knows a closed list of configs, and the transformers of the paper (DiT, PixArt)
and others (SD3, Sana) have no such method at all. A transformer alone has no scheduler: the config needs
``num_inference_steps``. With a pipeline, :func:`delta_dit.enable_delta_cache` knows more and needs no patch.
"""

import functools
from collections.abc import Iterator
from typing import Any

import diffusers
from diffusers import CacheMixin

from delta_dit.adapters import ADAPTERS
from delta_dit.attach import disable_delta_cache, enable_delta_cache
from delta_dit.config import DeltaCacheConfig

_METHODS = ("enable_cache", "disable_cache", "is_cache_enabled")
_originals: dict[type, dict[str, Any]] = {}


def patch_diffusers() -> None:
    """Teach diffusers' transformers to take a :class:`DeltaCacheConfig` in ``enable_cache``; twice is as once."""
    for owner in _owners():
        if owner not in _originals:
            _originals[owner] = {name: owner.__dict__[name] for name in _METHODS if name in owner.__dict__}
            owner.enable_cache = _enable_cache(getattr(owner, "enable_cache", _refuse))
            owner.disable_cache = _disable_cache(getattr(owner, "disable_cache", _do_nothing))
            owner.is_cache_enabled = property(lambda self: getattr(self, "_cache_config", None) is not None)


def unpatch_diffusers() -> None:
    """Undo :func:`patch_diffusers`. Caches that are enabled stay so; ``disable_delta_cache`` takes them off."""
    while _originals:
        owner, methods = _originals.popitem()
        for name in _METHODS:
            delattr(owner, name)
        for name, method in methods.items():
            setattr(owner, name, method)


def _owners() -> Iterator[type]:
    """Yield the classes whose methods to replace: the mixin, and the known transformers that do not inherit it."""
    yield CacheMixin
    for name in ADAPTERS:
        owner = getattr(diffusers, name, None)
        if owner is not None and not issubclass(owner, CacheMixin):
            yield owner


def _enable_cache(original: Any) -> Any:
    @functools.wraps(original)
    def enable_cache(self: Any, config: Any) -> None:
        if isinstance(config, DeltaCacheConfig):
            enable_delta_cache(self, config)
        else:
            original(self, config)

    return enable_cache


def _disable_cache(original: Any) -> Any:
    @functools.wraps(original)
    def disable_cache(self: Any) -> None:
        if isinstance(getattr(self, "_cache_config", None), DeltaCacheConfig):
            disable_delta_cache(self)
        else:
            original(self)

    return disable_cache


def _refuse(self: Any, config: Any) -> None:
    raise ValueError(f"{type(self).__name__} has no {type(config).__name__}; allowed: DeltaCacheConfig")


def _do_nothing(self: Any) -> None:
    """Disable no cache."""
