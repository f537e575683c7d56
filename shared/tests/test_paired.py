"""Paired differences: against closed forms, and against what the corrections promise."""

import numpy as np
import pytest

from frugal_shared.paired import compare_pairs, holm


def test_holm_as_in_the_textbook():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_no_difference_is_none_and_a_sure_one_is_seen():
    random = np.random.default_rng(0)
    noise = random.standard_normal(400)
    found = compare_pairs({"same": [0.0] * 400, "noise": noise, "shifted": noise + 0.5})
    assert found["same"].p == 1 and found["same"].mean == 0
    assert found["noise"].p > 0.05
    assert found["shifted"].p < 1e-6 and abs(found["shifted"].mean - 0.5) < found["shifted"].half


def test_an_effect_of_the_visible_size_is_found_four_times_in_five():
    random = np.random.default_rng(1)
    visible = compare_pairs({"": random.standard_normal(50)})[""].visible
    assert visible == pytest.approx(2.8 / 50**0.5, rel=0.3)
    seen = [compare_pairs({"": random.standard_normal(50) + 2.8 / 50**0.5})[""].p < 0.05 for _ in range(200)]
    assert 0.7 < np.mean(seen) < 0.9


@pytest.mark.parametrize("values", [[], [1.0], [1.0, float("nan")]])
def test_too_few_pairs_are_refused(values):
    with pytest.raises(ValueError, match="row has"):
        compare_pairs({"row": values})
