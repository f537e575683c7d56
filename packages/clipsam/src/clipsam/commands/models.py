"""The models that the commands run: the embedded ones, or any CLIP and any SAM, by name and file."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from clipsam.backbone import Backbone
from clipsam.checkpoint import CONFIG, read_description
from clipsam.clip_files import open_backbone
from clipsam.commands.options import EMBEDDED, NONE, SAMS, ClipConfig, Dtype, HeadsConfig, PipelineConfig, SamConfig
from clipsam.embedded.dinov2 import HEADS, IMAGE_SIZE, asset, embedded_segmenter
from clipsam.mmr import MMRConfig
from clipsam.pipeline import ClipSAM, described_backbone
from clipsam.prompt_bank import PromptBank
from clipsam.sam import PromptableNetwork
from clipsam.sam_files import open_segmenter
from clipsam.tiles import Tiling
from frugal_shared.errors import RunError, UsageError
from frugal_shared.hub import hub_errors

DTYPES: dict[Dtype, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
USUAL_SIZE = 518  # pixels, of CLIPs that are not embedded: what the field compares at


def open_model(config: HeadsConfig) -> ClipSAM:
    """Return the pipeline that the options describe; what is exported has no SAM.

    Raises:
        ValueError: parts that do not belong together, or a damaged checkpoint.
        RunError: a part is missing.
    """
    segmenter = segmenter_of(config) if isinstance(config, SamConfig) else None
    bank = prompt_bank(config)
    if config.checkpoint == NONE:
        mmr = mmr_config(config, MMRConfig()) if isinstance(config, SamConfig) else None
        backbone = backbone_of(config, stages=(0,))  # texts need no stage
        return seen_as_asked(ClipSAM(backbone, None, bank, segmenter, mmr=mmr, pooling=config.pooling), config)
    folder = asset(HEADS) if config.checkpoint is None else Path(config.checkpoint)
    if not (folder / CONFIG).exists():
        raise RunError(f"checkpoint={str(folder)!r} holds no {CONFIG}; allowed: what `clipsam train` wrote, or none")
    trained = read_description(folder)
    size, stages = trained["image_size"], tuple(trained["stages"])
    backbone = own_clip(config, folder, trained) or backbone_of(config, size=size, stages=stages)
    model = ClipSAM.from_pretrained(folder, backbone=backbone, segmenter=segmenter, bank=bank)
    model.pooling = config.pooling
    if isinstance(config, SamConfig):
        model.mmr = mmr_config(config, model.mmr)
    return seen_as_asked(model, config)


def seen_as_asked(model: ClipSAM, config: HeadsConfig) -> ClipSAM:
    """Return the pipeline with the scales and tiles that the options ask for; an export has none."""
    return model.see_at(config.scales, tiling(config)) if isinstance(config, PipelineConfig) else model


def tiling(config: PipelineConfig) -> Tiling | None:
    """Return how images are cut, or None."""
    return None if config.tiles is None else Tiling(config.tiles)


def own_clip(config: ClipConfig, folder: Path, trained: dict[str, Any]) -> Backbone | None:
    """Return the CLIP that heads were trained on, if the user named none and they say where it is; else None."""
    source = trained["backbone"]["source"]
    if config.clip is not None or config.tower is not None or source is None:
        return None
    trained = trained | {"image_size": config.image_size or trained["image_size"]}
    with hub_errors("clip", source.get("weights"), "the CLIP of the checkpoint, as --clip"):
        return described_backbone(folder, trained).compute_in(DTYPES[config.dtype])


def backbone_of(config: ClipConfig, *, stages: tuple[int, ...], size: int | None = None) -> Backbone:
    """Return the CLIP.

    Args:
        config: its name and weights; its image size, if the user gave one.
        stages: blocks whose patch tokens are used; the embedded CLIP has its own.
        size: the image size otherwise; unset: the usual one.

    Raises:
        ValueError: an unknown CLIP, or a size or a block that it cannot have.
        RunError: an extra is missing, or the hub does not give the weights.
    """
    clip = config.clip or EMBEDDED
    usual = IMAGE_SIZE if clip == EMBEDDED else USUAL_SIZE
    options = {"image_size": config.image_size or size or usual, "stages": stages}
    with (
        hub_errors("clip_weights", config.clip_weights, "a tag of open_clip's, or a file"),
        hub_errors("tower_weights", config.tower_weights, "timm, or a file"),
    ):
        options |= {"tower": config.tower, "tower_weights": config.tower_weights}
        return open_backbone(clip, config.clip_weights, **options).compute_in(DTYPES[config.dtype])


def segmenter_of(config: SamConfig) -> PromptableNetwork | None:
    """Return the SAM, or None for "none".

    Raises:
        UsageError: no such file or folder.
        ValueError: the file holds other weights.
        ImportError: its package is missing.
        OSError: the file cannot be read.
    """
    if config.sam == NONE:
        return None
    if config.sam != EMBEDDED and not Path(config.sam).exists():
        raise UsageError(f"sam={config.sam!r} is no file or folder; allowed: {SAMS}")
    segmenter = embedded_segmenter() if config.sam == EMBEDDED else open_segmenter(config.sam)
    return segmenter.compute_in(DTYPES[config.dtype])


def mmr_config(config: SamConfig, default: MMRConfig) -> MMRConfig:
    """Return the refinement's options: the user's where given, else the default's."""
    names = ("threshold", "min_area", "max_components", "points", "weight")
    given = {name: getattr(config, name) for name in names if getattr(config, name) is not None}
    return replace(default, mode=config.mode, **given)


def prompt_bank(config: ClipConfig) -> PromptBank | None:
    """Return the user's sentences, or None."""
    return None if config.prompts is None else PromptBank.from_yaml(config.prompts)
