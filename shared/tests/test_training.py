from types import SimpleNamespace

import numpy as np
import pytest

from frugal_shared.errors import UsageError
from frugal_shared.training import share, warm_up_cosine


def test_the_rate_rises_to_its_peak_and_falls_to_nothing():
    rates = [warm_up_cosine(step, 100, 10) for step in range(100)]
    assert np.all(np.diff(rates[:10]) > 0) and np.all(np.diff(rates[10:]) < 0)
    assert rates[0] == pytest.approx(0.1, rel=1e-3) and rates[-1] < 1e-3


@pytest.mark.parametrize("warm_up", [0, 1])
def test_without_a_warm_up_it_starts_at_the_peak(warm_up):
    assert warm_up_cosine(0, 10, warm_up) == 1


def test_everybody_has_an_equal_part_and_nobody_the_same():
    shares = [share(SimpleNamespace(num_processes=3, process_index=rank), np.arange(12)) for rank in range(3)]
    assert [len(rows) for rows in shares] == [4, 4, 4]
    assert sorted(np.concatenate(shares)) == list(range(12))


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(UsageError, match="batch_size=10 does not divide among 3 processes; allowed: multiples of it"):
        share(SimpleNamespace(num_processes=3, process_index=0), list(range(10)))
