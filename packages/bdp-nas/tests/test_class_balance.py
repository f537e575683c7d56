"""The classes' totals are exact and between their bounds, and within them the best samples are kept."""

import math

import numpy as np
import pytest

from bdp_nas.balance import balanced_top, class_bounds


def long_tailed(seed, size=600, classes=6):
    generator = np.random.default_rng(seed)
    labels = generator.choice(classes, size, p=0.5 ** np.arange(classes) / sum(0.5 ** np.arange(classes)))
    return generator.random(size) + 0.3 * labels, labels  # some classes would be pruned away by their keys


@pytest.mark.parametrize("tau", [0, 0.1, 0.5, math.inf])
@pytest.mark.parametrize("ratio", [0.1, 0.2, 0.55, 1])
def test_totals_are_exact_and_classes_lie_within_their_bounds(tau, ratio):
    keys, labels = long_tailed(0)
    floors, caps = class_bounds(np.bincount(labels), ratio, tau=tau)
    keep = round(ratio * len(keys))
    kept = np.bincount(labels[balanced_top(keys, labels, keep, floors, caps)], minlength=6)
    assert kept.sum() == keep
    assert (floors <= kept).all() and (kept <= caps).all()
    assert (floors >= 1).all()


def test_no_tolerance_keeps_the_shares_of_the_classes():
    counts = np.array([500, 300, 200])
    floors, caps = class_bounds(counts, 0.2, tau=0)
    assert floors.tolist() == caps.tolist() == [100, 60, 40]


def test_products_that_are_whole_numbers_are_taken_as_such():
    floors, caps = class_bounds(np.array([50, 50, 10, 30]), 0.2, tau=0.1)
    assert floors.tolist() == [9, 9, 1, 5]
    assert caps.tolist() == [11, 11, 3, 7]


def test_infinite_tolerance_keeps_the_best_of_all():
    keys, labels = long_tailed(1)
    bounds = class_bounds(np.bincount(labels), 0.3, tau=math.inf)
    best = np.sort(np.argsort(keys, kind="stable")[:180])
    kept = balanced_top(keys, labels, 180, *bounds)
    # apart from the one that every class keeps
    assert len(np.setdiff1d(best, kept)) <= 6


def test_what_the_floors_leave_goes_to_the_best_below_their_caps():
    keys = np.array([0, 1, 2, 3, 4, 5, 6, 7])
    labels = np.array([0, 0, 0, 0, 1, 1, 2, 2])
    # class 0 is full with 3; its fourth is better than all others, and the next best takes its place
    kept = balanced_top(keys, labels, 6, np.array([1, 1, 1]), np.array([3, 2, 2]))
    assert kept.tolist() == [0, 1, 2, 4, 5, 6]


@pytest.mark.parametrize("seed", range(3))
def test_nothing_better_is_possible_within_the_bounds(seed):
    keys, labels = long_tailed(seed, 60, 3)
    floors, caps = class_bounds(np.bincount(labels), 0.4, tau=0.1)
    kept = balanced_top(keys, labels, 24, floors, caps)
    counts, left = np.bincount(labels[kept]), np.setdiff1d(np.arange(60), kept)
    for out in kept:
        for into in left[keys[left] < keys[out]]:
            swapped = counts - np.bincount([labels[out]], minlength=3) + np.bincount([labels[into]], minlength=3)
            assert (swapped < floors).any() or (swapped > caps).any()


def test_ties_go_to_the_first():
    kept = balanced_top(np.zeros(10), np.arange(10) % 2, 4, np.array([1, 1]), np.array([3, 3]))
    assert kept.tolist() == [0, 1, 2, 3]


def test_the_total_is_met_even_where_the_caps_leave_too_few():
    assert balanced_top(np.arange(4.0), np.zeros(4, int), 3, np.array([1]), np.array([2])).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("counts", "ratio", "options", "message"),
    [
        ([50, 2, 50], 0.5, {"least": 3}, "class 1 has 2 samples; allowed: at least 3"),
        ([50, 50], 0.01, {}, "keep=0.01 leaves 1 of 100 samples; allowed: at least 2, the floors of 2 classes"),
        ([50, 50], 0.5, {"tau": -0.1}, "tau=-0.1 is not possible; allowed: 0 or more"),
        ([50, 50], 0.5, {"tau": math.nan}, "tau=nan is not possible; allowed: 0 or more"),
        ([50, 50], 0.5, {"least": 0}, "least=0 is not possible; allowed: 1 or more"),
    ],
)
def test_impossible_bounds_are_named(counts, ratio, options, message):
    with pytest.raises(ValueError, match=message):
        class_bounds(np.array(counts), ratio, **options)


def test_a_label_that_nobody_has_is_not_a_class():
    floors, caps = class_bounds(np.array([20, 0, 20]), 0.5)
    assert floors[1] == caps[1] == 0
