"""Zero-shot anomaly segmentation with CLIP and SAM (ClipSAM, arXiv 2401.12665).

No method has landed yet.
"""

__version__ = "0.1.0"
