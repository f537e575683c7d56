"""``bdp-nas demo``: DARTS on real pictures without and with BDP, both cells retrained: costs, cells, what is pruned."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from scipy import stats

from bdp_nas.bilevel import Found
from bdp_nas.blueprint import Blueprint
from bdp_nas.configs import DemoConfig, RetrainConfig, SearchConfig
from bdp_nas.data import Images, open_data
from bdp_nas.drawing import alpha_plot, genotype_plot
from bdp_nas.plot import kept_plot, panels, walls
from bdp_nas.presets import FEW_STEPS, Options
from bdp_nas.retrain import run_retrain
from bdp_nas.search import run_search
from frugal_shared.checkpoint import write_json
from frugal_shared.report import Figure, Report
from frugal_shared.run import Run

Row = dict[str, Any]

PRUNINGS = ("none", "bdp")
NETWORK: Options = {"space": "nasbench201", "channels": 8, "cells": 1}
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


def demo(config: DemoConfig) -> None:
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


def recipes_of(config: DemoConfig, data: str) -> tuple[SearchConfig, RetrainConfig]:
    """Return the search, without its pruning, and the retraining."""
    options = NETWORK | OF_DATA.get(data, {}) | {"data": data, "samples": config.samples, "seed": config.seed}
    options |= {"output_dir": config.output_dir, "cpu": config.cpu, "num_processes": config.num_processes}
    search = SearchConfig(**options, epochs=config.epochs or EPOCHS, searcher="darts", searcher_options=FEW_STEPS)
    return search, RetrainConfig(**options, epochs=RETRAIN_EPOCHS)


def show_data(run: Run, config: DemoConfig, data: str) -> Shown:
    """Search in a data set without and with BDP, and retrain both cells."""
    search, retrain = recipes_of(config, data)
    splits = open_data(search, config.seed)
    found, blueprints, rows = {}, {}, []
    for pruning in run.progress(PRUNINGS, desc=data):
        folder = run.folder / data.replace(":", "-").replace("/", "-") / pruning
        each = run_search(run, replace(search, pruning=pruning), folder / "search", config.seed)
        trained = run_retrain(run, retrain, each.genotype, folder / "retrained", config.seed)
        found[pruning], blueprints[pruning] = each, Blueprint.read(folder / "search")
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
    """Return the report: cells and costs first, then for each data set what was pruned, and when."""
    page = Report("The same search on fewer samples", "DARTS in NAS-Bench-201's space, without and with data pruning")
    for data, each in shown.items():
        without, pruned = each.rows
        page.text(
            f"{WORDS.get(data, data)}: BDP's search drew {pruned['samples'] / without['samples']:.2f}× the samples and "
            f"took {pruned['seconds'] / without['seconds']:.2f}× the seconds. Retrained, its cell is right on "
            f"{pruned['retrained_accuracy']:.1%} of the test images, the other on {without['retrained_accuracy']:.1%}."
        )
        page.figures([cell_figure(data, row) for row in each.rows])
    page.table(
        [row for each in shown.values() for row in each.rows],
        f"seed {config.seed}; seconds of the search; accuracy_low and _high: exact 95 % interval (Clopper and Pearson)",
    )
    page.command(f"bdp-nas demo --data {' '.join(config.data)} --seed {config.seed}{asked(config)}")
    for data, each in shown.items():
        add_section(page, data, each)
    page.section("Cost ledger")
    page.table([row for data, each in shown.items() for row in ledger_rows(data, each.found)], "by level")
    page.note(
        "One seed is no evidence that one search finds better cells than another; `bdp-nas ablate` is made for that. "
        "The method is a reconstruction: the paper's formulas and settings are not known to us. Networks and pictures "
        "are small, so that two CPU cores suffice. Digits: scikit-learn's. Solar cells: ELPV (CC BY-NC-SA 4.0), those "
        "that the experts were sure of, functional or defective, of one crystal or many, made smaller."
    )
    return page


def asked(config: DemoConfig) -> str:
    """Return the options that differ from the demo's own choice."""
    options = {"samples": config.samples, "epochs": config.epochs}
    return "".join(f" --{name} {value}" for name, value in options.items() if value is not None)


def cell_figure(data: str, row: Row) -> Figure:
    """Return the cell of a row."""
    caption = f"{data}, {'without pruning' if row['pruning'] == 'none' else 'with BDP'}: {row['samples']:,} samples"
    return Figure(genotype_plot(NETWORK["space"], row["genotype"]), caption, f"the cell {row['genotype']}")


def add_section(page: Report, data: str, shown: Shown) -> None:
    """Add what was pruned in a data set, and how α went."""
    page.section(WORDS.get(data, data).capitalize())
    found, blueprint = shown.found["bdp"], shown.blueprints["bdp"]
    words = {"kept": "kept to the end by one of the levels", "pruned": "pruned by then"}
    pictures = walls(found, shown.images, PICTURES).items()
    page.figures([Figure(picture, words[name], pixelated=True) for name, picture in pictures])
    page.figures([Figure(kept_plot(found, blueprint.classes), "samples that each level uses, by class")])
    for name, title in zip(PRUNINGS, ("without pruning", "with BDP")):
        page.figures([Figure(alpha_plot(panels(shown.found[name], shown.blueprints[name])), f"mixture, {title}")])


def ledger_rows(data: str, found: Mapping[str, Found]) -> list[Row]:
    """Return what each level has cost."""
    return [
        {"data": data, "pruning": pruning, "level": level, **cost}
        for pruning, each in found.items()
        for level, cost in each.costs.items()
    ]
