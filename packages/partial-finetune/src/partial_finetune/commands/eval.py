"""``partial-finetune eval``: tuned models on clean, corrupted and shifted images.

Validation images are for choosing; test images, corruptions and shifts are only ever looked at here.
"""

import csv
import io
from collections.abc import Iterable, Iterator

from rich.console import Console
from rich.table import Table

from frugal_shared.errors import UsageError
from frugal_shared.report import Report
from frugal_shared.run import Run
from frugal_shared.writing import write_bytes
from partial_finetune.commands.conditions import CLEAN, Condition, chosen_corruptions, judge, mean_accuracy
from partial_finetune.commands.models import data_of, find_deltas, open_tuned
from partial_finetune.commands.options import EvalConfig
from partial_finetune.commands.rows import Row, write_rows
from partial_finetune.data.corruptions import Corrupted
from partial_finetune.data.images import open_data
from partial_finetune.data.shifts import open_shift
from partial_finetune.deltas import Delta


def main(config: EvalConfig) -> None:
    """Evaluate every model under every condition; write rows, table and report.

    Raises:
        ValueError: a delta, data set, corruption or shift that cannot be had.
    """
    deltas = find_deltas(config.deltas)
    corruptions = chosen_corruptions(config.corruptions)
    with Run(config, "partial-finetune", mixed_precision=config.mixed_precision) as run:
        rows = []
        for path, delta in zip(config.deltas, deltas):
            tuned = open_tuned(delta, config.weights)
            tuned.model.to(run.accelerator.device)
            for condition in run.progress(conditions_of(delta, config, corruptions), desc=str(path)):
                found = judge(tuned, condition, run.accelerator, config.batch_size)
                rows.append({"delta": str(path), "strategy": delta.expression, **found})
        if run.accelerator.is_main_process:
            write_rows(run.folder, config.json, rows)
            write_bytes(run.folder / "rows.csv", as_csv(rows))
            report(rows).write(run.folder)
            show(rows)
        run.finish({f"{row['delta']}/{row['name']}/{row['severity'] or 0}": row["accuracy"] for row in rows})


def conditions_of(delta: Delta, config: EvalConfig, corruptions: Iterable[str]) -> Iterator[Condition]:
    """Yield clean test images, each corruption of them in each severity, and the shifted data sets."""
    splits = data_of(delta) if config.data is None else open_data(config.data, seed=delta.info["data_seed"])
    images = splits.test.limited(config.limit or len(splits.test))
    if list(images.classes) != delta.info["classes"]:
        raise UsageError(
            f"data={config.data!r} has other classes ({', '.join(images.classes[:4])}, …) than "
            f"delta {str(delta.path)!r} ({', '.join(delta.info['classes'][:4])}, …)"
        )
    yield Condition("clean", CLEAN, None, images)
    for kind in corruptions:
        for severity in config.severities:
            yield Condition("corruption", kind, severity, Corrupted(images, kind, severity, config.seed))
    for path in config.shifts:
        for shift in open_shift(path, delta.info["classes"]):
            yield Condition("shift", shift.name, None, shift.images, shift.mask)


def summary(rows: list[Row]) -> list[Row]:
    """Return one row per model: clean accuracy, mean over corruptions, mean over shifts."""
    models = dict.fromkeys((row["delta"], row["strategy"]) for row in rows)
    each = {model: [row for row in rows if (row["delta"], row["strategy"]) == model] for model in models}
    return [
        {"delta": delta, "strategy": strategy}
        | {kind: mean_accuracy(each[delta, strategy], kind) for kind in ("clean", "corruption", "shift")}
        for delta, strategy in models
    ]


def as_csv(rows: list[Row]) -> bytes:
    """Return the rows as a table."""
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def report(rows: list[Row]) -> Report:
    """Return the report: means, every row, and the worst conditions."""
    page = Report("Clean and shifted accuracy", "Corruptions are our own and deterministic: not ImageNet-C's files")
    page.table(summary(rows), "mean accuracy of each kind of condition")
    page.table(rows, "accuracy_low and _high: exact 95 % interval (Clopper and Pearson)")
    return page


def show(rows: list[Row]) -> None:
    """Print the means."""
    table = Table(*summary(rows)[0])
    for row in summary(rows):
        table.add_row(*(f"{value:.3f}" if isinstance(value, float) else str(value) for value in row.values()))
    Console().print(table)
