"""N processes that search as one: gradients are means over all, and every batch is computed in the same parts.

What a sum of floating-point numbers is depends on its order, and a search soon makes much of little: two that differ in
the last bit keep other samples after a few epochs. So that two processes keep the very samples that one does, a batch
is divided into parts, each with batch norms of its own, whoever computes them.
"""

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn

from bdp_nas.searchers.searcher import alone


def averaging(accelerator: Accelerator) -> Callable[[Sequence[Tensor]], None]:
    """Return what replaces tensors, in place, by their means over all processes."""
    return alone if accelerator.num_processes == 1 else average


@torch.no_grad()  # torch before 2.8 lets a gradient of zeros require one
def average(tensors: Sequence[Tensor]) -> None:
    """Replace tensors, in place, by their means over the processes, in one message."""
    message = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(message)
    message /= dist.get_world_size()
    for tensor, part in zip(tensors, message.split([tensor.numel() for tensor in tensors])):
        tensor.copy_(part.view_as(tensor))


def divide(model: nn.Module, parts: int) -> None:
    """Let the model compute every batch in so many parts, one after the other."""
    whole = model.forward
    if parts > 1:
        model.forward = lambda images: torch.cat([whole(part) for part in images.chunk(parts)])
