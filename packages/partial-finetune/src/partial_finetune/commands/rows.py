"""The rows that a command found, as files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from frugal_shared.writing import write_json

Row = dict[str, Any]


def write_rows(folder: Path, json: Path | None, rows: Sequence[Row]) -> None:
    """Write ``rows.json`` in the run folder, and the file that the user named."""
    for path in (folder / "rows.json", json):
        if path is not None:
            write_json(path, list(rows))
