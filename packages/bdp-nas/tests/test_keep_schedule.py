"""A keep schedule starts at 1, falls as it says, ends where it says, and knows its cost."""

from itertools import pairwise

import pytest

from bdp_nas.schedule import SHAPES, KeepSchedule


@pytest.mark.parametrize(
    ("epochs", "warmup", "end", "final", "shape", "mean"),
    [
        (50, 5, 25, 0.2, "linear", 0.448),
        (50, 5, 25, 0.2, "geometric", 0.407),
        (50, 10, 30, 0.2, "geometric", 0.487),
        (50, 10, 40, 0.1, "linear", 0.559),
        (50, 15, 35, 0.2, "geometric", 0.567),
        (100, 10, 50, 0.2, "linear", 0.444),
        (100, 10, 50, 0.2, "geometric", 0.403),
    ],
)
def test_the_mean_is_the_cost_computed_by_hand(epochs, warmup, end, final, shape, mean):
    schedule = KeepSchedule(epochs, final, warmup / epochs, end / epochs, shape)
    assert (schedule.warmup_epochs, schedule.end_epoch) == (warmup, end)
    assert schedule.mean() == pytest.approx(mean, abs=6e-4)


@pytest.mark.parametrize("epochs", [10, 20, 50, 100, 250])
def test_the_default_halves_the_cost_of_any_run(epochs):
    assert KeepSchedule(epochs).mean() <= 0.5


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("epochs", [1, 2, 3, 7, 50])
@pytest.mark.parametrize("final", [0.05, 0.5, 1])
def test_ratios_start_at_one_never_rise_and_never_fall_below_the_last(shape, epochs, final):
    schedule = KeepSchedule(epochs, final, shape=shape)
    ratios = [schedule.ratio(epoch) for epoch in range(epochs)]
    assert ratios[:2] == [1.0, 1.0][:epochs]
    assert all(after <= before for before, after in pairwise(ratios))
    assert min(ratios) >= final
    if epochs > 3:
        assert set(ratios[schedule.end_epoch :]) == {final}
    assert schedule.ratio(epochs) == ratios[-1]  # nothing to prune for when the run is over


def test_steps_keep_the_same_share_of_what_is_left():
    schedule = KeepSchedule(40, 0.0625, warmup=0.2, end=0.6, shape="steps", every=4)
    ratios = [schedule.ratio(epoch) for epoch in range(40)]
    assert sorted(set(ratios), reverse=True) == pytest.approx([0.0625 ** (k / 4) for k in range(5)])
    assert [epoch for epoch in range(1, 40) if ratios[epoch] < ratios[epoch - 1]] == [12, 16, 20, 24]


def test_final_one_prunes_nothing():
    schedule = KeepSchedule(50, final=1)
    assert schedule.mean() == 1
    assert {schedule.count(epoch, 25_001) for epoch in range(51)} == {25_001}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs=0 is not possible; allowed: 1 or more"),
        ({"every": 0}, "every=0 is not possible; allowed: 1 or more"),
        ({"final": 0}, "final=0 is not possible; allowed: above 0, at most 1"),
        ({"final": 1.1}, "final=1.1 is not possible"),
        ({"final": float("nan")}, "final=nan is not possible"),
        ({"warmup": 0.5}, "warmup=0.5, end=0.5 is not possible; allowed: 0 ≤ warmup < end ≤ 1"),
        ({"end": 1.5}, "end=1.5 is not possible"),
        ({"shape": "cosine"}, "shape='cosine' is unknown; allowed: linear, geometric, steps"),
    ],
)
def test_impossible_schedules_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        KeepSchedule(**{"epochs": 50, **options})
