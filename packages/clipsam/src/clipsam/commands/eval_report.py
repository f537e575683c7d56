"""What ``clipsam eval`` tells: rows as JSON and CSV, a table in the terminal, a report with curves and worst cases."""

import csv
import io
import math
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure as Plot
from PIL import Image
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from clipsam.commands.options import EvalConfig
from clipsam.evaluation import (
    ALL,
    COLUMNS,
    FALSE_ALARM,
    FIGURES,
    Case,
    Evaluation,
    Row,
)
from clipsam.pipeline import ClipSAM
from frugal_shared.checkpoint import write_bytes, write_json
from frugal_shared.report import Figure, Report

CURVE_POINTS = 300
UNREPEATED = {"output_dir", "json", "resume", "overwrite", "debug", "tracker"}
UNREPEATED |= {"num_processes", "cpu", "device", "timeout"}
"""Options that change nothing in the figures."""


def write_rows(folder: Path, rows: list[Row], config: EvalConfig) -> None:
    """Write the rows as JSON, also to where the user wants them, and as CSV."""
    plain = [{key: defined(value) for key, value in row.items()} for row in rows]
    for path in (folder / "rows.json", config.json):
        if path is not None:
            write_json(path, plain)
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, COLUMNS)
    table.writeheader()
    table.writerows(plain)
    write_bytes(folder / "rows.csv", text.getvalue().encode())


def results_of(rows: list[Row]) -> dict[str, float | None]:
    """Return the figures of the rows "all" as ``<dataset>_<stage>_<metric>``."""
    overall = [row for row in rows if row["category"] == ALL]
    return {f"{row['dataset']}_{row['stage']}_{key}": defined(row[key]) for row in overall for key in FIGURES}


def defined(value: Any) -> Any:
    """Return a value as JSON knows it: NaN is null."""
    return None if isinstance(value, float) and math.isnan(value) else value


def print_table(rows: list[Row]) -> None:
    """Print the rows "all" as a table; I- stands for image, "at" for the threshold of the F1 before it."""
    table = Table(title="means over the categories")
    titles = {"dataset": "data set", "stage": "stage", "auroc": "AUROC", "f1_max": "F1", "ap": "AP", "aupro": "AUPRO"}
    titles |= {"threshold": "at", "image_auroc": "I-AUROC", "image_ap": "I-AP", "image_f1_max": "I-F1"}
    titles |= {"image_threshold": "I-at"}
    for key, title in titles.items():
        table.add_column(title, justify="left" if key in ("dataset", "stage") else "right")
    for row in rows:
        if row["category"] == ALL:
            table.add_row(*(cell(row[key]) for key in titles))
    Console().print(table)


def cell(value: float | str) -> str:
    """Return a value as the printed table has it."""
    if isinstance(value, str):
        return escape(value)
    return "–" if math.isnan(value) else f"{value:.3f}"


def eval_page(found: Sequence[Evaluation], config: EvalConfig, model: ClipSAM) -> Report:
    """Return the report: curves, the table, every category, the worst cases, and what was trained on what."""
    rows = [row for each in found for row in each.rows]
    page = Report("How well the anomalies are found", ", ".join(each.name for each in found))
    page.figures(curve_figures(found))
    page.table([row for row in rows if row["category"] == ALL], "Means over the categories of each data set.")
    page.command(command(config))
    page.note(provenance_note(config, model))
    page.section("Every category")
    page.table([row for row in rows if row["category"] != ALL], "One row for each stage and category.")
    for each in found:
        page.section(f"Worst cases of {each.name}")
        page.figures(case_figures(each))
    return page


def provenance_note(config: EvalConfig, model: ClipSAM) -> str:
    """Return what the heads were trained on, and how to read the figures."""
    said = {key: value for key, value in model.provenance.items() if key != "files"}  # only hashes
    texts = {key: ", ".join(value) if isinstance(value, list) else value for key, value in said.items()}
    trained = "; ".join(f"{key} {text}" for key, text in texts.items()) or "none, or of unknown origin"
    return (
        f"UMCI heads: {trained}. {'Zero-shot: none of it is evaluated here. ' if config.zero_shot else ''}"
        f"AUPRO up to a false positive rate of {config.fpr_limit:g}; aupro_legacy200 is the variant with 200 "
        "thresholds of much published code, only to compare with its tables. image_auroc_low and _high are a 95 % "
        "interval (DeLong). The curves are of all pixels together, and so are the thresholds in the row of all "
        "categories, those of the best F1 on these very images; the other figures there are means of categories."
    )


def command(config: EvalConfig) -> str:
    """Return the command line that makes the report again: every option that is not the default."""
    words = ["clipsam", "eval"]
    for option in fields(config):
        value = getattr(config, option.name)
        if option.name not in UNREPEATED and value != option.default:
            words.append(f"--{option.name.replace('_', '-')}")
            words += map(str, value) if isinstance(value, tuple) else [] if value is True else [str(value)]
    return shlex.join(words)


def case_figures(found: Evaluation) -> list[Figure]:
    """Return the worst cases as figures."""
    return [
        Figure(Image.fromarray(case.picture), case_caption(case)) for case in found.worst if case.picture is not None
    ]


def case_caption(case: Case) -> str:
    """Return what went wrong with an image."""
    what = f"{case.entry.category}, {case.entry.defect}, {Path(case.entry.source).name}"
    if case.kind == FALSE_ALARM:
        return f"False alarm, score {case.badness:.2f}: {what}."
    return f"Missed, {'AP' if case.entry.has_mask else 'score'} {-case.badness:.2f}: {what}."


def curve_figures(found: Iterable[Evaluation]) -> list[Figure]:
    """Return the curves of every data set with masks."""
    return [Figure(curve_plot(each), f"Pixels of {each.name}, all stages.") for each in found if each.curves]


def curve_plot(found: Evaluation) -> Plot:
    """Draw precision against recall, and region overlap against the false positive rate."""
    figure = Plot(figsize=(8, 3.2), layout="constrained")
    precision, overlap = figure.subplots(1, 2)
    for stage, curve in found.curves.items():
        recall = curve.true_positives / curve.anomalous
        shown = np.unique(np.searchsorted(recall, np.linspace(0, 1, CURVE_POINTS)).clip(max=len(recall) - 1))
        precision.plot(
            recall[shown], (curve.true_positives / (curve.true_positives + curve.false_positives))[shown], label=stage
        )
        rate = np.linspace(0, 1, CURVE_POINTS) ** 2  # densest where defects are told from the rest
        overlap.plot(rate, np.interp(rate, curve.fpr, np.append(0.0, curve.overlap / curve.regions)), label=stage)
    precision.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1))
    overlap.set(xlabel="false positive rate", ylabel="region overlap", xlim=(0, 1), ylim=(0, 1))
    overlap.legend(loc="lower right")
    return figure
