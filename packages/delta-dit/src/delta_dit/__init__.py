"""Training-free acceleration of diffusion transformers by caching block deltas (Δ-DiT, arXiv 2406.01125)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from delta_dit.adapters import Adapter, Stack, register_adapter
    from delta_dit.attach import DeltaCacheStats, delta_cache_stats, disable_delta_cache, enable_delta_cache
    from delta_dit.config import DeltaCacheConfig
    from delta_dit.patch import patch_diffusers
    from delta_dit.pixel import PixelDiTPipeline
    from delta_dit.plan import DeltaPlan

__version__ = "0.1.0"
__all__ = ["Adapter", "DeltaCacheConfig", "DeltaCacheStats", "DeltaPlan", "PixelDiTPipeline", "Stack"]
__all__ += ["delta_cache_stats", "disable_delta_cache", "enable_delta_cache", "patch_diffusers", "register_adapter"]
_HOME = dict.fromkeys(__all__, "attach") | dict.fromkeys(["Adapter", "Stack", "register_adapter"], "adapters")
_HOME |= {"DeltaCacheConfig": "config", "DeltaPlan": "plan", "PixelDiTPipeline": "pixel", "patch_diffusers": "patch"}


def __getattr__(name: str) -> Any:  # so that ``delta-dit --help`` need not wait for torch
    if name not in _HOME:
        raise AttributeError(f"module 'delta_dit' has no attribute {name!r}")
    return getattr(import_module(f"delta_dit.{_HOME[name]}"), name)
