"""Fine-tuning of the right parts of a vision transformer, and soups of them (Partial Fine-Tuning, arXiv 2312.15681)."""

import sys
from typing import TYPE_CHECKING

from partial_finetune.door import Door

if TYPE_CHECKING:
    from partial_finetune.anatomy import Anatomy, anatomy
    from partial_finetune.angle import angle, angles
    from partial_finetune.checkpoint import base_hashes, load_delta, merge, open_delta, save_delta
    from partial_finetune.freeze import Frozen, freeze
    from partial_finetune.select import Choice, select

__version__ = "0.1.0"
__all__ = ["Anatomy", "Choice", "Frozen", "anatomy", "angle", "angles", "base_hashes", "freeze", "load_delta", "merge"]
__all__ += ["open_delta", "save_delta", "select"]
_HOME = dict.fromkeys(__all__, "checkpoint") | dict.fromkeys(["Anatomy", "anatomy"], "anatomy")
_HOME |= dict.fromkeys(["angle", "angles"], "angle") | dict.fromkeys(["Frozen", "freeze"], "freeze")
_HOME |= dict.fromkeys(["Choice", "select"], "select")
sys.modules[__name__].__class__ = Door
