"""Zero-shot anomaly segmentation with CLIP and SAM (ClipSAM, arXiv 2401.12665)."""

import lazy_loader

# the public names stand in __init__.pyi; each is imported when asked for, so that ``--help`` need not wait for torch
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__version__ = "0.1.0"
