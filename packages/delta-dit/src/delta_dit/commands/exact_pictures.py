"""Pictures beside the exact ones: how near the uncached sampler comes, and how near a plan that costs less."""

from dataclasses import dataclass, replace

from matplotlib.figure import Figure as Plot
from torch import Tensor

from delta_dit.commands.methods import EXACT, UNCACHED, Method, draw_all
from delta_dit.commands.models import Sampler
from delta_dit.commands.pictures import tiles
from delta_dit.config import DeltaCacheConfig
from delta_dit.embedded.plans import shipped_plan
from delta_dit.planning.fidelity import psnr
from frugal_shared.run import Run

BUDGET = 12.5
"""Full steps that the plan costs; one is shipped for it."""
EXACT_STEPS = 400
PLANNED = "planned"
LABELS = [4, 13, 22, 31, 36, 7]
"""Odd digits: the plan was made with the even ones."""
ENHANCED = 8


@dataclass(frozen=True)
class Pictures:
    """The same seeds drawn in three ways.

    Args:
        images: by name, ``(N, 3, H, W)`` in [0, 1]: exact, uncached and planned.
        steps: of the uncached run, which is also what it costs.
        planned_steps: of the plan.
    """

    images: dict[str, Tensor]
    steps: int
    planned_steps: int

    def psnr_db(self, name: str) -> Tensor:
        """Return how near each picture is to the exact one, ``(N,)`` in dB."""
        return psnr(self.images[name], self.images[EXACT])

    def results(self) -> dict[str, float]:
        """Return the mean PSNR to the exact pictures as flat floats."""
        return {f"{name}_psnr_exact_db": self.psnr_db(name).mean().item() for name in (UNCACHED, PLANNED)}

    def told(self, name: str) -> str:
        """Return what a row of pictures is, in two lines."""
        if name == EXACT:
            return f"exact\n({EXACT_STEPS} steps)"
        cost = f"{self.steps} steps" if name == UNCACHED else f"cost of {BUDGET:g} steps"
        return f"{name}\n{cost}\n{self.psnr_db(name).mean():.1f} dB"

    def plot(self) -> Plot:
        """Draw the three rows, and what the last two differ from the first."""
        rows = {self.told(name): images for name, images in self.images.items()}
        for name in (UNCACHED, PLANNED):
            rows[f"error of\n{name}\n× {ENHANCED}"] = error(self.images[name], self.images[EXACT])
        figure = Plot(figsize=(6.5, 1.0 * len(rows)), layout="constrained", dpi=130)
        for axes, (title, images) in zip(figure.subplots(len(rows), 1), rows.items(), strict=True):
            axes.imshow(tiles(images, 3), interpolation="none")
            axes.set_ylabel(title, rotation=0, ha="right", va="center", fontsize=10)
            axes.set(xticks=[], yticks=[])
        return figure


def draw(sampler: Sampler, run: Run, seed: int, steps: int) -> Pictures:
    """Draw them; the embedded model's."""
    sampler = replace(sampler, conditions=LABELS)
    plan = shipped_plan("demo", budget=BUDGET)
    methods = [
        Method(EXACT, EXACT_STEPS),
        Method(UNCACHED, steps),
        Method(PLANNED, plan.steps, DeltaCacheConfig(plan=plan)),
    ]
    images = {each.name: draw_all(each, sampler, run, seed, len(LABELS), len(LABELS)) for each in methods}
    return Pictures(images, steps, plan.steps)


def error(images: Tensor, reference: Tensor) -> Tensor:
    """Return the enhanced absolute difference, clipped to [0, 1]."""
    return (ENHANCED * (images - reference).abs()).clamp(0, 1)
