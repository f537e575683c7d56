from .backbone import Backbone
from .calibration import Calibration, calibrate
from .evaluation import Evaluation, evaluate
from .memory import Memory
from .mmr import MMRConfig, Refinement, refine
from .pipeline import ClipSAM, Segmentation
from .prompt_bank import PromptBank
from .promptable import Embedding, Prompts, Segmenter
from .sam import SamSegmenter
from .score import image_score

__version__: str
__all__ = [
    "Backbone",
    "Calibration",
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
    "calibrate",
    "evaluate",
    "image_score",
    "refine",
]
