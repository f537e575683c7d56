"""``delta-dit calibrate``: a model's :class:`~delta_dit.calibration.Calibration`, on any number of processes."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from delta_dit.calibration import measure, probe_count
from delta_dit.commands.models import Sampler, conditions, load_sampler
from delta_dit.commands.options import CalibrateConfig
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
    sampler = replace(sampler, conditions=mixed, steps=config.steps, guidance=guidance)
    with Run(config, "delta-dit") as run:
        sampler.pipe.to(run.accelerator.device)

        def share(samples: int) -> list[range]:
            world = run.accelerator.process_index, run.accelerator.num_processes
            return list(chunks(samples, config.batch_size, *world))

        found = measure(
            sampler.pipe,
            lambda batch: sampler.draw(config.seed, batch),
            share(config.samples),
            share(probe_count(config.samples)),
            about=about(sampler, config),
            gather=gather_chunks,
            progress=lambda probes: run.progress(probes, desc="calibrate"),
        )
        if run.accelerator.is_main_process:
            found.save(run.folder / FILE)
        whole = found.harm[1:, 0]
        run.finish(
            {
                "steps": found.steps,
                "blocks": found.blocks,
                "samples": config.samples,
                "most_sensitive_step_db": float(-10 * np.log10(whole.max())),
                "least_sensitive_step_db": float(-10 * np.log10(whole.min())),
            }
        )


def mix(values: list[Any], seed: int) -> list[Any]:
    """Return the values in a random order that follows from the seed."""
    return [values[i] for i in torch.randperm(len(values), generator=generator(seed, _ORDER)).tolist()]


def about(sampler: Sampler, config: CalibrateConfig) -> dict[str, Any]:
    """Return what `plan` needs to draw from the model again."""
    return {
        "model": sampler.name,
        "steps": sampler.steps,
        "guidance": sampler.guidance,
        "seed": config.seed,
        "samples": config.samples,
        sampler.argument: sampler.conditions,
    }
