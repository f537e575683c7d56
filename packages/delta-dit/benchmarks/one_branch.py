"""Is it better to reuse the Δ of one branch of guidance alone, at twice as many steps? At equal cost, it is not.

FasterCache and T-GATE save on the unconditional branch. Here all blocks' Δ of both branches, of the conditional one or
of the unconditional one is reused at steps spread evenly over the middle of the run, as many as cost the same; held,
and along a line in λ. The embedded model, PSNR in dB to the uncached images::

    python packages/delta-dit/benchmarks/one_branch.py --json runs/one-branch.json
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor

from delta_dit.adapters import blocks_of
from delta_dit.commands.models import Sampler, load_sampler
from delta_dit.delta import DeltaRecord
from delta_dit.delta_plan import Reuse
from delta_dit.noise import log_snr
from delta_dit.planning.fidelity import psnr
from frugal_shared.writing import write_json

STEPS = 20
FIRST, LAST = (5, 2), 18
"""From where to where steps are reused; a branch alone needs more of them, and so may begin earlier."""
BRANCHES = {"both": (0, 1), "conditional": (0,), "unconditional": (1,)}
ALL = Reuse(0, 1)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the check."""

    samples: int = 40
    """Images."""
    seed: int = 0
    """Of the noise."""
    guidance: tuple[float, ...] = (1.5, 4.0)
    """Guidance scales."""
    saved: tuple[int, ...] = (3, 5, 7)
    """How many of the 20 full steps are saved."""
    json: Path = Path("runs/one-branch.json")
    """Where the rows go."""


def main(config: Config) -> None:
    """Measure every combination and write the rows."""
    rows = []
    for guidance in config.guidance:
        sampler = replace(load_sampler("demo"), guidance=guidance)
        reference = drawn(sampler, config, {}, 0)
        for saved, order, first, name in product(config.saved, (0, 1), FIRST, BRANCHES):
            branches = BRANCHES[name]
            count = min(saved * 2 // len(branches), LAST - first)
            steps = spread(count, first)
            db = psnr(drawn(sampler, config, dict.fromkeys(branches, steps), order), reference)
            cost = STEPS - count * len(branches) / 2
            row = {"guidance": guidance, "cost_steps": cost, "order": order, "first": first, "branches": name}
            rows.append(row | {"psnr_db": db.mean().item(), "worst_psnr_db": db.min().item()})
            print(rows[-1], flush=True)
    write_json(config.json, rows)


def spread(count: int, first: int) -> set[int]:
    """Return so many steps, each in the middle of its share."""
    return {first + int((i + 0.5) * (LAST - first) / count) for i in range(count)}


def drawn(sampler: Sampler, config: Config, reused: dict[int, set[int]], order: int) -> Tensor:
    """Draw with some steps of some branches reused."""
    with reusing(sampler.pipe, reused, replace(ALL, order=order)):
        return sampler.draw(config.seed, range(config.samples), steps=STEPS)


@contextmanager
def reusing(pipe: Any, reused: dict[int, set[int]], how: Reuse) -> Iterator[None]:
    """Replace what all blocks add to one branch's half of the batch, where ``reused`` has the step, by its forecast.

    The blocks run all the same: this measures images, not time.
    """
    pipe.scheduler.set_timesteps(STEPS)
    axis = log_snr(pipe.scheduler, pipe.scheduler.timesteps.tolist()).tolist()
    blocks = [block.module for block in blocks_of(pipe.transformer)]
    records = [DeltaRecord(), DeltaRecord()]
    step, before = -1, torch.empty(0)

    def enter(_: Any, args: tuple[Tensor, ...]) -> None:
        nonlocal step, before
        step, before = step + 1, args[0]

    def leave(_: Any, __: Any, after: Tensor) -> Tensor:
        halves = []
        for branch, delta in enumerate((after - before).chunk(2)):
            if step in reused.get(branch, ()):
                (delta,) = records[branch].forecast(step, how, axis)
            else:
                records[branch].push(step, (delta,), keep=2)
            halves.append(delta)
        return before + torch.cat(halves)

    handles = [blocks[0].register_forward_pre_hook(enter), blocks[-1].register_forward_hook(leave)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
