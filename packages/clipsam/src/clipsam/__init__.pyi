from .backbone import Backbone
from .calibration import Calibration, calibrate
from .clip_files import open_backbone
from .evaluation import Evaluation, evaluate
from .map_scale import MapScale
from .memory import Memory
from .mmr import MMRConfig, Refinement, refine
from .pipeline import ClipSAM, Segmentation
from .prompt_bank import PromptBank
from .promptable import Embedding, Prompts, Segmenter
from .sam import PromptableNetwork, SamSegmenter, TransformersSegmenter
from .sam_files import open_segmenter
from .score import image_score
from .tiles import Tiling

__version__: str
__all__ = [
    "Backbone",
    "Calibration",
    "ClipSAM",
    "Embedding",
    "Evaluation",
    "MMRConfig",
    "MapScale",
    "Memory",
    "PromptBank",
    "PromptableNetwork",
    "Prompts",
    "Refinement",
    "SamSegmenter",
    "Segmentation",
    "Segmenter",
    "Tiling",
    "TransformersSegmenter",
    "calibrate",
    "evaluate",
    "image_score",
    "open_backbone",
    "open_segmenter",
    "refine",
]
