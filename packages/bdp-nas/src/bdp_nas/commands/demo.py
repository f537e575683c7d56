"""``bdp-nas demo``: DARTS on real pictures without and with BDP, both cells retrained: costs, cells, what is pruned."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from matplotlib.figure import Figure as Plot
from scipy import stats

from bdp_nas.blueprint import Blueprint
from bdp_nas.commands.bilevel import Found
from bdp_nas.commands.data import Images, open_data
from bdp_nas.commands.folders import read_blueprint
from bdp_nas.commands.options import DemoConfig, RetrainConfig, SearchConfig
from bdp_nas.commands.pictures import PRUNED, kept_plot, mixture_plot, walls
from bdp_nas.commands.presets import FEW_STEPS, Options
from bdp_nas.commands.retrain import run_retrain
from bdp_nas.commands.search import run_search
from bdp_nas.drawing import COLOURS, genotype_plot
from frugal_shared.checkpoint import write_json
from frugal_shared.report import Claim, Figure, Report
from frugal_shared.run import Run

Row = dict[str, Any]

TITLES = {"none": "without pruning", "bdp": "with BDP"}
MARKS = {"none": "o", "bdp": "D"}
LEAD = {
    "data": "data",
    "pruning": "pruning",
    "samples": "samples",
    "seconds": "seconds",
    "retrained_accuracy": "accuracy",
    "accuracy_low": "low",
    "accuracy_high": "high",
    "parameters": "parameters",
}
"""Column of a row -> its heading in the lead."""
OF_ALL: Options = {"space": "nasbench201", "channels": 8, "cells": 1}
OF_DATA: dict[str, Options] = {"elpv": {"image_size": 16}}  # else the time does not suffice
EPOCHS, RETRAIN_EPOCHS = 20, 20
PICTURES = 36  # on a wall
WORDS = {"digits": "handwritten digits", "elpv": "photographs of solar cells"}


@dataclass(frozen=True, eq=False)
class Shown:
    """What is shown of a data set.

    Args:
        images: that were searched on.
        found: by kind of pruning.
        blueprints: by kind of pruning.
        rows: one for each kind of pruning.
    """

    images: Images
    found: Mapping[str, Found]
    blueprints: Mapping[str, Blueprint]
    rows: Sequence[Row]


def main(config: DemoConfig) -> None:
    """Search and retrain, and write rows, results and the report; what is done already is read back.

    Raises:
        ValueError: a data set that is unknown, or too small.
        RunError: the ``[demo]`` extra, which brings the solar cells, is missing.
    """
    with Run(config, "bdp-nas") as run:
        shown = {data: show_data(run, config, data) for data in config.data}
        rows = [row for each in shown.values() for row in each.rows]
        if run.accelerator.is_main_process:
            write_json(run.folder / "rows.json", rows)
            report(shown, config).write(run.folder)
        run.finish(
            {
                f"{row['data']}/{row['pruning']}/{key}": row[key]
                for row in rows
                for key in ("samples", "seconds", "retrained_accuracy")
            }
        )
        run.accelerator.print((run.folder / "report.html").resolve().as_uri())


def recipes_of(config: DemoConfig, data: str) -> tuple[SearchConfig, RetrainConfig]:
    """Return the search, without its pruning, and the retraining."""
    options = OF_ALL | OF_DATA.get(data, {}) | {"data": data, "samples": config.samples, "seed": config.seed}
    options |= {name: getattr(config, name) for name in ("output_dir", "cpu", "device", "num_processes")}
    search = SearchConfig(**options, epochs=config.epochs or EPOCHS, searcher="darts", searcher_options=FEW_STEPS)
    return search, RetrainConfig(**options, epochs=RETRAIN_EPOCHS)


def show_data(run: Run, config: DemoConfig, data: str) -> Shown:
    """Search in a data set without and with BDP, and retrain both cells."""
    search, retrain = recipes_of(config, data)
    splits = open_data(search, config.seed)
    found, blueprints, rows = {}, {}, []
    for pruning in TITLES:
        folder = run.folder / data.replace(":", "-").replace("/", "-") / pruning
        run.accelerator.print(f"{words_of(data)}: searching {TITLES[pruning]}")
        each = run_search(run, replace(search, pruning=pruning), folder / "search", config.seed)
        run.accelerator.print(f"{words_of(data)}: retraining the cell found {TITLES[pruning]}")
        trained = run_retrain(run, retrain, each.genotype, folder / "retrained", config.seed)
        found[pruning], blueprints[pruning] = each, read_blueprint(folder / "search")
        rows.append(row_of(data, pruning, each, trained, len(splits.test)))
    return Shown(splits.train, found, blueprints, rows)


def row_of(data: str, pruning: str, found: Found, trained: Mapping[str, Any], count: int) -> Row:
    """Return a row: what the search cost, and what the cell reaches."""
    low, high = stats.binomtest(round(trained["accuracy"] * count), count).proportion_ci(0.95, "exact")
    return {
        "data": data,
        "pruning": pruning,
        "samples": sum(found.samples.values()),
        "forward": found.forward,
        "backward": found.backward,
        "seconds": found.seconds,
        "gflops": found.flops / 1e9,
        "retrained_accuracy": trained["accuracy"],
        "accuracy_low": float(low),
        "accuracy_high": float(high),
        "parameters": trained["parameters"],
        "genotype": found.genotype,
    }


def report(shown: Mapping[str, Shown], config: DemoConfig) -> Report:
    """Return the report: costs, pruned pictures and cells first, then for each data set what was pruned, and when."""
    page = Report(
        "BDP: the same architecture search on fewer samples",
        "DARTS in NAS-Bench-201's space, without and with data pruning",
    )
    rows = [row for each in shown.values() for row in each.rows]
    page.figures([cost_figure(rows), *pruned_figures(shown)])
    for each in shown.values():
        page.figures([cell_figure(row) for row in each.rows])
    page.table(
        [{title: row[key] for key, title in LEAD.items()} for row in rows],
        f"seed {config.seed}; samples and seconds of the search; low, high: exact 95 % interval (Clopper and Pearson)",
    )
    page.command(f"bdp-nas demo --data {' '.join(config.data)} --seed {config.seed}{asked(config)}")
    page.claims("Bi-level Data Pruning, arXiv 2312.14200", claims(shown))
    for data, each in shown.items():
        add_section(page, data, each)
    page.section("Cost ledger")
    page.table(rows, "all that was measured")
    page.table([row for data, each in shown.items() for row in ledger_rows(data, each.found)], "by level")
    page.note(
        "One seed is no evidence that one search finds better cells than another; `bdp-nas ablate` is made for that. "
        "The method is a reconstruction: the paper's formulas and settings are not known to us. Networks and pictures "
        "are small, so that two CPU cores suffice. Digits: scikit-learn's. Solar cells: ELPV (CC BY-NC-SA 4.0), those "
        "that the experts were sure of, functional or defective, of one crystal or many, made smaller."
    )
    return page


def claims(shown: Mapping[str, Shown]) -> list[Claim]:
    """Return what the paper's abstract says beside what was found."""
    sizes = ", ".join(f"{len(each.images):,} {words_of(data)}" for data, each in shown.items())
    scale = f"{OF_ALL['space']}, {OF_ALL['cells']} cell per stage, {OF_ALL['channels']} channels; {sizes}; one seed."
    return [
        Claim(
            "More than 50 % less search cost with DARTS, and better architectures.",
            " ".join(saved(data, *each.rows) for data, each in shown.items()),
            scale,
        ),
        Claim(
            "An automatic constraint keeps the classes in balance while samples are pruned.",
            " ".join(
                f"{words_of(data).capitalize()}: no class's share of a level changed by more than "
                f"{100 * share_change(each.found['bdp']):.1f} points."
                for data, each in shown.items()
            ),
            scale,
        ),
        Claim(
            "About half the cost with other searchers too, such as PC-DARTS and β-DARTS.",
            "Not in this run; `bdp-nas ablate` compares searchers and kinds of pruning over seeds.",
        ),
    ]


def saved(data: str, without: Row, pruned: Row) -> str:
    """Return in words what the pruning saved, and what it did to the accuracy."""
    samples, seconds = (pruned[key] / without[key] for key in ("samples", "seconds"))
    return (
        f"{words_of(data).capitalize()}: BDP's search drew {samples:.2f}× the samples and took {seconds:.2f}× the "
        f"seconds; its cell is right on {pruned['retrained_accuracy']:.1%} of the test images, the other on "
        f"{without['retrained_accuracy']:.1%}."
    )


def share_change(found: Found) -> float:
    """Return the largest change of a class's share of a level from the first epoch to the last, in [0, 1]."""
    first, last = (found.history[epoch]["classes"] for epoch in (0, -1))
    return max(
        float(np.abs(np.divide(last[level], sum(last[level])) - np.divide(first[level], sum(first[level]))).max())
        for level in first
    )


def words_of(data: str) -> str:
    """Return what a data set shows."""
    return WORDS.get(data, data)


def asked(config: DemoConfig) -> str:
    """Return the options that differ from the demo's own choice."""
    options = {"samples": config.samples, "epochs": config.epochs}
    return "".join(f" --{name} {value}" for name, value in options.items() if value is not None)


def cost_figure(rows: Sequence[Row]) -> Figure:
    """Return accuracy against the samples that a search drew, with an arrow from without pruning to BDP."""
    plot = Plot(figsize=(4.4, 3.8), layout="constrained")
    axes = plot.subplots()
    for number, data in enumerate(dict.fromkeys(row["data"] for row in rows)):
        ends, colour = [], COLOURS[number]
        arrow = {"arrowstyle": "->", "color": colour, "shrinkA": 6, "shrinkB": 6}
        for row in (row for row in rows if row["data"] == data):
            x, y = row["samples"] / 1000, row["retrained_accuracy"]
            spread = [[y - row["accuracy_low"]], [row["accuracy_high"] - y]]
            axes.errorbar(x, y, spread, fmt=MARKS[row["pruning"]], color=colour, capsize=3)
            ends.append((x, y))
        axes.annotate("", ends[1], ends[0], arrowprops=arrow)
        axes.plot([], [], color=colour, label=words_of(data))
    for pruning, mark in MARKS.items():
        axes.plot([], [], mark, color="grey", label=TITLES[pruning])
    axes.set(xlabel="samples drawn by the search (thousands)", ylabel="accuracy of the retrained cell")
    axes.set_xlim(left=0)
    axes.legend(fontsize=8)
    return Figure(plot, "Search cost against accuracy, with 95 % intervals: further left is cheaper.", alt_of(rows))


def alt_of(rows: Sequence[Row]) -> str:
    """Return the points of the plot in words."""
    points = (
        f"{words_of(row['data'])} {TITLES[row['pruning']]}: {row['samples']:,} samples, {row['retrained_accuracy']:.1%}"
        for row in rows
    )
    return "; ".join(points)


def pruned_figures(shown: Mapping[str, Shown]) -> Iterable[Figure]:
    """Return for each data set pictures that neither level used in the end, if there are any."""
    for data, each in shown.items():
        found, total = each.found["bdp"], len(each.images)
        left = len(set().union(*found.kept.values()))
        if picture := walls(found, each.images, PICTURES, columns=6).get(PRUNED):
            caption = f"{words_of(data).capitalize()} pruned by the end: {total - left:,} of {total:,}."
            yield Figure(picture, caption, f"a wall of {words_of(data)}", pixelated=True)


def cell_figure(row: Row) -> Figure:
    """Return the cell of a row."""
    caption = f"{words_of(row['data']).capitalize()}, {TITLES[row['pruning']]}: {row['samples']:,} samples."
    return Figure(genotype_plot(OF_ALL["space"], row["genotype"]), caption, f"the cell {row['genotype']}")


def add_section(page: Report, data: str, shown: Shown) -> None:
    """Add what was pruned in a data set, and how α went."""
    page.section(words_of(data).capitalize())
    found, blueprint = shown.found["bdp"], shown.blueprints["bdp"]
    words = {"kept": "kept to the end by one of the levels", "pruned": "pruned by then"}
    pictures = walls(found, shown.images, PICTURES).items()
    page.figures([Figure(picture, words[name], pixelated=True) for name, picture in pictures])
    page.figures([Figure(kept_plot(found, blueprint.classes), "samples that each level uses, by class")])
    for name, title in TITLES.items():
        page.figures([Figure(mixture_plot(shown.found[name], shown.blueprints[name]), f"mixture, {title}")])


def ledger_rows(data: str, found: Mapping[str, Found]) -> list[Row]:
    """Return what each level has cost."""
    return [
        {"data": data, "pruning": pruning, "level": level, **cost}
        for pruning, each in found.items()
        for level, cost in each.costs.items()
    ]
