"""``partial-finetune train``: one fine-tuning."""

from frugal_shared.run import Run
from partial_finetune.commands.fitting import fit
from partial_finetune.commands.options import ANGLE, TrainConfig
from partial_finetune.commands.select import choose
from partial_finetune.commands.task import open_task

SELECTION = "selection"


def main(config: TrainConfig) -> None:
    """Tune what the strategy names, save it in ``<output_dir>/delta``, and write the results.

    Raises:
        ValueError: model, data or strategy cannot be had.
        RunError: an image cannot be read, or weights cannot be fetched.
    """
    with Run(config, "partial-finetune", mixed_precision=config.mixed_precision) as run:
        task = open_task(config, run)
        strategy = config.strategy
        if strategy == ANGLE:
            strategy = choose(run, task, config, run.folder / SELECTION, config.seed).expression
        facts = fit(run, task, config, strategy, run.folder, config.seed)
        run.finish(facts | {"linear_accuracy": task.linear_accuracy})
