from .adapters import Adapter, Stack, register_adapter
from .attach import DeltaCacheStats, delta_cache, delta_cache_stats, disable_delta_cache, enable_delta_cache
from .cache_mixin import patch_diffusers
from .calibration import Calibration, calibrate
from .config import DeltaCacheConfig
from .delta_plan import DeltaPlan
from .embedded.pixel import PixelDiTPipeline
from .trial import Trial

__version__: str
__all__ = [
    "Adapter",
    "Calibration",
    "DeltaCacheConfig",
    "DeltaCacheStats",
    "DeltaPlan",
    "PixelDiTPipeline",
    "Stack",
    "Trial",
    "calibrate",
    "delta_cache",
    "delta_cache_stats",
    "disable_delta_cache",
    "enable_delta_cache",
    "patch_diffusers",
    "register_adapter",
]
