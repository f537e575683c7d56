"""What the table of a comparison says beside the figures."""

import pytest
import torch

from delta_dit.commands.comparisons import at_budget, with_comparisons


def row(method, budget, cost, db):
    return {"method": method, "budget": budget, "cost_steps": cost, "psnr_db": db, "why": None}


def test_a_row_beside_the_wanted_cost_is_moved_to_it():
    rows = [row("a", 8, 8.0, 30.0), row("a", 16, 32.0, 40.0), row("b", 8, 8.4, 1.0), row("a", 128, 128.0, None)]
    assert at_budget(rows[1], rows, "psnr_db") == pytest.approx(35.0)  # 16 is half way from 8 to 32 on a log scale
    assert at_budget(rows[0], rows, "psnr_db") == pytest.approx(30.0)
    assert at_budget(rows[2], rows, "psnr_db") is None  # one row is no curve
    assert at_budget(row("a", 64, 32.0, 40.0), rows, "psnr_db") is None  # nothing is known there


def test_rows_are_compared_in_pairs_at_each_cost():
    generator = torch.Generator().manual_seed(0)
    base = 30 + 8 * torch.randn(200, generator=generator)
    better = base + 1 + 0.1 * torch.randn(200, generator=generator)
    rows = [row("uncached", None, 20.0, None), row("calibrated", 8, 8.0, 31.0), row("other", 8, 8.0, 30.0)]
    found = with_comparisons(rows, {"calibrated 8": better, "other 8": base}, "psnr_db")
    assert found[2]["behind_db"] == pytest.approx(1.0, abs=0.05) and found[2]["behind_db_ci"] < 0.05
    assert found[2]["behind_p"] < 1e-6 and found[2]["visible_db"] < 0.1
    assert "behind_db" not in found[0] and "behind_db" not in found[1]
