"""``delta-dit train-demo-lcm``: the recipe that made the embedded 4-step model."""

from pathlib import Path

from diffusers import DiTTransformer2DModel

from delta_dit.commands.options import TrainDemoLcmConfig
from delta_dit.embedded.lcm import distil
from delta_dit.embedded.pixel import load_embedded, load_pixel_pipeline
from frugal_shared.errors import RunError
from frugal_shared.run import Run


def main(config: TrainDemoLcmConfig) -> None:
    """Distil, save ``<output_dir>/pipeline``, and write the results."""
    with Run(config, "delta-dit") as run:
        distil(
            run,
            load_teacher(config.teacher),
            guidance=config.guidance,
            steps=config.steps,
            batch_size=config.batch_size,
            learning_rate=config.learning_rate,
            save_every=config.save_every,
        )


def load_teacher(folder: Path | None) -> DiTTransformer2DModel:
    """Return the teacher's transformer in float32: of a pipeline's folder, or the embedded one.

    Raises:
        RunError: the folder does not hold such a pipeline.
    """
    if folder is None:
        return load_embedded().transformer
    try:
        return load_pixel_pipeline(folder).transformer
    except Exception as error:  # hub, file and format errors share no base class
        raise RunError(f"teacher={str(folder)!r} is not the pipeline of a train-demo run: {error}") from error
