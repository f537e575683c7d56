"""The pipeline's first half as one network that needs nothing of this package: pixels in, map and score out.

The language tokens of one category are constants in it. SAM is not part of it: it is asked for boxes, which differ in
number from image to image, and its own export exists.
"""

from importlib import import_module
from io import BytesIO
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipsam.pipeline import ClipSAM, window_probability
from clipsam.score import TOP_SHARE

OPSET = 18
INPUT, MAP, SCORE = "pixels", "anomaly_map", "score"
"""Names of the graph's input and outputs."""


class Exported(nn.Module):
    """A pipeline without its refinement, for one category.

    Args:
        model: the pipeline; its towers compute in float32.
        category: such as "metal nut", or "object" for any.
    """

    def __init__(self, model: ClipSAM, category: str) -> None:
        super().__init__()
        self.model, self.category, self.size = model, category, model.backbone.image_size
        model.backbone.text(category, model.bank)  # encoded now, so that the graph holds what comes out

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return maps ``(B, S, S)`` and scores ``(B,)``, both in [0, 1].

        Args:
            pixels: ``(B, 3, S, S)``, RGB in [0, 1], squashed to the square that CLIP sees (bicubic).
        """
        backbone = self.model.backbone
        mean, std = (values.to(pixels.device).view(3, 1, 1) for values in (backbone.mean, backbone.std))
        images = (pixels - mean) / std
        if self.model.umci is None:
            joint, language = backbone.joint(images), backbone.text(self.category, self.model.bank)
            maps = counted = torch.stack([window_probability(joint, language, side) for side in (1, 2, 3)]).mean(0)
        else:
            maps, counted = self.model._rough_and_counted(backbone.patches(images), self.category)
        return self.enlarged(maps), self.pooled(self.enlarged(counted))

    def enlarged(self, maps: Tensor) -> Tensor:
        """Return maps ``(B, h, w)`` on the square that CLIP sees."""
        size = [self.size, self.size]
        return F.interpolate(maps[:, None], size, mode="bilinear", align_corners=False)[:, 0].clamp(0, 1)

    def pooled(self, maps: Tensor) -> Tensor:
        """Return the scores ``(B,)`` of maps ``(B, S, S)``, as :func:`~clipsam.score.image_score` makes them."""
        if self.model.pooling == "max":
            return maps.amax((1, 2))
        top = maps.flatten(1).topk(max(1, round(TOP_SHARE * self.size**2)), dim=1).values
        return top[:, -1] if self.model.pooling == "quantile" else top.mean(1)


def to_onnx(model: ClipSAM, category: str) -> bytes:
    """Return the pipeline's first half for one category as the content of an ONNX file; its batch is free.

    Raises:
        ImportError: ``onnx`` or ``onnxscript`` is missing; says so.
    """
    for package in ("onnx", "onnxscript"):
        require(package)
    network = Exported(model, category).eval()
    example = torch.rand(2, 3, network.size, network.size, device=model.backbone.device)
    with torch.no_grad():
        network(example)  # makes what is kept, such as the position embedding of this size, before it is traced
    buffer, fast = BytesIO(), torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # its fused operator has no counterpart in ONNX
    try:
        program: Any = torch.onnx.export(
            network,
            (example,),
            input_names=[INPUT],
            output_names=[MAP, SCORE],
            opset_version=OPSET,
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
        program.save(buffer)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return buffer.getvalue()


def difference(content: bytes, model: ClipSAM, category: str, seed: int = 0) -> float:
    """Return by how much an ONNX file's maps and scores differ from the pipeline's, at most, on random images.

    Args:
        content: of the file.
        model: the pipeline.
        category: what the file was made for.
        seed: of the images.

    Raises:
        ImportError: ``onnxruntime`` is missing; says so.
    """
    runtime = require("onnxruntime")
    session = runtime.InferenceSession(content, providers=["CPUExecutionProvider"])
    size, random = model.backbone.image_size, torch.Generator().manual_seed(seed)
    pixels = F.interpolate(torch.rand(3, 3, 7, 7, generator=random), (size, size), mode="bicubic").clamp(0, 1)
    with torch.no_grad():
        expected = Exported(model, category).eval()(pixels.to(model.backbone.device))
    found = session.run([MAP, SCORE], {INPUT: pixels.numpy()})
    return max(float(abs(torch.from_numpy(one) - other.cpu()).max()) for one, other in zip(found, expected))


def require(package: str) -> Any:
    """Return a package of the ``[onnx]`` extra.

    Raises:
        ImportError: it is missing.
    """
    try:
        return import_module(package)
    except ImportError as error:
        raise ImportError(
            f"{package} is not installed; install it with: pip install onnx onnxruntime onnxscript"
        ) from error
