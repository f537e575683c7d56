"""``delta-dit train-demo``: the recipe that made the embedded model."""

from delta_dit.commands.options import TrainDemoConfig
from delta_dit.embedded.dit import train_dit
from frugal_shared.run import Run


def main(config: TrainDemoConfig) -> None:
    """Train, save ``<output_dir>/pipeline``, and write the results."""
    with Run(config, "delta-dit") as run:
        train_dit(
            run,
            blocks=config.blocks,
            heads=config.heads,
            steps=config.steps,
            batch_size=config.batch_size,
            learning_rate=config.learning_rate,
            save_every=config.save_every,
        )
