"""What a plan is for: which images its own are to be near to, and over which of the samples. Nothing imports torch."""

from statistics import fmean, median
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

Target = Literal["exact", "uncached"]
"""The solution of the sampler's differential equation, as of very many steps; or the same run without a cache."""
Objective = Literal["mean", "worst", "median"]


def check_goal(target: str, objective: str) -> None:
    """Raise ValueError unless there are such a target and such an objective."""
    if target not in get_args(Target):
        raise ValueError(f"target={target!r} is unknown; allowed: {', '.join(get_args(Target))}")
    if objective not in get_args(Objective):
        raise ValueError(f"objective={objective!r} is unknown; allowed: {', '.join(get_args(Objective))}")


def summary(psnr: "Tensor | np.ndarray", objective: Objective) -> float:
    """Return the objective of one PSNR per sample, ``(N,)``."""
    values: list[float] = psnr.tolist()
    return {"mean": fmean, "worst": min, "median": median}[objective](values)
