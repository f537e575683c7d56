"""Time two ways to do the same thing against each other, in one run.

A laptop throttles, a server has neighbours: a time measured now says little about one measured a minute ago. So the two
alternate (A B, B A, A B, …), each pair gives one ratio, and the ratios' median and quartiles are what is reported.
"""

import math
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import torch

from frugal_shared.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two timed calls, A (e.g. the original) and B (e.g. the accelerated one).

    The peak memory is, with CUDA, what PyTorch allocated on the current device. Else it is the resident memory of the
    whole process (Linux only, None elsewhere): libraries, data, and what the allocator kept from the call before are in
    it, so only large differences mean something.
    """

    repeats: int
    """Pairs that were timed."""
    a_seconds: float
    """Median time of A."""
    b_seconds: float
    """Median time of B."""
    ratio: float
    """Median over the pairs of A's time ÷ B's: how many times as fast B is."""
    ratio_low: float
    """Lower quartile of the ratios."""
    ratio_high: float
    """Upper quartile of the ratios."""
    a_peak_bytes: int | None
    """Largest peak memory of A."""
    b_peak_bytes: int | None
    """Largest peak memory of B."""

    def as_dict(self) -> dict[str, float]:
        """Return flat floats, NaN for what could not be measured."""
        return {name: math.nan if value is None else float(value) for name, value in asdict(self).items()}


@dataclass(frozen=True)
class _Measurement:
    seconds: float
    peak_bytes: int | None


def compare(a: Callable[[], object], b: Callable[[], object], *, warmup: int = 1, repeats: int = 5) -> Comparison:
    """Call ``a`` and ``b`` alternately and compare their times and peak memories.

    Args:
        a: the call to compare with.
        b: the call to judge.
        warmup: untimed calls of each, for caches, compilation and autotuning.
        repeats: timed pairs; 1 or more. An even number lets each go first equally often.

    Raises:
        UsageError: ``warmup`` or ``repeats`` is not possible.
    """
    if warmup < 0:
        raise UsageError(f"warmup={warmup!r} is not possible; allowed: 0 or more")
    if repeats < 1:
        raise UsageError(f"repeats={repeats!r} is not possible; allowed: 1 or more")
    for _ in range(warmup):
        a()
        b()
    pairs = [_pair(a, b) if index % 2 == 0 else _pair(b, a)[::-1] for index in range(repeats)]
    ratios = [of_a.seconds / of_b.seconds for of_a, of_b in pairs]
    low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75]).tolist()
    of_a, of_b = zip(*pairs, strict=True)
    return Comparison(
        repeats=repeats,
        a_seconds=median(each.seconds for each in of_a),
        b_seconds=median(each.seconds for each in of_b),
        ratio=middle,
        ratio_low=low,
        ratio_high=high,
        a_peak_bytes=_largest(of_a),
        b_peak_bytes=_largest(of_b),
    )


def peak_memory(call: Callable[[], object]) -> int | None:
    """Return the process's peak memory during a call, of CUDA's allocator where it is used; None where unknown."""
    return _measure(call).peak_bytes


def _pair(first: Callable[[], object], second: Callable[[], object]) -> tuple[_Measurement, _Measurement]:
    return _measure(first), _measure(second)


def _measure(call: Callable[[], object]) -> _Measurement:
    cuda = torch.cuda.is_initialized()
    resettable = _reset_peak(cuda)
    began = perf_counter()
    call()
    if cuda:
        torch.cuda.synchronize()  # the call has only queued its kernels
    seconds = perf_counter() - began
    return _Measurement(seconds, _peak(cuda) if resettable else None)


def _reset_peak(cuda: bool) -> bool:
    """Forget the peak memory so far; return False where that is not possible."""
    if cuda:
        torch.cuda.synchronize()  # what came before must not end within the measurement
        torch.cuda.reset_peak_memory_stats()
        return True
    try:
        Path("/proc/self/clear_refs").write_text("5")  # 5: the peak of the resident memory, see man 5 proc
    except OSError:
        return False
    return True


def _peak(cuda: bool) -> int | None:
    if cuda:
        return torch.cuda.max_memory_allocated()
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) * 1024 if found else None


def _largest(measurements: tuple[_Measurement, ...]) -> int | None:
    peaks = [each.peak_bytes for each in measurements if each.peak_bytes is not None]
    return max(peaks, default=None)
