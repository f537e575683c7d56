"""Differentiable architecture search on fewer samples (Bi-level Data Pruning, arXiv 2312.14200)."""

import lazy_loader

# the public names stand in __init__.pyi; each is imported when asked for, so that ``--help`` need not wait for torch
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__version__ = "0.1.0"
