"""What a table of figures says: who is better at the same cost, by how much, and whether that could be chance."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from delta_dit.planning.objective import Target
from frugal_shared.paired import compare_pairs

Row = dict[str, Any]
"""One method's figures by column; None for what it does not have."""

CALIBRATED = "calibrated"
"""The row that the others are compared with."""
FIDELITY: Mapping[Target, str] = {"exact": "psnr_exact_db", "uncached": "psnr_db"}
"""By target, the column that says how near to it."""
REACH = 1.05
"""Up to this ratio beyond its cheapest or dearest row a method's curve is drawn on."""


def name_of(method: str, cost: float | None) -> str:
    """Return a row's name: the method, and what it may cost."""
    return method if cost is None else f"{method} {cost:g}"


def with_comparisons(rows: list[Row], psnr: Mapping[str, Tensor], fidelity: str) -> list[Row]:
    """Return the rows, each with its difference to the calibrated plan's and its fidelity at the very cost wanted.

    Args:
        rows: as measured.
        psnr: of each sample, by the row's name.
        fidelity: the column of their means.
    """
    found = [row | {f"{fidelity[:-3]}_at_budget_db": at_budget(row, rows, fidelity)} for row in rows]
    for cost in {row["budget"] for row in rows} - {None}:
        ours = psnr.get(name_of(CALIBRATED, cost))
        names = [row["method"] for row in rows if row["budget"] == cost and row["method"] != CALIBRATED]
        others = {name: psnr[name_of(name, cost)] for name in names if name_of(name, cost) in psnr}
        if ours is None or len(ours) < 2:
            continue
        differences = compare_pairs({name: (ours - other).tolist() for name, other in others.items()})
        for row in found:
            if row["budget"] == cost and row["method"] in differences:
                difference = differences[row["method"]]
                row |= {"behind_db": difference.mean, "behind_db_ci": difference.half, "behind_p": difference.p}
                row["visible_db"] = difference.visible
    return found


def at_budget(row: Row, rows: list[Row], fidelity: str) -> float | None:
    """Return a method's fidelity at the very cost that was wanted: on straight lines over log cost between its rows.

    None if it has no such rows, or if it never was near that cost.
    """
    own = [r for r in rows if r["method"] == row["method"] and r.get(fidelity) is not None]
    curve = sorted({r["cost_steps"]: r[fidelity] for r in own}.items())
    if row["budget"] is None or len(curve) < 2:
        return None
    costs, values = np.log([cost for cost, _ in curve]), [value for _, value in curve]
    wanted = math.log(row["budget"])
    if not costs[0] - math.log(REACH) <= wanted <= costs[-1] + math.log(REACH):
        return None
    right = int(np.clip(np.searchsorted(costs, wanted), 1, len(costs) - 1))
    share = (wanted - costs[right - 1]) / (costs[right] - costs[right - 1])
    return float(values[right - 1] + share * (values[right] - values[right - 1]))
