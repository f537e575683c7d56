from .backbone import Backbone
from .memory import Memory
from .mmr import MMRConfig, Refinement, refine
from .pipeline import ClipSAM, Segmentation
from .prompts import PromptBank
from .sam import SamSegmenter, Segmenter

__version__: str
__all__ = [
    "Backbone",
    "ClipSAM",
    "MMRConfig",
    "Memory",
    "PromptBank",
    "Refinement",
    "SamSegmenter",
    "Segmentation",
    "Segmenter",
    "refine",
]
