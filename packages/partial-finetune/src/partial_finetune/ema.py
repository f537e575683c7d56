"""The exponential moving average of the tuned tensors alone: what is frozen is its own average."""

from typing import Any

import torch

from partial_finetune.frozen import Frozen


class TunedEma:
    """``average ← d · average + (1 − d) · weight`` of every tuned parameter, with d = min(decay, (1 + n) / (10 + n)).

    The warm-up over the n updates so far lets short runs forget where they began. The same numbers as an average of the
    whole model, at a fraction of the memory.

    Args:
        frozen: what is tuned; the averages begin at its present values.
        decay: d, in [0, 1).

    Raises:
        ValueError: the decay is not possible.
    """

    def __init__(self, frozen: Frozen, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"ema={decay!r} is out of range; allowed: 0 or more, below 1")
        self.frozen, self.decay, self.updates = frozen, decay, 0
        self.averages = {name: value.detach().clone() for name, value in frozen.named_parameters().items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights as they are now."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        for name, value in self.frozen.named_parameters().items():
            self.averages[name].lerp_(value, 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange averages and weights: once to evaluate or save the average, once more to go on."""
        for name, value in self.frozen.named_parameters().items():
            weight = value.clone()
            value.copy_(self.averages[name])
            self.averages[name].copy_(weight)

    def state_dict(self) -> dict[str, Any]:
        """Return averages and the number of updates."""
        return {"averages": self.averages, "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        for name, value in state["averages"].items():
            self.averages[name].copy_(value)
        self.updates = state["updates"]
