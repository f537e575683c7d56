"""``bdp-nas query``: what a cell reaches when it is trained in full, looked up in a table."""

import math
from dataclasses import asdict
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table as Grid

from bdp_nas.commands.folders import genotype_of
from bdp_nas.commands.options import QueryConfig
from bdp_nas.table import Table
from frugal_shared.checkpoint import write_json
from frugal_shared.errors import UsageError


def main(config: QueryConfig) -> list[dict[str, Any]]:
    """Show accuracy, rank and regret of a genotype on every data set of a table.

    Returns:
        Rows with ``dataset``, ``validation``, ``test``, ``rank``, ``architectures``, ``regret`` and ``genotype``; None
        where nobody measured.

    Raises:
        ValueError: no table, one that cannot be read, or a genotype that is not in it.
        RunError: a folder of something else than a search.
    """
    if config.table is None:
        raise UsageError("table=None is not possible; allowed: --table FILE, which build-table makes")
    genotype = genotype_of(config.genotype)
    standings = Table.load(config.table).query(genotype)
    rows = [{"dataset": name, **asdict(each), "genotype": genotype} for name, each in standings.items()]
    rows = [{name: None if is_nan(value) else value for name, value in row.items()} for row in rows]
    if config.json is not None:
        write_json(config.json, rows)
    show(rows)
    return rows


def is_nan(value: Any) -> bool:
    """Return whether a value is a number that is none."""
    return isinstance(value, float) and math.isnan(value)


def show(rows: list[dict[str, Any]]) -> None:
    """Print the rows."""
    grid, console = Grid(box=box.SIMPLE), Console(soft_wrap=True)
    console.print(escape(rows[0]["genotype"]), highlight=False)
    for name in ("data set", "validation %", "test %", "rank", "regret"):
        grid.add_column(name, justify="left" if name == "data set" else "right")
    for row in rows:
        validation = "–" if row["validation"] is None else f"{row['validation']:.2f}"
        rank = f"{row['rank']:,} of {row['architectures']:,}"
        grid.add_row(row["dataset"], validation, f"{row['test']:.2f}", rank, f"{row['regret']:.2f}")
    console.print(grid)
