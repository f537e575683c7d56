"""What a strategy costs before anything is trained: operations, weights' memory, and where its backward pass ends.

Counted on the meta device by torch's own counter while autograd really builds and walks the graph, so that whatever it
leaves out (the frozen prefix, the gradients of frozen weights) is left out here, too.
"""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from partial_finetune.frozen import freeze

ADAM_BYTES = 12  # of a tuned fp32 weight: its gradient and Adam's two moments


def _convolution_backward(gradient: Any, images: Any, weight: Any, *rest: Any, **_: Any) -> int:
    """Return the operations of a convolution's backward pass: either gradient takes as many as the forward pass.

    torch's own formula takes the weight gradient of a grouped convolution for that of a full one, and so a depthwise
    convolution of C channels for C times as much. It is called with shapes in the place of tensors.
    """
    transposed, wanted = rest[4], rest[-1]  # wanted: the gradients of images, weight and bias
    places = math.prod((images if transposed else gradient)[2:])
    return 2 * images[0] * places * math.prod(weight) * sum(wanted[:2])


COUNTED_OTHERWISE = {torch.ops.aten.convolution_backward: _convolution_backward}


@dataclass(frozen=True)
class Cost:
    """Cost of one training step with one image; an ideal, in which only matrix products and convolutions take time."""

    strategy: str
    parameters: int
    """Tuned parameters."""
    flops: int
    """Floating point operations of forward and backward pass."""
    state_bytes: int
    """Weights, gradients and Adam's moments in fp32, as an ideal optimizer keeps them."""


def training_cost(model: nn.Module, strategy: str, image_size: tuple[int, int, int], *, seed: int = 0) -> Cost:
    """Return what a step of ``strategy`` costs.

    Args:
        model: as for :func:`~partial_finetune.frozen.freeze`; stays as it is.
        strategy: the expression.
        image_size: ``(C, H, W)``.
        seed: of random layers.

    Raises:
        ValueError: as ``freeze``.
    """
    twin = copy.deepcopy(model).to("meta").train()
    frozen = freeze(twin, strategy, seed=seed)
    with FlopCounterMode(display=False, custom_mapping=COUNTED_OTHERWISE) as counter:
        twin(torch.empty(1, *image_size, device="meta")).sum().backward()
    tuned = sum(value.numel() for value in frozen.parameters())
    weights = sum(value.numel() for value in twin.parameters())
    return Cost(strategy, tuned, counter.get_total_flops(), 4 * weights + ADAM_BYTES * tuned)


class SavedBytes:
    """How much a forward pass has kept for its backward pass; see :func:`saved_bytes`."""

    def __init__(self) -> None:
        self.storages: dict[int, int] = {}

    @property
    def bytes(self) -> int:
        """Bytes of all storages that were kept, each counted once."""
        return sum(self.storages.values())


@contextmanager
def saved_bytes(model: nn.Module) -> Iterator[SavedBytes]:
    """Count the activations that the forward pass inside keeps for the backward pass, apart from the model's weights.

    Exact, on every device, and the same every time, unlike the process's peak memory.
    """
    found = SavedBytes()
    weights = {value.untyped_storage()._cdata for value in model.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            found.storages[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield found
