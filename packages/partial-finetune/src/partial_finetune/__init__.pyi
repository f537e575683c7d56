from .checkpoint import base_hashes, load_delta, merge, open_delta, save_delta
from .choice import Choice, select
from .fine_tuned_angle import angle, angles
from .frozen import Frozen, freeze
from .parts import Anatomy, anatomy

__version__: str
__all__ = [
    "Anatomy",
    "Choice",
    "Frozen",
    "anatomy",
    "angle",
    "angles",
    "base_hashes",
    "freeze",
    "load_delta",
    "merge",
    "open_delta",
    "save_delta",
    "select",
]
