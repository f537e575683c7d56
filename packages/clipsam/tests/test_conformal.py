"""Thresholds: the promised false-alarm rate holds, and what it needs is said."""

import numpy as np
import pytest

from clipsam.conformal import conformal_threshold, f1_threshold, images_needed


@pytest.mark.parametrize(("alpha", "needed"), [(0.05, 19), (0.1, 9), (0.01, 99), (0.5, 1), (0.3, 3)])
def test_how_many_images_a_rate_takes(alpha, needed):
    assert images_needed(alpha) == needed
    scores = np.arange(needed, dtype=float)
    assert conformal_threshold(scores, alpha) == scores.max()  # with as few as that only the highest will do
    if needed > 1:
        with pytest.raises(ValueError, match=f"{needed - 1} sound images with alpha={alpha}; allowed: {needed} images"):
            conformal_threshold(scores[1:], alpha)


def test_the_threshold_is_the_order_statistic_whatever_the_order_of_the_images():
    scores = np.random.default_rng(0).permutation(np.arange(1, 101)) / 100
    assert conformal_threshold(scores, 0.05) == 0.96  # ceil(101 * 0.95) = 96
    assert conformal_threshold(scores, 0.2) == 0.81


@pytest.mark.parametrize("count", [19, 30, 57])
@pytest.mark.parametrize("draw", ["normal", "exponential", "standard_cauchy"])
def test_at_most_the_promised_share_of_sound_images_lies_above(count, draw):
    """Exactly 1 - ceil(0.95 (n + 1)) / (n + 1) on average, for any continuous distribution."""
    random = np.random.default_rng(1)
    scores = getattr(random, draw)(size=(4000, count + 1))
    alarms = [row[-1] > conformal_threshold(row[:-1], 0.05) for row in scores]
    expected = 1 - np.ceil(0.95 * (count + 1) - 1e-9) / (count + 1)
    assert np.mean(alarms) == pytest.approx(expected, abs=4 * np.sqrt(expected / len(alarms)))


def test_equal_scores_raise_no_alarm():
    assert conformal_threshold([0.3] * 30, 0.05) == 0.3  # above it is a defect, at it is not


def test_the_best_f1_separates_what_can_be_separated():
    threshold = f1_threshold([0.1, 0.4, 0.2, 0.9, 0.6], [False, False, False, True, True])
    assert threshold == pytest.approx(0.5)
    mixed = f1_threshold([0.1, 0.7, 0.2, 0.9, 0.6, 0.3], [False, False, False, True, True, False])
    assert mixed == pytest.approx(0.45)  # both defects and one alarm: F1 0.8; one defect alone 0.67
    assert f1_threshold([0.2, 0.2], [True, False]) < 0.2


@pytest.mark.parametrize("labels", [[True, True], [False, False]])
def test_the_best_f1_needs_both_kinds(labels):
    with pytest.raises(ValueError, match="of 2 images are defective; allowed: some, and some sound ones"):
        f1_threshold([0.1, 0.2], labels)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_what_is_no_number_is_refused(wrong):
    scores = [0.1] * 30 + [wrong]
    with pytest.raises(ValueError, match="1 of 31 scores are not numbers; allowed: finite ones"):
        conformal_threshold(scores)
    with pytest.raises(ValueError, match="1 of 31 scores"):
        f1_threshold(scores, [True] + [False] * 30)


@pytest.mark.parametrize("alpha", [0, 1, -0.1, np.nan])
def test_what_is_no_rate_is_refused(alpha):
    with pytest.raises(ValueError, match="alpha="):
        images_needed(alpha)
