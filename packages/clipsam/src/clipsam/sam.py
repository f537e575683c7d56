"""Segment Anything in its several makes, each as a promptable segmenter of images of any size.

:class:`SamSegmenter` takes networks of segment_anything's anatomy (Kirillov et al., arXiv 2304.02643), among them
MobileSAM (arXiv 2306.14289) and SAM-HQ (arXiv 2306.01567); :class:`TransformersSegmenter` takes transformers' Sam,
SamHQ, Sam2 (arXiv 2408.00714) and Sam3Tracker. :func:`~clipsam.sam_files.open_segmenter` tells them apart.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from inspect import signature
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from clipsam.precision import TowerPrecision
from clipsam.promptable import Embedding, Prompts

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class PromptableNetwork(TowerPrecision):
    """What all makes share: an image is embedded once, prompts are decoded in chunks, and masks span the image.

    Args:
        network: with an image encoder, a prompt encoder and a mask decoder.
        encoder: the image encoder among its parts, which takes nearly all of the time.
        side: of the square that the network sees, in pixels.
        mean: of the pixels in [0, 1] that the network was trained with.
        std: likewise.
        pads: whether an image keeps its shape in the upper left of the square; else it is squashed.
        chunk: prompts per call of the decoder, about 80 MB each at SAM's size; 2 suits the caches of a CPU, 64 a GPU.
        remember: how many embeddings of the last images are kept.

    Raises:
        ValueError: a number below 1.
    """

    def __init__(
        self,
        network: nn.Module,
        encoder: nn.Module,
        *,
        side: int,
        mean: tuple[float, ...] = IMAGENET_MEAN,
        std: tuple[float, ...] = IMAGENET_STD,
        pads: bool = True,
        chunk: int = 2,
        remember: int = 4,
    ) -> None:
        if chunk < 1 or remember < 1:
            raise ValueError(f"chunk={chunk!r}, remember={remember!r}; allowed: 1 or more")
        super().__init__()
        self.network: Any = network.eval().requires_grad_(False)
        self.side, self.pads, self.chunk, self.remember = side, pads, chunk, remember
        self.mean, self.std = (np.array(values, np.float32) for values in (mean, std))
        self._encoder = (encoder,)  # in a tuple, or its weights would stand twice in the state
        self._embeddings: OrderedDict[bytes, Embedding] = OrderedDict()

    def encode(self, square: Tensor) -> tuple[Tensor, ...]:
        """Return the features of the square that the network sees, ``(1, 3, side, side)``."""
        raise NotImplementedError

    def decode_chunk(self, features: tuple[Tensor, ...], prompts: Prompts) -> tuple[Tensor, Tensor]:
        """Return logits ``(Q, M, s, s)`` on the whole square, and scores ``(Q, M)``, of prompts in its pixels."""
        raise NotImplementedError

    def compute_in(self, dtype: torch.dtype) -> Self:
        """Let the image encoder compute in another number format; the rest stays in float32."""
        self._encoder[0].to(dtype)
        self._embeddings.clear()
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._embeddings.clear()  # they are elsewhere than the networks are from now on
        return super()._apply(fn, recurse)

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode: nothing in here is ever trained."""
        return super().train(False)

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return next(self.network.parameters()).device

    def extent(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Return height and width of the part of the square that an image fills, at least 1."""
        if not self.pads:
            return self.side, self.side
        scale = self.side / max(image_size)
        return max(1, int(image_size[0] * scale + 0.5)), max(1, int(image_size[1] * scale + 0.5))

    def to_square(self, image: NDArray[np.uint8]) -> Tensor:
        """Return an image as the network sees it, ``(1, 3, side, side)``, normalised."""
        height, width = self.extent((image.shape[0], image.shape[1]))
        small = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR), np.float32)
        pixels = torch.from_numpy((small / 255 - self.mean) / self.std).permute(2, 0, 1)[None]
        return F.pad(pixels, (0, self.side - width, 0, self.side - height))

    @torch.no_grad()
    def embed(self, image: NDArray[np.uint8]) -> Embedding:
        """Embed an image ``(H, W, 3)``, RGB in 0..255; one that was embedded before costs nothing."""
        key = hashlib.sha1(repr(image.shape).encode() + np.ascontiguousarray(image).tobytes()).digest()
        if key not in self._embeddings:
            dtype = next(self._encoder[0].parameters()).dtype
            features = self.encode(self.to_square(image).to(self.device, dtype))
            self._embeddings[key] = Embedding(tuple(part.float() for part in features), image.shape[:2])
        self._embeddings.move_to_end(key)
        while len(self._embeddings) > self.remember:
            self._embeddings.popitem(last=False)
        return self._embeddings[key]

    @torch.no_grad()
    def decode(self, embedding: Embedding, prompts: Prompts) -> tuple[Tensor, Tensor]:
        """Return mask logits ``(Q, M, h, w)`` that span the image, and predicted IoUs ``(Q, M)``, clamped to [0, 1]."""
        extent = self.extent(embedding.image_size)
        scale = torch.tensor([new / old for new, old in zip(extent[::-1], embedding.image_size[::-1])])  # x, y
        scaled = Prompts(
            None if prompts.boxes is None else (prompts.boxes.float() * scale.repeat(2)).to(self.device),
            None if prompts.points is None else (prompts.points.float() * scale).to(self.device),
            None if prompts.labels is None else prompts.labels.to(self.device),
        )
        parts = [
            self.decode_chunk(embedding.features, scaled.rows(start, start + self.chunk))
            for start in range(0, len(prompts), self.chunk)
        ]
        logits, scores = (torch.cat(part) for part in zip(*parts))
        # a rough map and its components are the CPU's, wherever the networks run
        return filled_part(logits, extent, self.side).cpu(), scores.clamp(0, 1).cpu()


def filled_part(logits: Tensor, extent: tuple[int, int], side: int) -> Tensor:
    """Return the part ``(Q, M, h, w)`` of logits ``(Q, M, s, s)`` on a whole square that the image fills.

    Args:
        logits: of the square.
        extent: height and width of the image's part of it, in pixels.
        side: of the square, in pixels.
    """
    if extent == (side, side):
        return logits
    share = [length / side for length in extent]
    size = [max(1, round(part * whole)) for part, whole in zip(share, logits.shape[-2:])]
    theta = logits.new_tensor([[share[1], 0, share[1] - 1], [0, share[0], share[0] - 1]])
    # the part may end inside a cell, so it is sampled; where it does not, these are the cells themselves
    grid = F.affine_grid(theta[None], [1, 1, *size], align_corners=False).expand(len(logits), -1, -1, -1)
    return F.grid_sample(logits, grid, mode="bilinear", padding_mode="border", align_corners=False)


class SamSegmenter(PromptableNetwork):
    """A network of segment_anything's anatomy.

    Args:
        sam: built of the classes of segment_anything or segment_anything_hq.
        options: ``chunk`` and ``remember``, see :class:`PromptableNetwork`.
    """

    def __init__(self, sam: Any, **options: Any) -> None:
        mean, std = ((values.flatten() / 255).tolist() for values in (sam.pixel_mean, sam.pixel_std))
        super().__init__(sam, sam.image_encoder, side=sam.image_encoder.img_size, mean=mean, std=std, **options)
        self._reads_early = "interm_embeddings" in signature(sam.mask_decoder.forward).parameters

    def encode(self, square: Tensor) -> tuple[Tensor, ...]:
        """Return the features, and those of early blocks that SAM-HQ's decoder reads."""
        features = self.network.image_encoder(square)
        if isinstance(features, Tensor):
            return (features,)
        final, early = features  # segment_anything_hq's encoders
        return (final, early[0]) if self._reads_early else (final,)

    def decode_chunk(self, features: tuple[Tensor, ...], prompts: Prompts) -> tuple[Tensor, Tensor]:
        """Return logits ``(Q, M, s, s)`` and scores: three levels, or SAM-HQ's one."""
        encoder = self.network.prompt_encoder
        points = None if prompts.points is None else (prompts.points, prompts.labels)
        sparse, dense = encoder(points=points, boxes=prompts.boxes, masks=None)
        own = {"hq_token_only": False, "interm_embeddings": [features[1]]} if self._reads_early else {}
        return self.network.mask_decoder(
            image_embeddings=features[0],
            image_pe=encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=True,
            **own,
        )


class TransformersSegmenter(PromptableNetwork):
    """A network of transformers: SamModel, SamHQModel, Sam2Model or Sam3TrackerModel.

    Args:
        network: of one of these classes.
        options: see :class:`PromptableNetwork`; side, and whether it pads, follow from the network.
    """

    def __init__(self, network: Any, **options: Any) -> None:
        kind = network.config.model_type
        if kind == "sam3_tracker":
            options = {"mean": (0.5,) * 3, "std": (0.5,) * 3} | options
        side, pads = network.prompt_encoder.input_image_size, kind in ("sam", "sam_hq")
        super().__init__(network, network.vision_encoder, side=side, pads=pads, **options)
        self.kind: str = kind

    def encode(self, square: Tensor) -> tuple[Tensor, ...]:
        """Return the features, the coarse ones first."""
        if self.kind == "sam":
            return (self.network.get_image_embeddings(square),)
        if self.kind == "sam_hq":
            final, early = self.network.get_image_embeddings(square)
            return (final, early[0])
        return tuple(self.network.get_image_embeddings(square)[::-1])

    def decode_chunk(self, features: tuple[Tensor, ...], prompts: Prompts) -> tuple[Tensor, Tensor]:
        """Return logits ``(Q, 3, s, s)`` and scores."""
        given: dict[str, Any] = {"image_embeddings": features[0]}
        if self.kind == "sam_hq":
            given["intermediate_embeddings"] = [features[1]]
        elif self.kind != "sam":
            given["image_embeddings"] = list(features[::-1])
        found = self.network(
            input_points=None if prompts.points is None else prompts.points[None],
            input_labels=None if prompts.labels is None else prompts.labels[None].int(),
            input_boxes=None if prompts.boxes is None else prompts.boxes[None],
            multimask_output=True,
            **given,
        )
        return found.pred_masks[0], found.iou_scores[0]
