"""Zero-shot anomaly segmentation with CLIP and SAM (ClipSAM, arXiv 2401.12665)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clipsam.backbone import Backbone
    from clipsam.memory import Memory
    from clipsam.mmr import MMRConfig, Refinement, refine
    from clipsam.model import ClipSAM, Segmentation
    from clipsam.prompts import PromptBank
    from clipsam.segmenter import SamSegmenter, Segmenter

__version__ = "0.1.0"
__all__ = ["Backbone", "ClipSAM", "MMRConfig", "Memory", "PromptBank", "Refinement"]
__all__ += ["SamSegmenter", "Segmentation", "Segmenter", "refine"]
_HOME = {"Backbone": "backbone", "Memory": "memory", "PromptBank": "prompts"}
_HOME |= {"ClipSAM": "model", "Segmentation": "model", "MMRConfig": "mmr", "Refinement": "mmr", "refine": "mmr"}
_HOME |= dict.fromkeys(["SamSegmenter", "Segmenter"], "segmenter")


def __getattr__(name: str) -> Any:  # so that ``clipsam --help`` need not wait for torch
    if name not in _HOME:
        raise AttributeError(f"module 'clipsam' has no attribute {name!r}")
    return getattr(import_module(f"clipsam.{_HOME[name]}"), name)
