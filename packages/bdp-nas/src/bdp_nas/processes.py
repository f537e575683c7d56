"""N processes that search as one: gradients are means over all, every batch is computed in the same parts.

What a sum of floating-point numbers is depends on its order, and a search soon makes much of little: two that differ in
the last bit keep other samples after a few epochs. So that two processes keep the very samples that one does, a batch
is divided into parts, each with batch norms of its own, whoever computes them. Without a process group nothing here
sends a message.
"""

from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")


def in_group() -> bool:
    """Return whether this process is one of a group."""
    return dist.is_available() and dist.is_initialized()


@torch.no_grad()  # torch before 2.8 lets a gradient of zeros require one
def average(tensors: Sequence[Tensor]) -> None:
    """Replace tensors, in place, by their means over the processes, in one message."""
    if not in_group() or dist.get_world_size() == 1:
        return
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


def of_all(value: T) -> list[T]:
    """Return every process's value, by rank."""
    if not in_group():
        return [value]
    found = [value] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found


def of_first(value: T) -> T:
    """Return rank 0's value: what processes on unlike hardware compute can differ in the last bit."""
    if not in_group():
        return value
    choice = [value]
    dist.broadcast_object_list(choice, src=0)
    return choice[0]
