"""What an ablation says: means over seeds with intervals, differences paired by seed, and verdicts in words."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Plot
from rich.console import Console
from rich.table import Table

from bdp_nas.commands.options import VARIANTS, AblateConfig
from bdp_nas.drawing import COLOURS
from frugal_shared.evaluation import mean_interval
from frugal_shared.report import Figure, Report

Row = dict[str, Any]
Interval = tuple[float, float]
"""Mean, and half width of the 95 % interval; NaN of a single value."""

UNPRUNED, RANDOM, BDP = "none", "random", "bdp"  # kinds of pruning
SAMPLES_LIMIT, SECONDS_LIMIT = 0.5, 0.55  # what BDP is to cost at most, beside no pruning
TABLES = ("cifar10", "cifar100", "imagenet16")


def summarise(rows: Sequence[Row]) -> list[Row]:
    """Return a row for each searcher and kind of pruning: means over seeds, ratios and differences paired by seed."""
    return [
        summary_row(rows, searcher, variant)
        for searcher in dict.fromkeys(row["searcher"] for row in rows)
        for variant in dict.fromkeys(row["pruning"] for row in rows if row["searcher"] == searcher)
    ]


def summary_row(rows: Sequence[Row], searcher: str, variant: str) -> Row:
    """Return one row of the summary; what has nothing to be compared with is None."""
    own = by_seed(rows, searcher, variant)
    row: Row = {"searcher": searcher, "pruning": variant, "seeds": len(own)}
    row["accuracy"], row["accuracy_ci"] = mean_interval([each["retrained_accuracy"] for each in own.values()])
    for key in ("samples", "seconds"):
        row[key], _ = mean_interval([each[key] for each in own.values()])
        row[f"{key}_ratio"], row[f"{key}_ratio_ci"] = ratio(own, by_seed(rows, searcher, UNPRUNED), key) or (None, None)
    for other in (UNPRUNED, RANDOM):
        found = None if other == variant else difference(rows, searcher, variant, other)
        row[f"minus_{other}"], row[f"minus_{other}_ci"] = found or (None, None)
    for key in TABLES:
        if all(key in each for each in own.values()):
            row[key], row[f"{key}_ci"] = mean_interval([each[key] for each in own.values()])
    for key in ("collapsed", "dead"):
        row[key] = sum(bool(each[key]) for each in own.values())
    return row


def by_seed(rows: Sequence[Row], searcher: str, variant: str) -> dict[int, Row]:
    """Return the rows of a cell by seed."""
    return {row["seed"]: row for row in rows if (row["searcher"], row["pruning"]) == (searcher, variant)}


def ratio(own: Mapping[int, Row], usual: Mapping[int, Row], key: str) -> Interval | None:
    """Return the interval of own ÷ usual, seed by seed."""
    pairs = [own[seed][key] / usual[seed][key] for seed in own if seed in usual]
    return mean_interval(pairs) if pairs else None


def difference(rows: Sequence[Row], searcher: str | None, one: str, other: str) -> Interval | None:
    """Return the interval of the mean of :func:`differences`, None without a pair."""
    pairs = differences(rows, searcher, one, other)
    return mean_interval(pairs) if pairs else None


def differences(rows: Sequence[Row], searcher: str | None, one: str, other: str) -> list[float]:
    """Return the accuracy of ``one`` − that of ``other``, seed by seed.

    Args:
        rows: of all cells.
        searcher: which one; None takes the pairs of all together.
        one: a kind of pruning.
        other: another one.
    """
    searchers = dict.fromkeys(row["searcher"] for row in rows) if searcher is None else (searcher,)
    return [
        ours["retrained_accuracy"] - theirs[seed]["retrained_accuracy"]
        for each in searchers
        for theirs in (by_seed(rows, each, other),)
        for seed, ours in by_seed(rows, each, one).items()
        if seed in theirs
    ]


def verdict(found: Interval) -> str:
    """Return in words what an interval says about 0."""
    mean, width = found
    if math.isnan(width):
        return "one pair tells nothing"
    if abs(mean) <= width:
        return "not told apart"
    return "better" if mean > 0 else "worse"


def count(pairs: Sequence[float]) -> str:
    """Return how many pairs go which way: unlike the mean, it does not hang on a single cell that passes nothing on."""
    higher, lower = sum(pair > 0 for pair in pairs), sum(pair < 0 for pair in pairs)
    return f"higher in {higher}, equal in {len(pairs) - higher - lower} and lower in {lower} pairs"


def points(found: Interval) -> str:
    """Return a difference of accuracies in points."""
    return f"{100 * found[0]:+.2f} ± {100 * found[1]:.2f} points"


def answers(summary: Sequence[Row], rows: Sequence[Row]) -> list[str]:
    """Return what the ablation says of BDP, searcher by searcher and over all."""
    said = [answer(row) for row in summary if row["pruning"] == BDP]
    for other, name in ((UNPRUNED, "no pruning"), (RANDOM, "random pruning at equal cost")):
        found = difference(rows, None, BDP, other)
        if found is not None:
            counted = count(differences(rows, None, BDP, other))
            said.append(f"BDP against {name}, all searchers together: {points(found)}, {verdict(found)}; {counted}.")
    found = difference(rows, None, BDP, RANDOM)
    if found is not None and not found[0] > found[1]:
        said.append(
            "That the samples are chosen by their dynamics, and not at random, has made no difference that this "
            "ablation could show: what is saved, random pruning saves as well."
        )
    return said


def answer(row: Row) -> str:
    """Return what the ablation says of BDP with one searcher."""
    said = [f"{row['searcher']} with BDP:"]
    if row["samples_ratio"] is not None:
        kept = row["samples_ratio"] <= SAMPLES_LIMIT and row["seconds_ratio"] <= SECONDS_LIMIT
        said.append(
            f"{row['samples_ratio']:.2f}× the samples and {row['seconds_ratio']:.2f}× the seconds of the search "
            f"without ({'within' if kept else 'NOT within'} {SAMPLES_LIMIT} and {SECONDS_LIMIT});"
        )
    for other, name in ((UNPRUNED, "no pruning"), (RANDOM, "random pruning")):
        if row[f"minus_{other}"] is not None:
            found = row[f"minus_{other}"], row[f"minus_{other}_ci"]
            said.append(f"accuracy against {name} {points(found)}, {verdict(found)};")
    return " ".join(said).rstrip(";:") + "."


def report(summary: Sequence[Row], rows: Sequence[Row], config: AblateConfig) -> Report:
    """Return the report: accuracy against samples, the verdicts, the table, every cell."""
    seeds = len({row["seed"] for row in rows})
    page = Report("What pruning does to a search", f"preset {config.preset}: {seeds} seeds, every cell retrained")
    page.figures([Figure(scatter(summary), "accuracy of what was found, trained from scratch, against samples drawn")])
    for sentence in answers(summary, rows):
        page.text(sentence)
    page.table(
        list(summary),
        "± and _ci: Student t, 95 %, over the seeds; ratios and differences are paired by seed, minus_none to the "
        "search without pruning, minus_random to random pruning on the same schedule; accuracy: on all images, of test "
        "and validation, that neither search nor retraining saw; collapsed and dead: how many cells mostly skip, and "
        "how many pass nothing on, because `none` cuts their output off",
    )
    page.command(command(config))
    page.note(
        "Bi-level Data Pruning is reconstructed here: the paper names prediction dynamics, a progressive schedule and "
        "a class balance, its formulas and settings are not known to us. The networks and images are small. Seconds "
        "are those of the searches, without retraining, on a machine that may have had other work."
    )
    page.section("Every cell")
    page.table(list(rows))
    return page


def command(config: AblateConfig) -> str:
    """Return the command that makes the report again."""
    said = f"bdp-nas ablate --preset {config.preset} --seeds {config.seeds} --score {config.score}"
    said += f" --searchers {' '.join(config.searchers)}"
    said += "" if config.variants == VARIANTS else f" --variants {' '.join(config.variants)}"
    options = {name: getattr(config, name) for name in ("data", "samples", "epochs", "retrain_epochs")}
    given = {name.replace("_", "-"): value for name, value in options.items() if value is not None}
    return said + "".join(f" --{name} {value}" for name, value in given.items())


def scatter(summary: Sequence[Row]) -> Plot:
    """Return accuracy against samples, a panel for each searcher."""
    searchers = list(dict.fromkeys(row["searcher"] for row in summary))
    plot = Plot(figsize=(3.1 * len(searchers) + 1.6, 3.4), layout="constrained")
    panels = plot.subplots(1, len(searchers), sharey=True, squeeze=False)
    for axes, searcher in zip(panels.flat, searchers):
        draw_panel(axes, searcher, [row for row in summary if row["searcher"] == searcher])
    panels.flat[0].set_ylabel("accuracy")
    plot.legend(*panels.flat[0].get_legend_handles_labels(), loc="outside right center", fontsize=8)
    return plot


def draw_panel(axes: Axes, searcher: str, summary: Sequence[Row]) -> None:
    """Draw the kinds of pruning of one searcher; a short horizontal shift keeps equal costs apart."""
    for number, row in enumerate(summary):
        colour = COLOURS[VARIANTS.index(row["pruning"]) % len(COLOURS)]
        x = row["samples"] * (1 + 0.012 * (number - len(summary) / 2))
        axes.errorbar(x, row["accuracy"], row["accuracy_ci"], fmt="o", capsize=3, color=colour, label=row["pruning"])
    axes.set_title(searcher, fontsize=9)
    axes.set_xlabel("samples drawn", fontsize=8)
    axes.set_xlim(left=0)
    axes.tick_params(labelsize=7)


def show(summary: Sequence[Row]) -> None:
    """Print the table."""
    table = Table("searcher", "pruning", "samples", "×", "seconds", "×", "accuracy", "minus none", "minus random")
    for row in summary:
        table.add_row(
            row["searcher"],
            row["pruning"],
            f"{row['samples']:,.0f}",
            short(row["samples_ratio"]),
            f"{row['seconds']:.1f}",
            short(row["seconds_ratio"]),
            f"{row['accuracy']:.3f} ± {row['accuracy_ci']:.3f}",
            *(
                "" if row[f"minus_{other}"] is None else points((row[f"minus_{other}"], row[f"minus_{other}_ci"]))
                for other in (UNPRUNED, RANDOM)
            ),
        )
    Console().print(table)


def short(value: float | None) -> str:
    """Return a ratio with two decimals, or nothing."""
    return "" if value is None else f"{value:.2f}"
