"""``partial-finetune angles``: how far every unit was turned, as a table and a picture."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure as Plot

from frugal_shared.checkpoint import write_json
from frugal_shared.report import Figure, Report
from frugal_shared.run import Run
from partial_finetune.anatomy import anatomy
from partial_finetune.angle import angles
from partial_finetune.checkpoint import start_of
from partial_finetune.configs import AnglesConfig
from partial_finetune.tuned import base_of, find_deltas

Row = dict[str, Any]


def show_angles(config: AnglesConfig) -> None:
    """Measure the angles of every delta; write rows and the report.

    Raises:
        ValueError: folders that hold no delta.
        RunError: the base's weights cannot be fetched.
    """
    deltas = find_deltas(config.deltas)
    with Run(config, "partial-finetune") as run:
        rows: list[Row] = []
        for path, delta in zip(config.deltas, deltas):
            model = base_of(delta, config.weights).model
            start = start_of(delta, model.state_dict())
            parts = anatomy(model)
            found = angles(start, start | delta.tensors(), parts, biases=config.biases)
            for name, value in found.items():
                unit = parts.unit(name)
                row = {"unit": name, "kind": unit.kind, "block": unit.block, "angle": value}
                rows.append({"delta": str(path), "strategy": delta.expression, **row})
        if run.accelerator.is_main_process:
            for target in (run.folder / "rows.json", config.json):
                if target is not None:
                    write_json(target, rows)
            report(rows).write(run.folder)
        run.finish({f"{row['delta']}/{row['unit']}": row["angle"] for row in rows})


def report(rows: Sequence[Row]) -> Report:
    """Return the report: a picture per delta, and the table."""
    page = Report("Fine-tuned angles", "between pretrained and tuned weights of a unit, in radians")
    for delta in dict.fromkeys(row["delta"] for row in rows):
        mine = {row["unit"]: row["angle"] for row in rows if row["delta"] == delta}
        page.figures([Figure(angle_plot(mine), delta, "angle per block and kind")])
    page.table(list(rows))
    return page


def angle_plot(angle_of: Mapping[str, float]) -> Plot:
    """Return the angles of the layers as a heat map, kind × block.

    Args:
        angle_of: unit name, such as ``"attn[3]"``, → radians; units outside blocks are left out.
    """
    cells = {tuple(name.rstrip("]").split("[")): value for name, value in angle_of.items() if "[" in name}
    kinds = list(dict.fromkeys(kind for kind, _ in cells))
    blocks = 1 + max((int(block) for _, block in cells), default=0)
    values = np.full((max(len(kinds), 1), blocks), np.nan)
    for (kind, block), value in cells.items():
        values[kinds.index(kind), int(block)] = value
    plot = Plot(figsize=(1.5 + 0.45 * blocks, 1.2 + 0.4 * len(values)), layout="constrained")
    axes = plot.subplots()
    image = axes.imshow(values, aspect="auto", cmap="viridis")
    axes.set_yticks(range(len(kinds)), kinds)
    axes.set_xticks(range(blocks))
    axes.set_xlabel("block")
    plot.colorbar(image, ax=axes, label="radians")
    return plot
