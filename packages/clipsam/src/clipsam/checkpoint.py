"""Trained UMCI heads on disk: their weights, and a description of what they belong to.

CLIP's and SAM's weights are not copied. Heads are valid with the CLIP, the image size, the stages and the sentences
that they were trained with, and with no other; the description tells them, by hashes, and has one of the weights, too.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save

from clipsam.backbone import Backbone
from clipsam.mmr import MMRConfig
from clipsam.prompt_bank import PromptBank
from clipsam.umci import UMCIHead
from clipsam.writing import write_whole

SCHEMA = "clipsam-1"
WEIGHTS, CONFIG = "umci.safetensors", "config.json"
FIELDS = {
    "clip": str,
    "backbone": dict,
    "prompts": str,
    "bank": dict,
    "image_size": int,
    "stages": list,
    "umci": dict,
    "sha256": str,
    "mmr": dict,
    "rarity": bool,
    "provenance": dict,
}
"""Of a description."""
SOURCE = {"clip", "weights", "tower", "tower_weights"}
"""What a description may say of where its CLIP came from, see :func:`clipsam.clip_files.open_backbone`."""
LARGEST = 4096  # pixels, side of the square that CLIP sees


def save_heads(folder: Path, umci: UMCIHead, description: dict[str, Any]) -> None:
    """Write heads.

    Args:
        folder: made if it is not there.
        umci: the heads.
        description: all of :data:`FIELDS` but the heads' own options and the hash of their weights.
    """
    stage: Any = umci.stages[0]
    options = {
        "hidden": stage.language.out_features,
        "pool_kernels": stage.pool_kernels,
        "pool_stride": stage.pool_stride,
    }
    weights = save({name: value.contiguous() for name, value in umci.state_dict().items()})
    own = {"umci": options, "sha256": hashlib.sha256(weights).hexdigest()}
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / WEIGHTS, weights)
    write_whole(folder / CONFIG, (json.dumps({"schema": SCHEMA, **description, **own}, indent=1) + "\n").encode())


def read_description(folder: Path) -> dict[str, Any]:
    """Return a checkpoint's description.

    Raises:
        ValueError: it is none, or of another schema.
        OSError: it cannot be read.
    """
    path = folder / CONFIG
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        schema = found["schema"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{str(path)!r} describes no ClipSAM checkpoint; allowed: what save_pretrained wrote"
        ) from error
    if schema != SCHEMA:
        raise ValueError(f"{str(path)!r} has schema={schema!r}; allowed: {SCHEMA!r}")
    found.setdefault("rarity", False)  # checkpoints of before there was one
    found.setdefault("backbone", {})
    for name, kind in FIELDS.items():
        if not isinstance(found.get(name), kind):
            raise ValueError(f"{str(path)!r} has no {name} ({kind.__name__}); allowed: what save_pretrained wrote")
    found["backbone"] = {"name": "another CLIP", "configuration": {}, "source": None} | found["backbone"]
    configuration, source = found["backbone"]["configuration"], found["backbone"]["source"]
    texts = source is None or (isinstance(source, dict) and all(isinstance(text, str) for text in source.values()))
    if not isinstance(configuration, dict) or not texts or not {"clip"} <= (source or {"clip": ""}).keys() <= SOURCE:
        raise ValueError(f"{str(path)!r} has backbone={found['backbone']!r}; allowed: what save_pretrained wrote")
    if not 0 < found["image_size"] <= LARGEST:
        raise ValueError(f"{str(path)!r} has image_size={found['image_size']!r}; allowed: 1 to {LARGEST}")
    return found


def described_options(folder: Path, description: dict[str, Any]) -> tuple[PromptBank, MMRConfig]:
    """Return the sentences of the training, and the options of the refinement.

    Raises:
        ValueError: they are damaged.
    """
    try:
        bank = PromptBank(**{name: tuple(sentences) for name, sentences in description["bank"].items()})
        mmr = description["mmr"]
        if 0 < mmr.get("min_area", 0) < 1:  # a share of the image, in checkpoints of before it was pixels
            mmr = {name: value for name, value in mmr.items() if name != "min_area"}
        return bank, MMRConfig(**mmr)
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{str(folder / CONFIG)!r} describes no such checkpoint: {error}") from error


def load_heads(folder: Path, description: dict[str, Any], backbone: Backbone, bank: PromptBank) -> UMCIHead:
    """Return the heads, on the backbone's device.

    Args:
        folder: of the checkpoint.
        description: its own.
        backbone: the CLIP that they are to read.
        bank: the sentences that they are to meet.

    Raises:
        ValueError: damaged weights, or heads of another CLIP, size, stages or sentences.
        OSError: they cannot be read.
    """
    check_belonging(folder, description, backbone, bank)
    path = folder / WEIGHTS
    weights = path.read_bytes()
    if hashlib.sha256(weights).hexdigest() != description["sha256"]:
        raise ValueError(f"{str(path)!r} is torn or was changed: its hash is not the one in {CONFIG}")
    try:
        options = description["umci"] | {"pool_kernels": tuple(description["umci"]["pool_kernels"])}
        umci = UMCIHead(len(backbone.stages), backbone.width, backbone.text_dim, **options)
    except (ValueError, TypeError, KeyError, RuntimeError) as error:
        why = " ".join(str(error).split())
        raise ValueError(f"{str(folder / CONFIG)!r} describes no such checkpoint: {why}") from error
    try:
        umci.load_state_dict(load(weights))
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(f"{str(path)!r} holds no such heads: {str(error).splitlines()[0]}") from error
    return umci.to(next(backbone.parameters()).device).requires_grad_(False)


def check_belonging(folder: Path, description: dict[str, Any], backbone: Backbone, bank: PromptBank) -> None:
    """Refuse heads that were trained with something else.

    Raises:
        ValueError: names what differs.
    """
    if backbone.hash != description["clip"]:
        raise ValueError(f"{str(folder)!r} was trained with clip={other_clip(description['backbone'], backbone)}")
    for name, found in (
        ("prompts", bank.hash),
        ("image_size", backbone.image_size),
        ("stages", list(backbone.stages)),
    ):
        if found != description[name]:
            raise ValueError(f"{str(folder)!r} was trained with {name}={description[name]!r}; this one is {found!r}")


def other_clip(trained: dict[str, Any], backbone: Backbone) -> str:
    """Return in which way a backbone is not the one that heads were trained with, as the end of a sentence."""
    configuration = backbone.configuration
    different = [name for name, value in trained["configuration"].items() if configuration.get(name) != value]
    told = "; ".join(
        f"its {name} is {trained['configuration'][name]}, not {configuration.get(name)}" for name in different
    )
    this = "of that name" if trained["name"] == backbone.name else repr(backbone.name)
    return f"{trained['name']!r}; this one is {this}, {told or 'with other weights'}"
