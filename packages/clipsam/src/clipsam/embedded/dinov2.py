"""The embedded models: a CLIP and a SAM that share one frozen visual tower, the real DINOv2 ViT-S/14.

Both are made of the real classes, open_clip's ``CustomTextCLIP`` and segment_anything's ``Sam``, so that the code that
runs them is the code that runs ViT-L-14-336 and SAM ViT-H. Their trained parts are shipped, a text tower that reads
letters with a projection of the patches (recipe: ``clipsam train-text``), and a prompt encoder with a mask decoder
(recipe: ``clipsam train-sam``); the visual tower comes out of a package of the ``[demo]`` extra.
"""

from collections.abc import Mapping
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from open_clip import CustomTextCLIP
from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from safetensors import SafetensorError
from safetensors.torch import load_file
from segment_anything.modeling import MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch import Tensor, nn

from clipsam.backbone import Backbone
from clipsam.clip_files import EMBEDDED
from clipsam.pipeline import ClipSAM
from clipsam.sam import SamSegmenter
from clipsam.umci import convolution
from frugal_shared.errors import RunError
from frugal_shared.weights import DINOV2_VITS14, dinov2_vits14

ASSETS = "assets"
CLIP_WEIGHTS, SAM_WEIGHTS, HEADS = "clip.safetensors", "sam.safetensors", "umci"

BLOCKS = (2, 5, 8, 11)  # whose patch tokens are the stages: the paper's 6, 12, 18, 24 of 24 blocks, here of 12
NATIVE_SIZE = 518  # pixels that DINOv2's position embedding was trained at
IMAGE_SIZE = 224
JOINT_DIM = 192
CONTEXT = 80  # letters

SAM_SIZE = 256  # side of the SAM's input; its masks are half of that
SAM_WIDTH = 128
SAM_GRID = 32


class LetterTokenizer:
    """One token for each letter: several hundred names of objects need no vocabulary, and no name is out of it."""

    letters = " abcdefghijklmnopqrstuvwxyz0123456789-"
    unknown = len(letters) + 1
    end = len(letters) + 2  # the largest number: where open_clip's text tower reads its answer
    vocabulary = len(letters) + 3

    def __call__(self, texts: list[str]) -> Tensor:
        """Return tokens ``(N, 80)``: letters, the end, zeros; what is beyond the context is cut off."""
        rows = [[self._token(letter) for letter in text.lower()[: CONTEXT - 1]] + [self.end] for text in texts]
        tokens = torch.zeros(len(rows), CONTEXT, dtype=torch.long)
        for target, row in zip(tokens, rows):
            target[: len(row)] = torch.tensor(row)
        return tokens

    def _token(self, letter: str) -> int:
        return self.letters.find(letter) + 1 or self.unknown


def embedded_model() -> ClipSAM:
    """Return the pipeline of the shipped models.

    Raises:
        RunError: the ``[demo]`` extra is missing.
    """
    return ClipSAM.from_pretrained(asset(HEADS), backbone=embedded_backbone(), segmenter=embedded_segmenter())


def build_clip() -> CustomTextCLIP:
    """Return the CLIP with the real visual tower; its text tower and projection are random.

    Raises:
        RunError: the ``[demo]`` extra is missing.
    """
    vision = CLIPVisionCfg(
        timm_model_name=DINOV2_VITS14.name,
        timm_pool="avg",
        timm_proj="linear",
        timm_proj_bias=True,  # takes away what all patches have in common
        image_size=NATIVE_SIZE,
    )
    text = CLIPTextCfg(context_length=CONTEXT, vocab_size=LetterTokenizer.vocabulary, width=128, heads=4, layers=3)
    model = CustomTextCLIP(JOINT_DIM, vision, text)
    trunk = model.visual.get_submodule("trunk")
    trunk.load_state_dict(dinov2_vits14(NATIVE_SIZE).state_dict())
    return model


def trained_part(model: CustomTextCLIP) -> dict[str, Tensor]:
    """Return everything of the CLIP but its visual tower."""
    return {name: value for name, value in model.state_dict().items() if not name.startswith("visual.trunk.")}


def embedded_backbone(image_size: int = IMAGE_SIZE, weights: Path | None = None) -> Backbone:
    """Return the embedded CLIP.

    Args:
        image_size: side of the square that it sees, a multiple of 14.
        weights: what ``clipsam train-text`` wrote; unset: the shipped ones.

    Raises:
        RunError: the ``[demo]`` extra is missing, or the weights are damaged.
    """
    model = build_clip()
    load_part(model, read_weights(weights, CLIP_WEIGHTS), missing="visual.trunk.")
    backbone = frozen_backbone(model, image_size)
    if weights is None:
        backbone.name, backbone.source = EMBEDDED, {"clip": EMBEDDED}
    return backbone


def frozen_backbone(model: CustomTextCLIP, image_size: int = IMAGE_SIZE) -> Backbone:
    """Return the embedded CLIP as a backbone, whatever its text tower has learned."""
    statistics: Any = {"mean": DINOV2_VITS14.mean, "std": DINOV2_VITS14.std}
    return Backbone(model, LetterTokenizer(), image_size=image_size, stages=BLOCKS, **statistics)


class DinoEncoder(nn.Module):
    """The embedded SAM's image encoder: what DINOv2 says of each 14-pixel patch, and what each 8 pixels look like.

    The patches know what belongs together, and the stem where it ends.
    """

    img_size = SAM_SIZE

    def __init__(self) -> None:
        super().__init__()
        self.trunk = dinov2_vits14(IMAGE_SIZE).requires_grad_(False)
        channels = len(BLOCKS) * self.trunk.embed_dim
        self.project = nn.Sequential(nn.GroupNorm(len(BLOCKS), channels), nn.Conv2d(channels, SAM_WIDTH, 1))
        self.stem = nn.Sequential(
            nn.Conv2d(3, 32, 4, stride=4), nn.GELU(), nn.Conv2d(32, 64, 2, stride=2), nn.GELU(), convolution(64, 64)
        )
        self.join = nn.Sequential(convolution(SAM_WIDTH + 64, SAM_WIDTH), nn.Conv2d(SAM_WIDTH, SAM_WIDTH, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Return the embedding ``(B, 128, 32, 32)`` of images ``(B, 3, 256, 256)``, normalised, padded."""
        # a CPU does not interpolate in half precision
        options: Any = {"mode": "bicubic", "antialias": True, "align_corners": False}
        small = F.interpolate(images.float(), (IMAGE_SIZE, IMAGE_SIZE), **options)
        with torch.no_grad():
            tokens: Any = self.trunk.forward_intermediates(
                small.to(images.dtype), indices=list(BLOCKS), intermediates_only=True
            )
        return self.combine(images, torch.cat(tokens, dim=1))

    def combine(self, images: Tensor, tokens: Tensor) -> Tensor:
        """Return the embedding ``(B, 128, 32, 32)`` of images whose tokens ``(B, 4 · 384, h, w)`` are known."""
        stem = self.stem(images)
        coarse = F.interpolate(self.project(tokens), stem.shape[-2:], mode="bilinear", align_corners=False)
        return self.join(torch.cat([coarse, stem], dim=1))


def build_sam() -> Sam:
    """Return the SAM with the real visual tower; what is to be trained of it is random.

    Raises:
        RunError: the ``[demo]`` extra is missing.
    """
    grid, size = (SAM_GRID, SAM_GRID), (SAM_SIZE, SAM_SIZE)
    encoder = DinoEncoder()
    prompts = PromptEncoder(embed_dim=SAM_WIDTH, image_embedding_size=grid, input_image_size=size, mask_in_chans=4)
    transformer = TwoWayTransformer(depth=2, embedding_dim=SAM_WIDTH, num_heads=4, mlp_dim=256)
    decoder = MaskDecoder(transformer_dim=SAM_WIDTH, transformer=transformer, iou_head_hidden_dim=SAM_WIDTH)
    statistics = [[255 * value for value in values] for values in (DINOV2_VITS14.mean, DINOV2_VITS14.std)]
    return Sam(encoder, prompts, decoder, *statistics)  # pyright: ignore[reportArgumentType]


def trained_sam_part(sam: Sam) -> dict[str, Tensor]:
    """Return everything of the SAM but its visual tower."""
    return {name: value for name, value in sam.state_dict().items() if not name.startswith("image_encoder.trunk.")}


def embedded_segmenter(weights: Path | None = None, **options: int) -> SamSegmenter:
    """Return the embedded SAM.

    Args:
        weights: what ``clipsam train-sam`` wrote; unset: the shipped ones.
        options: those of :class:`~clipsam.sam.SamSegmenter`.

    Raises:
        RunError: the ``[demo]`` extra is missing, or the weights are damaged.
    """
    sam = build_sam()
    load_part(sam, read_weights(weights, SAM_WEIGHTS), missing="image_encoder.trunk.")
    return SamSegmenter(sam, **options)


def asset(name: str) -> Path:
    """Return a shipped file or folder."""
    with as_file(files("clipsam.embedded") / ASSETS / name) as path:
        return path


def read_weights(path: Path | None, name: str) -> dict[str, Tensor]:
    """Return the tensors of a file, or of the asset ``name``, as float32.

    Raises:
        RunError: it is missing or damaged.
    """
    path = path or asset(name)
    try:
        return {key: value.float() for key, value in load_file(path).items()}
    except (OSError, SafetensorError) as error:
        raise RunError(f"{str(path)!r} holds no weights: {str(error).splitlines()[0]}") from error


def load_part(model: nn.Module, weights: Mapping[str, Tensor], *, missing: str) -> None:
    """Load weights into a model; only what begins with ``missing`` may be missing.

    Raises:
        RunError: they belong to another model.
    """
    try:
        lacking, unknown = model.load_state_dict(weights, strict=False)
    except RuntimeError as error:  # a tensor of another shape
        raise RunError(f"the weights are another model's: {' '.join(str(error).split())[:200]}") from error
    foreign = [name for name in lacking if not name.startswith(missing)] + unknown
    if foreign:
        raise RunError(f"the weights are another model's: {foreign[0]!r} is missing or unknown")
