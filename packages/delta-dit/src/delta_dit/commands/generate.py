"""``delta-dit generate``: images or videos by the hundred, on any number of processes, resumable.

An image is a file; a video is a folder of its frames.
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from delta_dit.adapters import blocks_of
from delta_dit.attach import delta_cache_stats, enable_delta_cache, transformers_of
from delta_dit.commands.models import conditions, load_sampler, sized
from delta_dit.commands.options import GenerateConfig
from delta_dit.commands.pictures import picture, png
from delta_dit.config import DeltaCacheConfig
from delta_dit.delta_plan import DeltaPlan
from frugal_shared.evaluation import chunks
from frugal_shared.report import grid
from frugal_shared.run import Run
from frugal_shared.writing import whole_folder, write_bytes, write_json

GRID_COLUMNS, GRID_IMAGES = 8, 64
SPEEDUP = "speedup.json"  # as measured while the first images were drawn


def main(config: GenerateConfig) -> None:
    """Draw the images that are not there yet, then the grid and the results."""
    cache = cache_config(config)  # a plan that cannot be read is told before a large model is loaded
    sampler = load_sampler(config.model, random_weights=config.random_weights, dtype=config.dtype)
    sampler = replace(sampler, conditions=conditions(config, sampler), size=sized(config, sampler))
    steps = config.steps or sampler.steps
    if cache.plan is not None and cache.plan.levels is None:  # it cannot be carried over to another number of steps
        steps = config.steps or cache.plan.steps
        cache.plan_for(steps, len(blocks_of(transformers_of(sampler.pipe)[0])))
    enable_delta_cache(sampler.pipe, cache)
    with Run(config, "delta-dit") as run:
        accelerator = run.accelerator
        sampler.pipe.to(accelerator.device)
        folder = run.folder / "images"
        shares = list(chunks(config.count, config.batch_size, accelerator.process_index, accelerator.num_processes))
        for chunk in run.progress(shares, desc="generate"):
            # a chunk is drawn whole or not at all, so that a resumed run draws the same batches
            if not all(drawn(folder, index) for index in chunk):
                images = sampler.draw(config.seed, chunk, steps=steps, guidance=config.guidance)
                if 0 in chunk:  # kept, because a resumed run may have nothing left to draw
                    write_json(run.folder / SPEEDUP, {"block_speedup": delta_cache_stats(sampler.pipe).block_speedup})
                for index, image in zip(chunk, images):
                    write(folder, index, image)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            files = [drawn(folder, index) for index in range(min(config.count, GRID_IMAGES))]
            shown = [np.asarray(Image.open(some[0])) for some in files]
            write_bytes(run.folder / "grid.png", png(grid(np.stack(shown), GRID_COLUMNS)))
        run.finish({"images": config.count, **json.loads((run.folder / SPEEDUP).read_text())})


def cache_config(config: GenerateConfig) -> DeltaCacheConfig:
    """Return what the cache is told."""
    if config.plan is not None:
        return DeltaCacheConfig(plan=DeltaPlan.load(config.plan))
    return DeltaCacheConfig(speedup=config.speedup, schedule=config.schedule)


def write(folder: Path, index: int, image: Tensor) -> None:
    """Write sample ``index``: an image, or a video as a folder of frames."""
    if image.ndim == 3:
        write_bytes(folder / f"{index:06d}.png", png(picture(image)))
        return
    with whole_folder(folder / f"{index:06d}") as frames:
        for number, frame in enumerate(image):
            write_bytes(frames / f"{number:04d}.png", png(picture(frame)))


def drawn(folder: Path, index: int) -> list[Path]:
    """Return the files of sample ``index``, in order; none if it is not drawn yet."""
    return sorted([*folder.glob(f"{index:06d}.png"), *folder.glob(f"{index:06d}/*.png")])
