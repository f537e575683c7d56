"""The investigation: what each band measures, and what the command writes."""

import json
import math

import pytest
import torch

from delta_dit.commands.analyze import band_errors, one_reuse, split, steadily
from delta_dit.commands.cli import main
from delta_dit.delta_plan import Reuse


def wave(cycles):
    """One picture 32 pixels wide with this many cycles across it, amplitude 1."""
    x = torch.arange(32) / 32
    return torch.sin(2 * math.pi * cycles * x).expand(1, 1, 32, 32)


def test_each_band_measures_its_own_frequencies():
    reference = wave(2) + wave(12)  # 12 of 16 cycles is above a quarter of Nyquist, 2 is below
    assert band_errors(1.5 * wave(2) + wave(12), reference) == pytest.approx((0.5, 0), abs=1e-6)
    assert band_errors(wave(2) + 0.7 * wave(12), reference) == pytest.approx((0, 0.3), abs=1e-6)


def test_a_shift_in_brightness_is_in_neither_band():
    reference = wave(2) + wave(12)
    assert band_errors(reference + 0.2, reference) == pytest.approx((0, 0), abs=1e-6)


@pytest.mark.parametrize("count", [1, 2, 5, 12])
def test_ranges_cover_all_blocks_once(count):
    covered = [block for start, end in split(12, count) for block in range(start, end)]
    assert covered == list(range(12))


def reused(plan):
    return {step: action.range for step, action in enumerate(plan.actions) if isinstance(action, Reuse)}


def test_the_plans_reuse_what_they_say():
    assert reused(one_reuse(5, 12, (0, 3), 2)) == {2: (0, 3)}
    assert reused(steadily(6, 12, (9, 12), 2)) == {1: (9, 12), 3: (9, 12), 5: (9, 12)}


def test_the_command_maps_every_range_at_every_step(tmp_path):
    arguments = ["--samples", "4", "--steps", "4", "--ranges", "2", "--cpu"]
    assert main(["analyze", "--output-dir", str(tmp_path), *arguments]) == 0
    analysis = json.loads((tmp_path / "analysis.json").read_text())
    assert analysis["ranges"] == [[0, 6], [6, 12]]
    maps = {key: torch.tensor(values) for key, values in analysis["once"].items()}
    assert set(maps) == {"low_error", "high_error", "outline_accuracy", "texture_accuracy"}
    for values in maps.values():
        assert values.shape == (2, 3)  # nothing is there to reuse at the first step
    assert (maps["low_error"] > 0).all() and (maps["high_error"] > 0).all()
    assert len(analysis["steady"]) == 4
    assert json.loads((tmp_path / "rows.json").read_text()) == analysis["steady"]
    assert (tmp_path / "report.html").stat().st_size > 10_000
