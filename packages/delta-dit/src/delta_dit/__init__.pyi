from .adapters import Adapter, Stack, register_adapter
from .attach import (
    delta_cache,
    delta_cache_request,
    delta_cache_stats,
    disable_delta_cache,
    enable_delta_cache,
    end_delta_cache_request,
)
from .cache_mixin import patch_diffusers
from .config import DeltaCacheConfig
from .delta_plan import DeltaPlan
from .embedded.pixel import PixelDiTPipeline
from .planning.calibration import Calibration, calibrate
from .planning.trial import Trial
from .stats import DeltaCacheStats
from .summary import DeltaCacheSummary, delta_cache_summary

__version__: str
__all__ = [
    "Adapter",
    "Calibration",
    "DeltaCacheConfig",
    "DeltaCacheStats",
    "DeltaCacheSummary",
    "DeltaPlan",
    "PixelDiTPipeline",
    "Stack",
    "Trial",
    "calibrate",
    "delta_cache",
    "delta_cache_request",
    "delta_cache_stats",
    "delta_cache_summary",
    "disable_delta_cache",
    "enable_delta_cache",
    "end_delta_cache_request",
    "patch_diffusers",
    "register_adapter",
]
