"""``clipsam train-sam``: the embedded SAM, made again."""

from clipsam.commands.options import TrainSamConfig
from clipsam.embedded.sam_recipe import train_sam
from frugal_shared.run import Run


def main(config: TrainSamConfig) -> None:
    """Train, save ``<output_dir>/sam.safetensors``, and write the results."""
    with Run(config, "clipsam", unused_parameters=True) as run:
        found = train_sam(run, **config.recipe)
        run.finish({"steps": config.steps, **found})
