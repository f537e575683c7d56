"""``partial-finetune select``: the choice of what to tune by the angle."""

import shutil
from dataclasses import asdict, replace
from pathlib import Path

from frugal_shared.reading import read_dataclass
from frugal_shared.run import Run
from frugal_shared.writing import write_json
from partial_finetune.choice import Choice, select
from partial_finetune.commands.fitting import fit
from partial_finetune.commands.options import DELTA, SelectConfig, SelectionConfig
from partial_finetune.commands.task import Task, open_task


def main(config: SelectConfig) -> None:
    """Select, and write the results.

    Raises:
        ValueError: model or data cannot be had.
        RunError: an image cannot be read, or weights cannot be fetched.
    """
    with Run(config, "partial-finetune", mixed_precision=config.mixed_precision) as run:
        task = open_task(config, run)
        choice = choose(run, task, config, run.folder, config.seed)
        run.finish({"expression": choice.expression, "direction": choice.direction, "stability": choice.stability})


def choose(run: Run, task: Task, config: SelectionConfig, folder: Path, seed: int) -> Choice:
    """Select the layers to tune by short trainings below ``folder``, of which ``selection.json`` remains."""
    path = folder / "selection.json"
    if path.exists():
        return read_dataclass(path, Choice)
    short = replace(config, epochs=config.select_epochs)

    def tune(strategy: str, name: str, seed: int) -> float:
        return fit(run, task, short, strategy, folder / name, seed)["val_accuracy"]

    options = {"top_k": config.top_k, "direction": config.direction, "repeats": config.select_repeats}
    choice = select(task.model, task.start, tune, **options, seed=seed)
    if run.accelerator.is_main_process:
        write_json(path, asdict(choice))
        for trained in folder.glob(f"*/{DELTA}"):  # each as large as the model
            shutil.rmtree(trained)
    run.accelerator.wait_for_everyone()
    return choice
