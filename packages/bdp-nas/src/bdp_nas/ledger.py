"""The cost ledger: what a search spends at each level, so that "twice as fast" can be audited.

::

    ledger = CostLedger(flops=flops_per_sample(model, x[:1]))
    with ledger.spend("weights", samples=len(x), forward=1, backward=1):
        ...                                # one step of the weights
    ledger.ratio(ledger_without_pruning)   # {"samples": 0.41, "forward": 0.41, …}
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass, fields

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

BACKWARD_FLOPS = 2  # a backward pass is about two forward passes: the gradient of the input and that of the weights


@dataclass(frozen=True)
class Cost:
    """What was spent.

    Args:
        samples: drawn from a loader, repetitions included.
        forward: passes of a batch through the network.
        backward: passes of a batch back through it.
        seconds: of wall-clock time.
        flops: floating-point operations, an estimate.
    """

    samples: float = 0
    forward: float = 0
    backward: float = 0
    seconds: float = 0
    flops: float = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(*(mine + theirs for mine, theirs in zip(astuple(self), astuple(other))))


class CostLedger:
    """The costs of a search by level.

    It counts what this process spends: on N processes the samples, passes and FLOPs of all add up, the seconds do not.

    Args:
        flops: of the forward pass of one sample, see :func:`flops_per_sample`; 0 leaves FLOPs uncounted.
        device: where the work is done; on a CUDA device the clock waits for it.
    """

    def __init__(self, *, flops: float = 0, device: torch.device | str = "cpu") -> None:
        self.flops, self.device = flops, torch.device(device)
        self.costs: dict[str, Cost] = {}

    @contextmanager
    def spend(self, level: str, *, samples: int, forward: int = 1, backward: int = 1) -> Iterator[None]:
        """Count the work done inside the ``with`` block.

        Args:
            level: any name, ``weights`` or ``architecture`` as a rule; ``pruning`` for what the pruning itself takes.
            samples: in the batch.
            forward: how often it, or another batch of its size, goes forward through the network.
            backward: how often back. FLOPs are samples · (forward + 2 backward) · FLOPs of a forward pass, somewhat too
                many for a backward pass that does not need the gradients of the weights.
        """
        start = self._now()
        try:
            yield
        finally:
            flops = samples * (forward + BACKWARD_FLOPS * backward) * self.flops
            cost = Cost(samples, forward, backward, self._now() - start, flops)
            self.costs[level] = self.costs.get(level, Cost()) + cost

    @property
    def total(self) -> Cost:
        """The sum over the levels."""
        return sum(self.costs.values(), Cost())

    def ratio(self, baseline: "CostLedger") -> dict[str, float]:
        """Return total costs ÷ those of ``baseline``; NaN for what it did not spend."""
        theirs = asdict(baseline.total)
        return {
            name: mine / theirs[name] if theirs[name] else float("nan") for name, mine in asdict(self.total).items()
        }

    def state_dict(self) -> dict[str, dict[str, float]]:
        """Return the costs of every level as plain numbers."""
        return {level: asdict(cost) for level, cost in self.costs.items()}

    def load_state_dict(self, state: Mapping[str, Mapping[str, float]]) -> None:
        """Replace all costs by those of a :meth:`state_dict`.

        Raises:
            ValueError: it holds something else.
        """
        names = {field.name for field in fields(Cost)}
        for level, cost in state.items():
            if set(cost) != names:
                raise ValueError(f"level {level!r} has {sorted(cost)}; allowed: {sorted(names)}")
        self.costs = {level: Cost(**cost) for level, cost in state.items()}

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def flops_per_sample(model: nn.Module, inputs: Tensor) -> float:
    """Return the FLOPs of the model's forward pass ÷ number of inputs, as torch counts them.

    Args:
        model: called once without gradients, in evaluation mode, so that it does not change.
        inputs: ``(B, …)``.
    """
    training = {module: module.training for module in model.modules()}
    model.eval()
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model(inputs)
    for module, mode in training.items():
        module.training = mode
    return counter.get_total_flops() / len(inputs)
