"""The models that the commands run: the embedded ones, or any CLIP of open_clip's and any SAM, by name and file."""

from dataclasses import replace
from pathlib import Path

import torch

from clipsam.backbone import Backbone
from clipsam.checkpoint import CONFIG, read_description
from clipsam.commands.options import EMBEDDED, NONE, ClipConfig, Dtype, PipelineConfig, SamConfig
from clipsam.embedded.dinov2 import HEADS, IMAGE_SIZE, asset, embedded_backbone, embedded_segmenter
from clipsam.mmr import MMRConfig
from clipsam.pipeline import ClipSAM
from clipsam.prompt_bank import PromptBank
from clipsam.sam import SamSegmenter
from frugal_shared.errors import RunError
from frugal_shared.hub import hub_errors

DTYPES: dict[Dtype, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
USUAL_SIZE = 518  # pixels, of CLIPs that are not embedded: what the field compares at


def open_model(config: PipelineConfig) -> ClipSAM:
    """Return the pipeline that the options describe.

    Raises:
        ValueError: parts that do not belong together, or a damaged checkpoint.
        RunError: a part is missing.
    """
    segmenter = segmenter_of(config)
    bank = prompt_bank(config)
    if config.checkpoint == NONE:
        mmr = mmr_config(config, MMRConfig())
        backbone = backbone_of(config, stages=(0,))  # texts need no stage
        return ClipSAM(backbone, None, bank, segmenter, mmr=mmr, pooling=config.pooling)
    folder = asset(HEADS) if config.checkpoint is None else Path(config.checkpoint)
    if not (folder / CONFIG).exists():
        raise RunError(f"checkpoint={str(folder)!r} holds no {CONFIG}; allowed: what `clipsam train` wrote, or none")
    trained = read_description(folder)
    backbone = backbone_of(config, size=trained["image_size"], stages=tuple(trained["stages"]))
    model = ClipSAM.from_pretrained(folder, backbone=backbone, segmenter=segmenter, bank=bank)
    model.mmr, model.pooling = mmr_config(config, model.mmr), config.pooling
    return model


def backbone_of(config: ClipConfig, *, stages: tuple[int, ...], size: int | None = None) -> Backbone:
    """Return the CLIP.

    Args:
        config: its name and weights; its image size, if the user gave one.
        stages: blocks whose patch tokens are used; the embedded CLIP has its own.
        size: the image size otherwise; unset: the usual one.

    Raises:
        ValueError: an unknown CLIP, or a size or a block that it cannot have.
        RunError: the embedded one's extra is missing, or the hub does not give the weights.
    """
    size = config.image_size or size
    if config.clip == EMBEDDED:
        backbone = embedded_backbone(size or IMAGE_SIZE)
    else:
        options = {"image_size": size or USUAL_SIZE, "stages": stages}
        with hub_errors("clip_weights", config.clip_weights, "a tag of open_clip's, or a file"):
            backbone = Backbone.from_open_clip(config.clip, config.clip_weights, **options)
    return backbone.compute_in(DTYPES[config.dtype])


def segmenter_of(config: SamConfig) -> SamSegmenter | None:
    """Return the SAM, or None for "none".

    Raises:
        ValueError: the file holds other weights.
        OSError: the file cannot be read.
    """
    if config.sam == NONE:
        return None
    if config.sam == EMBEDDED:
        segmenter = embedded_segmenter()
    else:  # SamConfig has checked that the name is one of the published and that it has its weights
        segmenter = SamSegmenter.from_checkpoint(config.sam, config.sam_weights)  # pyright: ignore[reportArgumentType]
    return segmenter.to(dtype=DTYPES[config.dtype])


def mmr_config(config: SamConfig, default: MMRConfig) -> MMRConfig:
    """Return the refinement's options: the user's where given, else the default's."""
    threshold = default.threshold if config.threshold is None else config.threshold
    return replace(default, mode=config.mode, threshold=threshold)


def prompt_bank(config: ClipConfig) -> PromptBank | None:
    """Return the user's sentences, or None."""
    return None if config.prompts is None else PromptBank.from_yaml(config.prompts)
