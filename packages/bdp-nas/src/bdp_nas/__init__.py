"""Differentiable architecture search on fewer samples (Bi-level Data Pruning, arXiv 2312.14200).

No method has landed yet.
"""

__version__ = "0.1.0"
