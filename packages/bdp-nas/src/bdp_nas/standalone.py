"""A found network as a file that needs nothing of this package: a torch.export program, or ONNX.

    model = Standalone(network, *blueprint.moments)
    Path("network.pt2").write_bytes(to_program(model, images))
    logits = torch.export.load("network.pt2").module()(images)

Images are in [0, 1]: their normalisation is part of the model.
"""

from io import BytesIO

import torch
from torch import Tensor, nn


class Standalone(nn.Module):
    """A network with the normalisation of its images in front; in evaluation mode.

    Args:
        network: of any floating type.
        mean: of each channel, ``(C,)``.
        std: of each channel, ``(C,)``.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.network, dtype = network, next(network.parameters()).dtype
        self.register_buffer("mean", mean[:, None, None].to(dtype))
        self.register_buffer("std", std[:, None, None].to(dtype))
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``(B, C, H, W)`` in [0, 1], of the network's floating type, to logits ``(B, classes)``."""
        return self.network((images - self.mean) / self.std)


def to_program(model: nn.Module, images: Tensor) -> bytes:
    """Return a torch.export program for any number of images, as the bytes of its file.

    Args:
        model: in evaluation mode.
        images: two or more of them, as the model takes them.
    """
    batch, buffer = {0: torch.export.Dim("batch")}, BytesIO()
    torch.export.save(torch.export.export(model, (images,), dynamic_shapes=(batch,)), buffer)
    return buffer.getvalue()


def to_onnx(model: nn.Module, images: Tensor) -> bytes:
    """Return an ONNX model from ``images`` to ``logits``, for any number of them, as the bytes of its file.

    It needs ``onnx`` and ``onnxscript``.

    Args:
        model: in evaluation mode.
        images: two or more of them, as the model takes them.
    """
    exported = torch.onnx.export(
        model,
        (images,),
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        dynamo=True,
        verbose=False,
    )
    assert exported is not None
    return exported.model_proto.SerializeToString()
