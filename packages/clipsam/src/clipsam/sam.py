"""Segment Anything (Kirillov et al., arXiv 2304.02643), of any size, as a promptable segmenter."""

import hashlib
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Literal, Self, get_args

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from segment_anything import sam_model_registry
from segment_anything.modeling import Sam
from segment_anything.utils.transforms import ResizeLongestSide
from torch import Tensor

from clipsam.decoder import PromptDecoder
from clipsam.enlarge import positive
from clipsam.promptable import Embedding, Prompts

SamKind = Literal["vit_b", "vit_l", "vit_h"]


class Resize(ResizeLongestSide):
    """segment_anything's, but of an image of any shape something is left: 1×2000 pixels are not 0 pixels high."""

    @staticmethod
    def get_preprocess_shape(oldh: int, oldw: int, long_side_length: int) -> tuple[int, int]:
        """Return height and width with the longer side scaled to ``long_side_length``, each at least 1."""
        height, width = ResizeLongestSide.get_preprocess_shape(oldh, oldw, long_side_length)
        return max(1, height), max(1, width)


class SamSegmenter:
    """A SAM that decodes all prompts of an image at once.

    Args:
        sam: a model built of segment_anything's classes.
        chunk: prompts per call of the decoder, about 25 MB each at SAM's size; 2 suits the caches of a CPU, 64 a GPU.
        remember: how many embeddings of the last images are kept.

    Raises:
        ValueError: a number below 1.
    """

    def __init__(self, sam: Sam, *, chunk: int = 2, remember: int = 4) -> None:
        if chunk < 1 or remember < 1:
            raise ValueError(f"chunk={chunk!r}, remember={remember!r}; allowed: 1 or more")
        self.sam, self.chunk, self.remember = sam.eval().requires_grad_(False), chunk, remember
        self._transform = Resize(sam.image_encoder.img_size)
        self._embeddings: OrderedDict[bytes, Embedding] = OrderedDict()

    @classmethod
    def from_checkpoint(cls, kind: SamKind, path: Path | str, **options: int) -> Self:
        """Load published weights, "vit_b", "vit_l" or "vit_h", from a local file.

        Raises:
            ValueError: an unknown kind, or a file without its weights.
            OSError: the file cannot be read.
        """
        if kind not in get_args(SamKind):
            raise ValueError(f"kind={kind!r} is unknown; allowed: {', '.join(get_args(SamKind))}")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of odd pickles, which are refused anyway
                state = torch.load(path, map_location="cpu", weights_only=True)
            sam = sam_model_registry[kind]()
            sam.load_state_dict(state)
        except OSError:
            raise
        except Exception as error:  # a damaged file raises whatever its reader stumbles over
            why = (str(error).splitlines() or [type(error).__name__])[0]
            raise ValueError(f"{str(path)!r} holds no {kind} weights: {why}") from error
        return cls(sam, **options)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """Move the networks to a device; what comes in and what goes out stays on the CPU.

        Args:
            device: unset: where they are.
            dtype: of the image encoder, which takes nearly all of the time; the rest stays in float32.
        """
        self.sam.to(device)
        self.sam.image_encoder.to(dtype)
        self._embeddings.clear()
        return self

    @property
    def side(self) -> int:
        """Side of the small square that masks are decoded on: 256 for the published models."""
        return 4 * self.sam.prompt_encoder.image_embedding_size[0]

    @torch.no_grad()
    def embed(self, image: NDArray[np.uint8]) -> Embedding:
        """Embed an image ``(H, W, 3)``, RGB in 0..255; one that was embedded before costs nothing."""
        key = hashlib.sha1(repr(image.shape).encode() + np.ascontiguousarray(image).tobytes()).digest()
        if key not in self._embeddings:
            resized = torch.from_numpy(self._transform.apply_image(image)).permute(2, 0, 1)  # (3, h, w)
            square = self.sam.preprocess(resized[None].to(self.sam.device))
            height, width = resized.shape[1:]
            parameter = next(self.sam.image_encoder.parameters())
            features = self.sam.image_encoder(square.to(parameter.dtype)).float()
            self._embeddings[key] = Embedding(features, image.shape[:2], (height, width))
        self._embeddings.move_to_end(key)
        while len(self._embeddings) > self.remember:
            self._embeddings.popitem(last=False)
        return self._embeddings[key]

    @torch.no_grad()
    def decode(self, embedding: Embedding, prompts: Prompts) -> tuple[Tensor, Tensor]:
        """Return mask logits ``(Q, 3, h, w)`` and predicted IoUs ``(Q, 3)``, clamped to [0, 1] as regressions need."""
        points, boxes = self._to_input(prompts, embedding)
        encoder = self.sam.prompt_encoder
        no_mask = encoder.no_mask_embed.weight.view(1, -1, 1, 1)
        decoder = PromptDecoder(self.sam.mask_decoder, embedding.features + no_mask, encoder.get_dense_pe())
        parts = []
        for start in range(0, len(prompts), self.chunk):
            rows = slice(start, start + self.chunk)
            sparse, _ = encoder(
                points=None if points is None else (points[0][rows], points[1][rows]),
                boxes=None if boxes is None else boxes[rows],
                masks=None,
            )
            parts.append(decoder(sparse))
        logits, scores = (torch.cat(part) for part in zip(*parts))
        # a rough map and its components are the CPU's, wherever the networks run
        return logits.cpu(), scores.clamp(0, 1).cpu()

    def _to_input(self, prompts: Prompts, embedding: Embedding) -> tuple[tuple[Tensor, Tensor] | None, Tensor | None]:
        """Scale prompts from pixels of the image to pixels of the segmenter's input."""
        points, boxes, device = None, None, self.sam.device
        if prompts.points is not None and prompts.labels is not None:
            scaled = self._transform.apply_coords_torch(prompts.points.float(), embedding.image_size)
            points = scaled.to(device), prompts.labels.to(device)
        if prompts.boxes is not None:
            boxes = self._transform.apply_boxes_torch(prompts.boxes.float(), embedding.image_size).to(device)
        return points, boxes

    def to_square(self, values: Tensor, embedding: Embedding) -> Tensor:
        """Bring values ``(..., H, W)`` on the image to the small square ``(..., h, w)``; zero beyond the image."""
        scale = self.side / self.sam.image_encoder.img_size
        height, width = (max(1, round(length * scale)) for length in embedding.input_size)
        flat = values.reshape(-1, 1, *values.shape[-2:]).float()
        small = F.interpolate(flat, (height, width), mode="bilinear", align_corners=False, antialias=True)
        padded = F.pad(small, (0, self.side - width, 0, self.side - height))
        return padded.reshape(*values.shape[:-2], self.side, self.side)

    def to_image(self, values: Tensor, embedding: Embedding) -> Tensor:
        """Enlarge values ``(..., h, w)`` on the small square to the image, ``(..., H, W)``."""
        flat = values.reshape(-1, 1, *values.shape[-2:])
        if self._fills(embedding):
            large = F.interpolate(flat, embedding.image_size, mode="bilinear", align_corners=False)
        else:
            large = self.sam.postprocess_masks(flat, embedding.input_size, embedding.image_size)
        return large.reshape(*values.shape[:-2], *embedding.image_size)

    def to_masks(self, logits: Tensor, embedding: Embedding) -> Tensor:
        """Return where logits ``(..., h, w)`` are positive on the image, ``(..., H, W)`` bool."""
        if self._fills(embedding):
            return positive(logits, self.sam.image_encoder.img_size // self.side)
        return self.to_image(logits, embedding) > 0

    def _fills(self, embedding: Embedding) -> bool:
        """Return whether an image has just the size of the segmenter's input: it is enlarged once instead of twice."""
        return embedding.image_size == embedding.input_size == (self.sam.image_encoder.img_size,) * 2
