"""``partial-finetune angles``: how far every unit was turned, as a table and a picture."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure as Plot
from matplotlib.ticker import MaxNLocator

from frugal_shared.checkpoint import write_json
from frugal_shared.report import Figure, Report
from frugal_shared.run import Run
from partial_finetune.checkpoint import start_of
from partial_finetune.commands.options import AnglesConfig
from partial_finetune.commands.tuned import base_of, find_deltas
from partial_finetune.fine_tuned_angle import angles
from partial_finetune.parts import anatomy

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
    """Return the angle of every layer, a line per kind over the blocks: only layers of one kind are compared.

    Args:
        angle_of: unit name, such as ``"attn[3]"``, → radians; units outside blocks are left out.
    """
    lines: dict[str, dict[int, float]] = {}
    for name, value in angle_of.items():
        kind, bracket, block = name.rstrip("]").partition("[")
        if bracket:
            lines.setdefault(kind, {})[int(block)] = value
    plot = Plot(figsize=(5.6, 3.8), layout="constrained")
    axes = plot.subplots()
    for kind, line in lines.items():
        blocks = sorted(line)
        axes.plot(blocks, [1000 * line[block] for block in blocks], "o-", label=kind)
    axes.set_xlabel("block")
    axes.set_ylabel("angle (milliradians)")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if lines:
        axes.legend()
    return plot
