"""What the recipes of several packages have in common: the learning rate's course, and who takes which samples."""

import math
from typing import TypeVar

import numpy as np
import torch
from accelerate import Accelerator

from frugal_shared.errors import UsageError

Rows = TypeVar("Rows", np.ndarray, torch.Tensor, list)


def warm_up_cosine(step: int, steps: int, warm_up: int) -> float:
    """Return the learning rate's factor at ``step`` of ``steps``: linear warm-up, then a cosine to zero."""
    warm = min(1.0, (step + 1) / max(1, min(warm_up, steps)))
    return warm * 0.5 * (1 + math.cos(math.pi * step / steps))


def share(accelerator: Accelerator, rows: Rows) -> Rows:
    """Return this process's part of a global batch.

    Equal parts, because the gradients' mean over the processes is only then that of the whole batch.

    Raises:
        UsageError: the batch does not divide evenly.
    """
    world = accelerator.num_processes
    if len(rows) % world:
        raise UsageError(f"batch_size={len(rows)} does not divide among {world} processes; allowed: multiples of it")
    return rows[accelerator.process_index :: world]
