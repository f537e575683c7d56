"""What a run found, as a table to read at its end."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

ROWS = 20  # of the images with the highest scores
Record = dict[str, Any]


def show_summary(records: Sequence[Record]) -> None:
    """Print the images with the highest scores, and how many there are of which kind.

    Args:
        records: of all images, what was found or the error.
    """
    done = sorted((record for record in records if "error" not in record), key=lambda record: -record["score"])
    console = Console()
    if done:
        console.print(table_of(done[:ROWS], len(done)))
    marked = sum(record["area"] > 0 for record in done)
    told = f"{len(records)} images: {marked} with something above the threshold"
    if any("verdict" in record for record in done):
        told += f", {sum(record.get('verdict') == 'defect' for record in done)} defective"
    Console(soft_wrap=True).print(f"{told}, {len(records) - len(done)} that could not be used")


def table_of(records: Sequence[Record], total: int) -> Table:
    """Return a table with a row for each record."""
    judged = all("verdict" in record for record in records)
    title = f"the {len(records)} highest scores of {total}" if total > len(records) else None
    table = Table(title=title)
    for name in ("image", "score", "regions", "area %", *(["threshold", "verdict"] if judged else [])):
        table.add_column(name, justify="left" if name in ("image", "verdict") else "right", overflow="fold")
    for record in records:
        numbers = f"{record['score']:.4f}", str(len(record["boxes"])), f"{100 * record['area']:.2f}"
        verdict = [f"{record['threshold']:.4f}", record["verdict"]] if judged else []
        table.add_row(escape(printable(record["image"])), *numbers, *verdict)
    return table


def printable(text: str) -> str:
    """Return a text as a terminal may have it: a file's name may hold what moves the cursor, and what is no text."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)
