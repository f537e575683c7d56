"""Training-free acceleration of diffusion transformers by caching block deltas (Δ-DiT, arXiv 2406.01125)."""

__version__ = "0.1.0"
