"""Local files and folders of SAM's weights, in the forms that people have: what is in them says which network it is.

| form | told by |
|---|---|
| segment-anything, ``.pth`` or ``.safetensors`` | the width of the image encoder: ViT-B, ViT-L, ViT-H |
| MobileSAM, the same | a TinyViT as image encoder |
| SAM-HQ, the same | the decoder's "HF" token; ViT-B, ViT-L, ViT-H or TinyViT |
| transformers' Sam, SamHQ, Sam2, Sam3Tracker | a folder whose ``config.json`` has that ``model_type`` |
"""

import json
import warnings
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from segment_anything import sam_model_registry
from torch import Tensor

from clipsam.sam import PromptableNetwork, SamSegmenter, TransformersSegmenter

ALLOWED = "a file of segment-anything, MobileSAM or SAM-HQ, or a folder of transformers' Sam, SamHQ, Sam2, Sam3Tracker"
KINDS = {768: "vit_b", 1024: "vit_l", 1280: "vit_h"}
"""Width of the image encoder -> segment_anything's name."""
CLASSES = {
    "sam": "SamModel",
    "sam_hq": "SamHQModel",
    "sam2": "Sam2Model",
    "sam2_video": "Sam2Model",
    "sam3_tracker": "Sam3TrackerModel",
    "sam3_video": "Sam3TrackerModel",
}
"""``model_type`` of a folder -> the class of transformers that segments single images with its weights."""


def open_segmenter(path: Path | str, **options: int) -> PromptableNetwork:
    """Return the segmenter whose weights a local file or folder holds; nothing is downloaded.

    Args:
        path: see the table above.
        options: ``chunk`` and ``remember``, see :class:`~clipsam.sam.PromptableNetwork`.

    Raises:
        ValueError: it holds something else.
        ImportError: a package is missing; says which.
        OSError: it cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        return TransformersSegmenter(transformers_network(path), **options)
    try:
        state = read_state(path)
        sam = network_of(state)
        sam.load_state_dict(state)
    except ImportError:
        raise
    except Exception as error:  # a damaged file raises whatever its reader stumbles over
        if isinstance(error, OSError) and error.filename is not None:  # it could not be opened
            raise
        why = (str(error).splitlines() or [type(error).__name__])[0][:300]
        raise ValueError(f"{str(path)!r} holds no weights of a SAM: {why}; allowed: {ALLOWED}") from error
    return SamSegmenter(sam, **options)


def read_state(path: Path) -> Mapping[str, Tensor]:
    """Return the tensors of a file, without running what a pickle may hold."""
    if path.suffix == ".safetensors":
        return load_file(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd pickles, which are refused anyway
        state = torch.load(path, map_location="cpu", weights_only=True)
    return state.get("model", state)


def network_of(state: Mapping[str, Tensor]) -> Any:
    """Return the network that a state belongs to, with random weights.

    Raises:
        ValueError: it is no SAM's.
        ImportError: its package is missing.
    """
    is_hq = "mask_decoder.hf_token.weight" in state
    if "image_encoder.patch_embed.seq.0.c.weight" in state:
        kind = "vit_tiny"
    elif (patches := state.get("image_encoder.patch_embed.proj.weight")) is not None and len(patches) in KINDS:
        kind = KINDS[len(patches)]
    else:
        raise ValueError("its image encoder is none of ViT-B, ViT-L, ViT-H and TinyViT")
    if not is_hq and kind in sam_model_registry:
        return sam_model_registry[kind]()
    return registry_of_hq(is_hq)[kind]()


def registry_of_hq(is_hq: bool) -> dict[str, Any]:
    """Return segment_anything_hq's builders: those of SAM-HQ, or those that have a TinyViT beside the usual ones.

    Raises:
        ImportError: it is missing.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it imports timm by an old address
            package = import_module("segment_anything_hq")
            plain = import_module("segment_anything_hq.build_sam_baseline")
    except ImportError as error:
        raise ImportError("MobileSAM and SAM-HQ need: pip install segment-anything-hq timm") from error
    return package.sam_model_registry if is_hq else plain.sam_model_registry_baseline


def transformers_network(folder: Path) -> Any:
    """Return the network of a folder of transformers.

    Raises:
        ValueError: its configuration is missing, or another model's; or its weights are damaged.
        ImportError: transformers is missing.
    """
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]
        name = CLASSES[kind]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{str(folder)!r} is no folder of a SAM; allowed: {ALLOWED}") from error
    try:
        transformers = import_module("transformers")
    except ImportError as error:
        raise ImportError(f"{name} needs: pip install transformers") from error
    try:
        return getattr(transformers, name).from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    except Exception as error:  # a damaged folder raises whatever its reader stumbles over
        raise ValueError(f"{str(folder)!r} holds no {name}: {' '.join(str(error).split())[:300]}") from error
