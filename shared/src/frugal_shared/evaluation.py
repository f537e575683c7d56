"""Evaluate on any number of processes with the result of one: nothing is counted twice, nothing depends on the split.

Two ways to share the work:

- :func:`evaluate` runs over a prepared data loader and streams per-sample outputs into metric states. The result is the
  same up to rounding, because a batch that Accelerate pads may round differently.
- :func:`chunks` and :func:`gather_chunks` share *fixed* batches by number. The result is the same to the last byte.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from frugal_shared.errors import UsageError


class MetricState(Protocol):
    """What a metric remembers of the samples it has seen: enough to go on, and to be merged with another's."""

    def update(self, *outputs: torch.Tensor) -> None:
        """Take in one batch: tensors whose first dimension counts the samples."""
        ...

    def merge(self, other: Self) -> None:
        """Take in everything that ``other`` has seen."""
        ...

    def compute(self) -> Any:
        """Return the metric over everything seen so far."""
        ...


@dataclass
class Moments:
    """Count, mean and standard deviation of a stream of numbers, in float64 and one pass.

    Chan, Golub and LeVeque's parallel update, with δ = mean_b − mean_a and n = n_a + n_b::

        mean = mean_a + δ · n_b / n
        M2   = M2_a + M2_b + δ² · n_a · n_b / n
    """

    count: int = 0
    mean: float = 0.0
    m2: float = 0.0  # Σ (x − mean)²

    def update(self, *outputs: torch.Tensor) -> None:
        """Take in every element of the given tensors."""
        for values in outputs:
            values = values.detach().cpu().double()  # in this order: not every device has float64
            mean = values.mean()
            self.merge(Moments(values.numel(), mean.item(), (values - mean).square().sum().item()))

    def merge(self, other: "Moments") -> None:
        """Take in everything that ``other`` has seen."""
        if other.count == 0:
            return
        count, delta = self.count + other.count, other.mean - self.mean
        self.mean += delta * (other.count / count)
        self.m2 += other.m2 + delta**2 * self.count * other.count / count
        self.count = count

    def compute(self) -> dict[str, float]:
        """Return ``count``, ``mean`` and ``std``; as numpy's, the last is that of the numbers themselves (ddof 0)."""
        if self.count == 0:
            return {"count": 0.0, "mean": math.nan, "std": math.nan}
        return {"count": float(self.count), "mean": self.mean, "std": math.sqrt(self.m2 / self.count)}


@dataclass
class Samples:
    """Every sample, for the metrics that need all at once, e.g. scikit-learn's ``roc_auc_score``."""

    parts: list[tuple[torch.Tensor, ...]] = field(default_factory=list)

    def update(self, *outputs: torch.Tensor) -> None:
        """Keep a copy of the batch on the CPU."""
        self.parts.append(tuple(values.detach().to("cpu", copy=True) for values in outputs))

    def merge(self, other: Self) -> None:
        """Append what ``other`` has kept."""
        self.parts.extend(other.parts)

    def compute(self) -> tuple[torch.Tensor, ...]:
        """Return one tensor per output, all samples in the order they came."""
        return tuple(torch.cat(column) for column in zip(*self.parts, strict=True))


Outputs = Mapping[str, torch.Tensor | tuple[torch.Tensor, ...]]


def evaluate(
    step: Callable[[Any], Outputs], loader: Iterable[Any], states: Mapping[str, MetricState], accelerator: Accelerator
) -> dict[str, Any]:
    """Run ``step`` over ``loader`` without gradients and return every metric over the whole data set.

    Args:
        step: batch of B samples → per-sample outputs, a tensor or a tuple of tensors ``(B, …)`` for each name in
            ``states``. The model is already in evaluation mode.
        loader: went through ``accelerator.prepare``; may be wrapped in a progress bar.
        states: name → state, updated in place. A tuple's tensors become the arguments of ``update``.
        accelerator: the run's.

    Returns:
        Name → ``state.compute()``, the same on every process and, up to rounding, for every number of processes.

    Raises:
        TypeError: the loader was not prepared, so that every process would see every sample.
    """
    with torch.no_grad():
        for batch in loader:
            if not accelerator.gradient_state.in_dataloader:
                raise TypeError("evaluate() needs a loader that went through accelerator.prepare()")
            # drops what the last batch was padded with, to be as large on every process
            outputs: Any = accelerator.gather_for_metrics(step(batch))
            for name, state in states.items():
                values = outputs[name]
                state.update(*(values if isinstance(values, tuple) else (values,)))
    return {name: state.compute() for name, state in states.items()}


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Return the mean over seeds and the half width of its Student-t confidence interval.

    One value has no spread: its half width is NaN.

    Raises:
        UsageError: no values, or a confidence outside 0 … 1.
    """
    if len(values) == 0:
        raise UsageError("values=[] has no mean; allowed: one value or more, e.g. one per seed")
    if not 0 < confidence < 1:
        raise UsageError(f"confidence={confidence!r} is out of range; allowed: above 0, below 1")
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return mean, math.nan
    from scipy import stats  # takes a second, of which a worker has no need

    return mean, float(stats.t.ppf((1 + confidence) / 2, len(values) - 1) * stats.sem(values))


def chunks(count: int, size: int, rank: int, world: int) -> Iterator[range]:
    """Yield this process's chunks of ``range(count)``: chunk c = [c·size, (c + 1)·size) belongs to rank c mod world.

    A network's output for one sample depends, in the last bits, on which samples share its batch: the kernels sum in
    another order for another shape. Splitting the *samples* over the processes changes the batches with the number of
    processes; splitting fixed *batches* never does, so the result is the same to the last byte.
    """
    if size < 1:
        raise UsageError(f"size={size!r} is not possible; allowed: 1 or more")
    for start in range(rank * size, count, world * size):
        yield range(start, min(start + size, count))


def gather_chunks(pieces: list[tuple[range, torch.Tensor]]) -> torch.Tensor:
    """Put the results of everybody's :func:`chunks` together in global order.

    Args:
        pieces: this process's ``(chunk, results (len(chunk), …))``; may be empty where there are more processes than
            chunks.

    Returns:
        ``(count, …)`` on the CPU of every process.
    """
    everybody = gather_object([(chunk.start, results.detach().cpu()) for chunk, results in pieces])
    return torch.cat([results for _, results in sorted(everybody, key=lambda piece: piece[0])])
