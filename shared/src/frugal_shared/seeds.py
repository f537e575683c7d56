"""Random numbers that depend on the seed and the global index alone, never on how many processes share the work."""

import numpy as np
import torch


def derived_seed(seed: int, *index: int) -> int:
    """Return a 63-bit seed for one stream, independent between any two different ``(seed, *index)``.

    ``seed + index`` would make sample 1 of seed 0 the same as sample 0 of seed 1, so that "several seeds" would not be
    several at all; numpy's SeedSequence hashes instead. The index is its *spawn key*, not more of its entropy: entropy
    is padded with zeros, which would make ``(seed, 0)`` the same as ``(seed,)``.

    Args:
        seed: 0 or more.
        index: numbers in 0 … 2³² − 1 that name the stream, e.g. what it is for and which sample.
    """
    high, low = np.random.SeedSequence(seed, spawn_key=index).generate_state(2, np.uint32)
    return (int(high) << 31) ^ int(low)


def generator(seed: int, *index: int, device: str | torch.device = "cpu") -> torch.Generator:
    """Return a torch generator for the stream ``(seed, *index)``, e.g. one per global sample index."""
    return torch.Generator(device=device).manual_seed(derived_seed(seed, *index))


def sample_generators(seed: int, indices: range | list[int], device: str | torch.device = "cpu"):
    """Return one generator per global sample index, as diffusers pipelines take them."""
    return [generator(seed, index, device=device) for index in indices]
