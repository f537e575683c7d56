"""``partial-finetune eval``: tuned models on clean, corrupted and shifted images.

Validation images are for choosing; test images, corruptions and shifts are only ever looked at here.
"""

import csv
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from rich.console import Console
from rich.table import Table
from scipy.stats import binomtest

from frugal_shared.checkpoint import write_bytes, write_json
from frugal_shared.errors import UsageError, check_choice
from frugal_shared.report import Report
from frugal_shared.run import Run
from partial_finetune.checkpoint import Delta
from partial_finetune.commands.base import Base
from partial_finetune.commands.options import EvalConfig
from partial_finetune.commands.task import predict
from partial_finetune.commands.tuned import data_of, find_deltas, open_tuned
from partial_finetune.data.corruptions import CORRUPTIONS, Corrupted
from partial_finetune.data.images import Images, open_data
from partial_finetune.data.shifts import open_shift

CLEAN, ALL, NONE = "clean", "all", "none"
Row = dict[str, Any]


@dataclass(frozen=True)
class Condition:
    """Images to judge a model by."""

    kind: str
    """"clean", "corruption" or "shift"."""
    name: str
    severity: int | None
    images: Images
    mask: tuple[int, ...] | None = None
    """Columns of the logits that count: the classes that a shifted data set has; None: all."""


def evaluate(config: EvalConfig) -> None:
    """Evaluate every model under every condition; write rows, table and report.

    Raises:
        ValueError: a delta, data set, corruption or shift that cannot be had.
    """
    deltas = find_deltas(config.deltas)
    corruptions = chosen_corruptions(config.corruptions)
    with Run(config, "partial-finetune") as run:
        rows = []
        for path, delta in zip(config.deltas, deltas):
            tuned = open_tuned(delta, config.weights)
            tuned.model.to(run.accelerator.device)
            for condition in run.progress(conditions_of(delta, config, corruptions), desc=str(path)):
                found = judge(tuned, condition, run.accelerator, config.batch_size)
                rows.append({"delta": str(path), "strategy": delta.expression, **found})
        if run.accelerator.is_main_process:
            write_rows(run.folder, config.json, rows)
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


def chosen_corruptions(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the corruptions that are meant by names, "all" or "none".

    Raises:
        UsageError: an unknown one.
    """
    if names == (ALL,):
        return tuple(CORRUPTIONS)
    if names == (NONE,):
        return ()
    for name in names:
        check_choice("corruptions", name, (*CORRUPTIONS, ALL, NONE))
    return names


def judge(tuned: Base, condition: Condition, accelerator: Accelerator, batch_size: int) -> Row:
    """Return one row: accuracy with its exact 95 % interval (Clopper and Pearson)."""
    logits, labels = predict(tuned, condition.images, accelerator, batch_size)
    if condition.mask is not None:
        logits = logits[:, list(condition.mask)]
    right, count = int((logits.argmax(1) == labels).sum()), len(labels)
    interval = binomtest(right, count).proportion_ci()
    return {
        "kind": condition.kind,
        "name": condition.name,
        "severity": condition.severity,
        "accuracy": right / count,
        "accuracy_low": float(interval.low),
        "accuracy_high": float(interval.high),
        "images": count,
    }


def mean_accuracy(rows: Iterable[Row], kind: str) -> float:
    """Return the mean accuracy over all rows of a kind; NaN if there are none."""
    values = [row["accuracy"] for row in rows if row["kind"] == kind]
    return float(np.mean(values)) if values else float("nan")


def summary(rows: list[Row]) -> list[Row]:
    """Return one row per model: clean accuracy, mean over corruptions, mean over shifts."""
    models = dict.fromkeys((row["delta"], row["strategy"]) for row in rows)
    each = {model: [row for row in rows if (row["delta"], row["strategy"]) == model] for model in models}
    return [
        {"delta": delta, "strategy": strategy}
        | {kind: mean_accuracy(each[delta, strategy], kind) for kind in ("clean", "corruption", "shift")}
        for delta, strategy in models
    ]


def write_rows(folder: Path, json: Path | None, rows: list[Row]) -> None:
    """Write rows.json, rows.csv, and the file that the user named."""
    for path in (folder / "rows.json", json):
        if path is not None:
            write_json(path, rows)
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    write_bytes(folder / "rows.csv", text.getvalue().encode())


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
