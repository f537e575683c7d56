"""A measurement in parts: a run that was killed goes on with the part it was at."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from frugal_shared.run import Run
from frugal_shared.writing import write_json

Row = dict[str, Any]


def measure_parts(run: Run, parts: Sequence[Callable[[], list[Row]]], seed: int, path: Path | None = None) -> list[Row]:
    """Measure part after part, and return the rows of all.

    Args:
        run: keeps the rows of the parts that are done, and in the end ``rows.json``.
        parts: each begins with the same random numbers.
        seed: of those.
        path: of a second file for the rows.
    """
    done, state = run.restore() or (0, {"rows": []})
    for number, part in enumerate(run.progress(parts[done:], desc="bench"), done + 1):
        torch.manual_seed(seed)
        state["rows"] += part()
        run.save(number, state, keep=1)
    if run.accelerator.is_main_process:
        for file in (run.folder / "rows.json", path):
            if file is not None:
                write_json(file, state["rows"])
    return state["rows"]
