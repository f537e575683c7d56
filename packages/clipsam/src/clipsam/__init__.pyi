from .backbone import Backbone
from .evaluation import Evaluation, evaluate
from .memory import Memory
from .mmr import MMRConfig, Refinement, refine
from .pipeline import ClipSAM, Segmentation
from .prompt_bank import PromptBank
from .promptable import Embedding, Prompts, Segmenter
from .sam import SamSegmenter
from .tiles import Tiling

__version__: str
__all__ = [
    "Backbone",
    "ClipSAM",
    "Embedding",
    "Evaluation",
    "MMRConfig",
    "Memory",
    "PromptBank",
    "Prompts",
    "Refinement",
    "SamSegmenter",
    "Segmentation",
    "Segmenter",
    "Tiling",
    "evaluate",
    "refine",
]
