"""``delta-dit calibrate``: a model's :class:`~delta_dit.planning.calibration.Calibration`, on N processes."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from delta_dit.commands.models import Sampler, conditions, load_sampler, sized
from delta_dit.commands.notes import KeptNotes
from delta_dit.commands.options import CalibrateConfig
from delta_dit.planning.calibration import best_spacing, generations, measure, probe_count
from delta_dit.planning.draws import Draws, Notes
from frugal_shared.evaluation import chunks, gather_chunks
from frugal_shared.run import Run
from frugal_shared.seeds import generator

FILE = "calibration.safetensors"
_ORDER = 8  # stream of random numbers


def main(config: CalibrateConfig) -> None:
    """Measure, and write ``calibration.safetensors`` into the run folder."""
    sampler = load_sampler(config.model, dtype=config.dtype)
    guidance = sampler.guidance if config.guidance is None else config.guidance
    # shuffled, because neighbouring classes resemble each other and only a few are drawn
    mixed = mix(conditions(config, sampler), config.seed)
    sampler = replace(sampler, conditions=mixed, steps=config.steps, guidance=guidance, size=sized(config, sampler))
    with Run(config, "delta-dit") as run:
        sampler.pipe.to(run.accelerator.device)

        def share(samples: int) -> list[range]:
            world = run.accelerator.process_index, run.accelerator.num_processes
            return list(chunks(samples, config.batch_size, *world))

        cost = generations(config.samples, config.steps, move_steps=config.move_steps)
        run.accelerator.print(f"calibrate: as much as {cost:.0f} images drawn uncached")
        draws = drawing(sampler, config.seed, share(config.samples), KeptNotes(run))
        probed = draws.first(share(probe_count(config.samples)))
        if config.move_steps:
            draws.spacing = probed.spacing = best_spacing(probed, config.steps)
        found = measure(
            draws,
            probed,
            config.steps,
            about=about(sampler, config),
            progress=lambda probes: run.progress(probes, desc="calibrate"),
        )
        if run.accelerator.is_main_process:
            found.save(run.folder / FILE)
        whole = found.harm[:, 0]
        run.finish(
            {
                "steps": found.steps,
                "blocks": found.blocks,
                "samples": config.samples,
                "generations": found.about["generations"],
                "most_sensitive_step_db": float(-10 * np.log10(np.nanmax(whole))),
                "least_sensitive_step_db": float(-10 * np.log10(np.nanmin(whole))),
            }
        )


def drawing(sampler: Sampler, seed: int, batches: list[range], notes: Notes) -> Draws[range]:
    """Return samples of a seed, on any number of processes."""
    return Draws(
        sampler.pipe, lambda batch, steps: sampler.compare(seed, batch, steps), batches, gather_chunks, notes=notes
    )


def mix(values: list[Any], seed: int) -> list[Any]:
    """Return the values in a random order that follows from the seed."""
    return [values[i] for i in torch.randperm(len(values), generator=generator(seed, _ORDER)).tolist()]


def about(sampler: Sampler, config: CalibrateConfig) -> dict[str, Any]:
    """Return what `plan` needs to draw from the model again."""
    return {
        "model": sampler.name,
        "guidance": sampler.guidance,
        "seed": config.seed,
        "samples": config.samples,
        "size": sampler.size,
        sampler.argument: sampler.conditions,
    }
