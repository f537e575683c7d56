import math

import numpy as np
import pytest
import torch

from frugal_shared import timing
from frugal_shared.errors import UsageError
from frugal_shared.timing import compare


class Clock:
    """A clock that only moves when told, and calls that take as long as they say."""

    def __init__(self):
        self.now = 100.0
        self.order = ""

    def call(self, name, durations):
        durations = iter(durations)

        def timed():
            self.order += name
            self.now += next(durations)

        return timed


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(timing, "perf_counter", lambda: clock.now)
    return clock


@pytest.fixture
def events(monkeypatch):
    """A machine with CUDA, and what happens on it, in order."""
    events = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: events.append("synchronize"))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: events.append("reset"))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: {"a": 100, "b": 30}[events[-3]])

    def perf_counter():
        events.append("clock")
        return float(len(events))

    monkeypatch.setattr(timing, "perf_counter", perf_counter)
    return events


def test_warm_up_is_dropped_and_the_order_alternates(clock):
    a, b = clock.call("a", [50.0, 50.0] + [3.0] * 4), clock.call("b", [70.0, 70.0] + [1.5] * 4)
    found = compare(a, b, warmup=2, repeats=4)
    assert clock.order == "abab" + "ab" + "ba" + "ab" + "ba"
    assert (found.a_seconds, found.b_seconds, found.ratio) == (3.0, 1.5, 2.0)


def test_ratio_is_of_pairs_and_not_of_medians(clock):
    """A machine that slows down by 100 in the middle changes the times, and no pair's ratio."""
    a, b = clock.call("a", [2.0, 4.0, 600.0]), clock.call("b", [1.0, 2.0, 150.0])
    found = compare(a, b, warmup=0, repeats=3)
    assert found.a_seconds == 4.0
    assert found.b_seconds == 2.0
    low, middle, high = np.quantile([2.0, 2.0, 4.0], [0.25, 0.5, 0.75])
    assert (found.ratio_low, found.ratio, found.ratio_high) == (low, middle, high)


def test_swapped_calls_give_the_inverse(clock):
    durations = [2.0, 8.0], [1.0, 1.0]
    there = compare(*(clock.call("x", d) for d in durations), warmup=0, repeats=2)
    back = compare(*(clock.call("x", d) for d in durations[::-1]), warmup=0, repeats=2)
    assert (there.a_seconds, there.b_seconds) == (back.b_seconds, back.a_seconds)
    assert there.ratio == (2 + 8) / 2
    assert back.ratio == (1 / 2 + 1 / 8) / 2


def test_gpu_work_is_waited_for_inside_the_measurement(events):
    found = compare(lambda: events.append("a"), lambda: events.append("b"), warmup=0, repeats=1)
    one = ["synchronize", "reset", "clock", "call", "synchronize", "clock"]
    assert ["call" if event in "ab" else event for event in events] == one * 2
    assert (found.a_peak_bytes, found.b_peak_bytes) == (100, 30)


def test_peak_memory_is_the_calls_own():
    def large():
        np.ones(40_000_000)  # 320 MB

    found = compare(large, lambda: None, repeats=2)
    if found.a_peak_bytes is None or found.b_peak_bytes is None:
        pytest.skip("this system cannot reset the peak of the resident memory")
    assert 250e6 < found.a_peak_bytes - found.b_peak_bytes < 400e6


def test_what_cannot_be_measured_is_nan(monkeypatch, clock):
    monkeypatch.setattr(timing, "_reset_peak", lambda cuda: False)
    found = compare(clock.call("a", [1.0]), clock.call("b", [1.0]), warmup=0, repeats=1)
    assert found.a_peak_bytes is None
    flat = found.as_dict()
    assert all(isinstance(value, float) for value in flat.values())
    assert math.isnan(flat["a_peak_bytes"])
    assert flat["ratio"] == 1.0


@pytest.mark.parametrize("culprit", ["a", "b"])
def test_exceptions_propagate(culprit):
    def fail():
        raise LookupError(culprit)

    calls = {name: fail if name == culprit else (lambda: None) for name in "ab"}
    with pytest.raises(LookupError, match=culprit):
        compare(calls["a"], calls["b"])


@pytest.mark.parametrize("options", [{"repeats": 0}, {"warmup": -1}])
def test_impossible_counts_are_refused(options):
    with pytest.raises(UsageError, match="allowed: "):
        compare(lambda: None, lambda: None, **options)
