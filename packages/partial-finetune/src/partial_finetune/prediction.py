"""What a network says of images, batch by batch: in eval mode, without a graph, on the device where the network is."""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

Batches = Iterable[tuple[Tensor, Tensor]]
"""Images ``(B, 3, H, W)`` and their labels ``(B,)``: what a data loader gives."""
Function = Callable[[nn.Module, Tensor], Tensor]


def predict(model: nn.Module, batches: Batches) -> tuple[Tensor, Tensor]:
    """Return the logits ``(N, K)`` and the labels ``(N,)`` of all batches, in float32 on the CPU.

    Raises:
        ValueError: there are no batches.
    """
    return joined(forward(model, batches))


@torch.no_grad()
def forward(
    model: nn.Module, batches: Batches, function: Function = lambda model, images: model(images)
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield what ``function(model, images)`` gives, in float32 on the CPU, with the labels, batch by batch.

    Args:
        model: afterwards in the mode that it was in.
        batches: with images of any floating-point type.
        function: default: the model itself.
    """
    modes = [(module, module.training) for module in model.modules()]
    weight = next(model.parameters())
    model.eval()
    try:
        for images, labels in batches:
            yield function(model, images.to(weight)).float().cpu(), labels
    finally:
        for module, mode in modes:
            module.training = mode


def joined(pieces: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return the outputs and the labels of all batches as one tensor each.

    Raises:
        ValueError: there are none.
    """
    pieces = list(pieces)
    if not pieces:
        raise ValueError("there are no batches; allowed: one or more")
    outputs, labels = zip(*pieces)
    return torch.cat(outputs), torch.cat(labels)
