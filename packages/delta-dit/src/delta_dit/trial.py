"""Plans tried on the model itself."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from delta_dit.adapters import blocks_of
from delta_dit.attach import delta_cache, sole_transformer
from delta_dit.delta_plan import DeltaPlan, Reuses
from delta_dit.fidelity import psnr


class Trial:
    """How good plans are: the mean PSNR of a pipeline's images under a plan to its uncached ones.

    Args:
        pipe: the pipeline.
        draw: draws with it, the same images whenever it is called: ``(B, C, H, W)`` in [0, 1]. Of other noise than the
            calibration's, so that a plan is not tried on what it was made with.
        levels: noise level of each of its steps, as the calibration has them.

    Attributes:
        samples: B.
        known: the plans that were tried, and their PSNR in dB.
    """

    def __init__(self, pipe: Any, draw: Callable[[], Tensor], levels: Sequence[float]) -> None:
        self.pipe, self.draw, self.levels = pipe, draw, tuple(levels)
        self.blocks = len(blocks_of(sole_transformer(pipe)))
        self.known: dict[Reuses, float] = {}
        self._uncached = draw()
        self.samples = len(self._uncached)

    def __call__(self, reuses: Reuses) -> float:
        """Return the mean PSNR in dB of a plan's images to the uncached ones; each plan is drawn once."""
        if reuses not in self.known:
            plan = DeltaPlan.of(self.blocks, reuses, levels=self.levels)
            with delta_cache(self.pipe, plan):
                self.known[reuses] = psnr(self.draw(), self._uncached).mean().item()
        return self.known[reuses]
