"""``clipsam train-text``: the embedded CLIP's text tower, made again."""

from clipsam.commands.options import TrainTextConfig
from clipsam.embedded.text_recipe import train_text
from frugal_shared.errors import UsageError
from frugal_shared.run import Run


def main(config: TrainTextConfig) -> None:
    """Train, save ``<output_dir>/clip.safetensors``, and write the results.

    Raises:
        UsageError: several processes, which would each see a part of the batch only.
    """
    if config.num_processes not in (None, 1):
        raise UsageError(f"num_processes={config.num_processes} would split the contrast; allowed: 1")
    with Run(config, "clipsam") as run:
        found = train_text(run, **config.recipe)
        run.finish({"steps": config.steps, **found})
