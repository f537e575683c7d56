"""``partial-finetune angles``: how far every unit was turned, as a table and a picture."""

from collections.abc import Sequence

from frugal_shared.report import Figure, Report
from frugal_shared.run import Run
from partial_finetune.commands.models import find_deltas, open_base
from partial_finetune.commands.options import AnglesConfig
from partial_finetune.commands.plots import angle_plot
from partial_finetune.commands.rows import Row, write_rows
from partial_finetune.deltas import start_of
from partial_finetune.fine_tuned_angle import angles
from partial_finetune.parts import anatomy


def main(config: AnglesConfig) -> None:
    """Measure the angles of every delta; write rows and the report.

    Raises:
        ValueError: folders that hold no delta.
        RunError: the base's weights cannot be fetched.
    """
    deltas = find_deltas(config.deltas)
    with Run(config, "partial-finetune") as run:
        rows: list[Row] = []
        for path, delta in zip(config.deltas, deltas):
            model = open_base(delta, config.weights).model
            start = start_of(delta, model.state_dict())
            parts = anatomy(model)
            found = angles(start, start | delta.tensors(), parts, biases=config.biases)
            for name, value in found.items():
                unit = parts.unit(name)
                row = {"unit": name, "kind": unit.kind, "block": unit.block, "angle": value}
                rows.append({"delta": str(path), "strategy": delta.expression, **row})
        if run.accelerator.is_main_process:
            write_rows(run.folder, config.json, rows)
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
