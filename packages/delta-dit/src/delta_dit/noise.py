"""The logarithm of the signal-to-noise ratio, λ = log(α / σ): what a solver's error, and the change of a Δ, follow."""

from collections.abc import Sequence
from typing import Any

import numpy as np

NEAREST = 1e-3
"""How near to pure noise and to no noise a level is taken for: λ is infinite there."""


def log_snr(scheduler: Any, timesteps: Sequence[float]) -> np.ndarray:
    """Return λ at timesteps of a scheduler, ``(T,)``: of its table, or of flow matching, where σ is their share."""
    table = getattr(scheduler, "alphas_cumprod", None)
    if table is None:
        return log_snr_of_levels(np.asarray(timesteps) / scheduler.config.get("num_train_timesteps", 1000))
    values = table.double().cpu().numpy()
    signal = np.clip(np.interp(timesteps, np.arange(len(values)), values), NEAREST**2, 1 - NEAREST**2)
    return 0.5 * np.log(signal / (1 - signal))


def log_snr_of_levels(levels: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return λ of noise levels σ in [0, 1] of flow matching, ``(T,)``: α = 1 − σ."""
    sigmas = np.clip(np.asarray(levels, dtype=np.float64), NEAREST, 1 - NEAREST)
    return np.log((1 - sigmas) / sigmas)
