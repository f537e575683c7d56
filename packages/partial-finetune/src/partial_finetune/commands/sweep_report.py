"""What a sweep says: means over seeds with intervals, paired differences, and answers to the paper's questions."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean

from matplotlib.figure import Figure as Plot
from rich.console import Console
from rich.table import Table

from frugal_shared.evaluation import mean_interval
from frugal_shared.report import Figure, Report
from partial_finetune.commands.options import ANGLE, SweepConfig
from partial_finetune.commands.plots import angle_plot
from partial_finetune.commands.rows import Row

FULL = "full"


def summarise(judged: Sequence[Row]) -> list[Row]:
    """Return a row per strategy: means over the seeds with their 95 % intervals, and paired differences to full."""
    of = {
        row["strategy"]: {each["seed"]: each for each in judged if each["strategy"] == row["strategy"]}
        for row in judged
    }
    rows = [summary_row(name, list(each.values()), of.get(FULL, {})) for name, each in of.items()]
    for row in rows:
        row["pareto"] = None if row["tuned_parameters"] is None else not any(dominates(other, row) for other in rows)
    return rows


def summary_row(name: str, found: Sequence[Row], full: Mapping[int, Row]) -> Row:
    """Return the row of one strategy."""
    row: Row = {"strategy": name, "seeds": len(found), "learning_rate": found[0].get("learning_rate")}
    for key in ("accuracy", "shifted_accuracy", "val_accuracy"):
        row[key], row[f"{key}_ci"] = mean_interval([each[key] for each in found])
    for key in ("accuracy", "shifted_accuracy"):
        pairs = [each[key] - full[each["seed"]][key] for each in found if each["seed"] in full]
        row[f"{key}_minus_full"], row[f"{key}_minus_full_ci"] = mean_interval(pairs) if pairs else (None, None)
    for key in ("tuned_parameters", "tuned_backbone_parameters", "state_bytes", "activation_bytes", "train_seconds"):
        values = [each[key] for each in found if key in each]
        row[key] = fmean(values) if values else None
    return row


def dominates(a: Row, b: Row) -> bool:
    """Return whether ``a`` is at least as accurate with at most as many tuned parameters, and better in one of them."""
    if a["tuned_parameters"] is None or b["tuned_parameters"] is None:
        return False
    no_worse = a["accuracy"] >= b["accuracy"] and a["tuned_parameters"] <= b["tuned_parameters"]
    return no_worse and (a["accuracy"] > b["accuracy"] or a["tuned_parameters"] < b["tuned_parameters"])


def paired_difference(judged: Sequence[Row], one: str, other: str) -> tuple[float, float] | None:
    """Return mean and half width of the 95 % interval of the accuracy of ``one`` minus that of ``other``, by seed."""
    of = {(row["strategy"], row["seed"]): row["accuracy"] for row in judged}
    seeds = sorted({seed for strategy, seed in of if strategy == one} & {s for strategy, s in of if strategy == other})
    return mean_interval([of[one, seed] - of[other, seed] for seed in seeds]) if seeds else None


def answers(rows: Sequence[Row], judged: Sequence[Row], config: SweepConfig) -> list[str]:
    """Return in words what the sweep says to the paper's questions; a difference counts if its interval excludes 0."""
    partial = [row for row in rows if row["strategy"] != FULL and row["accuracy_minus_full"] is not None]
    better = [row["strategy"] for row in partial if row["accuracy_minus_full"] > row["accuracy_minus_full_ci"]]
    worse = [row["strategy"] for row in partial if -row["accuracy_minus_full"] > row["accuracy_minus_full_ci"]]
    said = [
        f"Beyond doubt more accurate than full fine-tuning: {', '.join(better) or 'none'}; "
        f"beyond doubt less accurate: {', '.join(worse) or 'none'}; all others: not told apart."
    ]
    control = f"random_{config.top_k}"
    if (found := paired_difference(judged, ANGLE, control)) is not None:
        said.append(f"The angle's choice minus as many random layers: {shown(*found)}; {verdict(*found)}.")
    return said


def shown(mean: float, ci: float) -> str:
    """Return a difference of accuracies in points."""
    return f"{100 * mean:+.2f} ± {100 * ci:.2f} points"


def verdict(mean: float, ci: float) -> str:
    """Return in words what an interval says about 0."""
    if math.isnan(ci) or abs(mean) <= ci:
        return "not told apart"
    return "better" if mean > 0 else "worse"


def report(rows: Sequence[Row], judged: Sequence[Row], selections: Sequence[Row], config: SweepConfig) -> Report:
    """Return the report: accuracy against parameters, the table, the answers, and the angles."""
    page = Report("Which parts to tune", f"{config.model} on {config.data}: {config.seeds} seeds, learning rates swept")
    page.figures(
        [
            Figure(pareto_plot(rows, "accuracy"), "clean test images", "mean ± 95 % interval over seeds"),
            Figure(pareto_plot(rows, "shifted_accuracy"), "corrupted test images", f"severity {config.severity}"),
        ]
    )
    for sentence in answers(rows, judged, config):
        page.text(sentence)
    page.table(
        list(rows),
        "intervals: Student t over the seeds; minus_full is paired by seed; pareto: no other row is "
        "at least as accurate with at most as many tuned parameters",
    )
    if selections:
        page.section("The angle's choices")
        for seed, found in enumerate(selections):
            caption = f"{found['expression']} ({found['direction']}); Kendall τ of the repeats {found['stability']:.2f}"
            page.figures([Figure(angle_plot(found["angles"]), f"seed {seed}", caption)])
    page.section("Every model")
    page.table(list(judged))
    return page


def pareto_plot(rows: Sequence[Row], key: str) -> Plot:
    """Return accuracy against tuned parameters, with intervals and names."""
    plot = Plot(figsize=(6.4, 4.2), layout="constrained")
    axes = plot.subplots()
    for row in rows:
        if row["tuned_parameters"] is None:
            continue
        axes.errorbar(row["tuned_parameters"] / 1e6, row[key], row[f"{key}_ci"], fmt="o", capsize=2)
        axes.annotate(
            row["strategy"],
            (row["tuned_parameters"] / 1e6, row[key]),
            fontsize=7,
            xytext=(3, 3),
            textcoords="offset points",
        )
    axes.set_xscale("log")
    axes.set_xlabel("tuned parameters (millions)")
    axes.set_ylabel(key.replace("_", " "))
    return plot


def show(rows: Sequence[Row]) -> None:
    """Print the table."""
    table = Table("strategy", "rate", "tuned", "accuracy", "shifted", "minus full", "seconds")
    for row in rows:
        tuned, rate = row["tuned_parameters"], row["learning_rate"]
        table.add_row(
            row["strategy"],
            f"{rate:g}" if rate else "",
            f"{tuned / 1e6:.2f} M" if tuned else "",
            f"{row['accuracy']:.3f} ± {row['accuracy_ci']:.3f}",
            f"{row['shifted_accuracy']:.3f} ± {row['shifted_accuracy_ci']:.3f}",
            ""
            if row["accuracy_minus_full"] is None
            else shown(row["accuracy_minus_full"], row["accuracy_minus_full_ci"]),
            f"{row['train_seconds']:.0f}" if row["train_seconds"] else "",
        )
    Console().print(table)
