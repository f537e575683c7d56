"""``delta-dit train-judge``: the recipe that made the judge of the embedded model's pictures."""

from delta_dit.commands.options import TrainJudgeConfig
from delta_dit.embedded.judge import train_judge
from frugal_shared.run import Run


def main(config: TrainJudgeConfig) -> None:
    """Train, save ``<output_dir>/judge.safetensors``, and write the results."""
    with Run(config, "delta-dit") as run:
        train_judge(run, steps=config.steps, batch_size=config.batch_size, learning_rate=config.learning_rate)
