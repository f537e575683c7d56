"""Where do the shipped plans hold, and where do they break? On labels and seeds that they were not made with.

They were calibrated on the even digits, with guidance 1.5 and DPM-Solver++. Here the odd digits are drawn, also with
other guidance and other solvers; the mean PSNR in dB is that to the uncached images of the same setting::

    python packages/delta-dit/benchmarks/held_out.py --json runs/held-out.json
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
import tyro
from diffusers import DDIMScheduler, EulerDiscreteScheduler
from torch import Tensor

from delta_dit.commands.methods import Method
from delta_dit.commands.models import Sampler, load_sampler
from delta_dit.config import DeltaCacheConfig
from delta_dit.embedded.judge import load_judge
from delta_dit.embedded.plans import shipped_plan
from delta_dit.planning.fidelity import psnr
from frugal_shared.evaluation import chunks
from frugal_shared.writing import write_json

STEPS = 20
SPEEDUPS = (1.33, 1.6, 2.0, 2.5)
ODD_DIGITS = [label for label in range(40) if label // 4 % 2 == 1]
CALIBRATED = "calibrated"


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the held-out check."""

    samples: int = 40
    """Images per method and seed."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the noise; the plans were made with 1000 and 1001."""
    settings: tuple[str, ...] = ("as calibrated", "guidance 1.0", "guidance 4.0", "DDIM", "Euler")
    """What to draw with."""
    json: Path = Path("runs/held-out.json")
    """Where the rows go."""


def main(config: Config) -> None:
    """Measure every setting and write the rows."""
    rows = []
    for setting in config.settings:
        sampler = set_up(load_sampler("demo"), setting)
        references = [draw(Method("uncached", STEPS), sampler, seed, config.samples) for seed in config.seeds]
        readable = readability(references, sampler)
        for speedup in SPEEDUPS:
            for method in methods(speedup):
                means = [
                    psnr(draw(method, sampler, seed, config.samples), reference)
                    for seed, reference in zip(config.seeds, references, strict=True)
                ]
                db = torch.stack(means)  # (seeds, samples)
                rows.append(
                    {
                        "setting": setting,
                        "speedup": speedup,
                        "method": method.name,
                        "psnr_db": db.mean().item(),
                        "psnr_db_by_seed": db.mean(1).tolist(),
                        "share_below_30_db": (db < 30).double().mean().item(),
                        "uncached_outline_accuracy": readable,
                    }
                )
                print(f"{setting:14} {speedup:5} {method.name:12} {rows[-1]['psnr_db']:.2f} dB", flush=True)
                write_json(config.json, rows)


def methods(speedup: float) -> list[Method]:
    """Return what is compared at a speed-up; fewer steps get at least as much compute."""
    return [
        Method("fewer steps", -int(-STEPS // speedup)),
        Method("paper", STEPS, DeltaCacheConfig(speedup=speedup, schedule="paper")),
        Method("generic", STEPS, DeltaCacheConfig(speedup=speedup)),
        Method(CALIBRATED, STEPS, DeltaCacheConfig(plan=shipped_plan("demo", speedup))),
    ]


def set_up(sampler: Sampler, setting: str) -> Sampler:
    """Return the sampler under a setting, drawing the odd digits."""
    kind, _, value = setting.partition(" ")
    schedulers = {"DDIM": DDIMScheduler, "Euler": EulerDiscreteScheduler}
    if kind in schedulers:
        # "leading" leaves out the last training timestep, where this schedule has no signal at all
        config = {"timestep_spacing": "leading", "clip_sample": False}
        sampler.pipe.scheduler = schedulers[kind].from_config(sampler.pipe.scheduler.config, **config)
    guidance = float(value) if kind == "guidance" else sampler.guidance
    return replace(sampler, conditions=ODD_DIGITS, guidance=guidance)


def draw(method: Method, sampler: Sampler, seed: int, count: int) -> Tensor:
    """Draw ``count`` samples of a seed, ``(count, 3, H, W)``."""
    with method.on(sampler):
        return torch.cat([sampler.draw(seed, chunk, steps=method.steps) for chunk in chunks(count, 40, 0, 1)])


def readability(references: list[Tensor], sampler: Sampler) -> float:
    """Return how often the judge reads the digit that was asked for: low where the setting draws no digits at all."""
    judge = load_judge()
    right = [judge.reads(images, sampler.labels(range(len(images))))[0] for images in references]
    return torch.cat(right).double().mean().item()


if __name__ == "__main__":
    main(tyro.cli(Config))
