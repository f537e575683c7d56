"""Fine-tuning of the right parts of a vision transformer, and soups of them (Partial Fine-Tuning, arXiv 2312.15681).

No method has landed yet.
"""

__version__ = "0.1.0"
