"""``bdp-nas ablate``: searchers × kinds of pruning × seeds; every cell of the table is searched, then retrained.

A kind of pruning sees the same images, halves, first weights and learning rates as the search without it, seed by seed.
Every cell is resumable, and an ablation that is started again goes on where it was. An architecture that several
searches of a seed have found is retrained once.
"""

import csv
import hashlib
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from bdp_nas.commands.ablate_report import Row, report, show, summarise
from bdp_nas.commands.data import open_data
from bdp_nas.commands.options import AblateConfig
from bdp_nas.commands.presets import PRESETS, Options, Preset
from bdp_nas.commands.retrain import run_retrain
from bdp_nas.commands.search import run_search
from bdp_nas.spaces import get_space
from bdp_nas.table import Table
from frugal_shared.checkpoint import write_bytes, write_json
from frugal_shared.errors import UsageError
from frugal_shared.run import Run

OF_VARIANT: dict[str, Options] = {
    "none": {"pruning": "none"},
    "random": {"pruning": "random"},
    "infobatch": {"pruning": "infobatch"},
    "bdp": {"pruning": "bdp"},
    "bdp-no-balance": {"pruning": "bdp", "tau": math.inf},
    "bdp-weights": {"pruning": "bdp", "levels": "weights"},
    "bdp-architecture": {"pruning": "bdp", "levels": "architecture"},
}
"""Options of a search by kind of pruning."""


def main(config: AblateConfig) -> None:
    """Search and retrain all cells, and write rows and report.

    Raises:
        ValueError: data or a table that cannot be had.
        RunError: an image cannot be read, or the ``[demo]`` extra is missing.
    """
    table = Table.load(config.table) if config.table else None
    space = PRESETS[config.preset].search.space
    if table is not None and table.space != space:
        raise UsageError(f"table={str(config.table)!r} is of the space {table.space!r}; allowed: {space!r}")
    with Run(config, "bdp-nas") as run:
        cells, splits = list(cells_of(config)), open_data(recipes(config).search, config.seed)
        unseen = len(splits.test), len(splits.val)
        rows = [fill(run, config, *cell, unseen, table) for cell in run.progress(cells, desc="cells")]
        summary = summarise(rows)
        if run.accelerator.is_main_process:
            write_rows(run.folder, rows, config.json)
            report(summary, rows, config).write(run.folder)
            show(summary)
        run.finish(
            {
                f"{row['searcher']}/{row['pruning']}/{key}": row[key]
                for row in summary
                for key in ("accuracy", "samples")
            }
        )


def cells_of(config: AblateConfig) -> Iterator[tuple[int, str, str]]:
    """Yield seed, searcher and kind of pruning: what is compared follows one another, so that times compare, too."""
    for seed in range(config.seed, config.seed + config.seeds):
        for searcher in config.searchers:
            for variant in config.variants:
                yield seed, searcher, variant


def recipes(config: AblateConfig) -> Preset:
    """Return the preset with what the caller wants otherwise."""
    preset = PRESETS[config.preset]
    common: Options = {name: getattr(config, name) for name in ("output_dir", "cpu", "device", "num_processes")}
    common |= {name: value for name in ("data", "samples") if (value := getattr(config, name)) is not None}
    search = replace(preset.search, **common, score=config.score, epochs=config.epochs or preset.search.epochs)
    return Preset(search, replace(preset.retrain, **common, epochs=config.retrain_epochs or preset.retrain.epochs))


def fill(
    run: Run,
    config: AblateConfig,
    seed: int,
    searcher: str,
    variant: str,
    unseen: tuple[int, int],
    table: Table | None,
) -> Row:
    """Search and retrain one cell, and return its row.

    Nothing is chosen by validation images, so that ``retrained_accuracy`` is that on them and the test images together;
    ``unseen`` is how many test and validation images there are.
    """
    preset, (tests, validations) = recipes(config), unseen
    recipe = replace(preset.search, searcher=searcher, seed=seed, **OF_VARIANT[variant])
    found = run_search(run, recipe, run.folder / "cells" / searcher / variant / f"seed-{seed}", seed)
    folder = run.folder / "retrained" / slug(found.genotype) / f"seed-{seed}"
    trained = run_retrain(run, replace(preset.retrain, seed=seed), found.genotype, folder, seed)
    return {
        "searcher": searcher,
        "pruning": variant,
        "seed": seed,
        "samples": sum(found.samples.values()),
        "seconds": found.seconds,
        "retrained_accuracy": (trained["accuracy"] * tests + (trained["val_accuracy"] or 0) * validations)
        / (tests + validations),
        "genotype": found.genotype,
        "forward": found.forward,
        "backward": found.backward,
        "flops": found.flops,
        "test_accuracy": trained["accuracy"],
        "val_accuracy": trained["val_accuracy"],
        "parameters": trained["parameters"],
        "collapsed": found.collapsed,
        "dead": get_space(recipe.space).is_dead(found.genotype),
        **({name: each.test for name, each in table.query(found.genotype).items()} if table else {}),
    }


def slug(genotype: str) -> str:
    """Return a folder's name for a genotype."""
    return hashlib.sha256(genotype.encode()).hexdigest()[:16]


def write_rows(folder: Path, rows: Sequence[Row], json: Path | None) -> None:
    """Write the rows as JSON and CSV."""
    for path in (folder / "rows.json", json):
        if path is not None:
            write_json(path, rows)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_bytes(folder / "rows.csv", text.getvalue().encode())
