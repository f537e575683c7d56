"""CLIPs in the forms that people have them in, behind one name.

| ``clip`` | what it is |
|---|---|
| a file ``.pt`` | OpenAI's own, a TorchScript archive: its shapes and its QuickGELU are known |
| a folder with ``config.json`` | transformers' CLIP; its activation stands there |
| a folder with ``open_clip_config.json`` | open_clip's |
| a name of open_clip's | with ``weights``: a tag such as "openai", or a file, ``.pt`` or ``.safetensors`` |
"""

import json
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.model import CLIPTextCfg, CLIPVisionCfg, build_model_from_openai_state_dict
from safetensors.torch import load_file
from torch import Tensor

from clipsam.backbone import Backbone, whole
from clipsam.towers import TimmTower

EMBEDDED = "embedded"
ALLOWED = "OpenAI's .pt, a folder of transformers' CLIP or of open_clip's, or a name of open_clip's with weights"
VISION = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
VISION |= {"image_size": 224, "patch_size": 32, "hidden_act": "quick_gelu"}
TEXT = {"hidden_size": 512, "num_hidden_layers": 12, "num_attention_heads": 8, "intermediate_size": 2048}
TEXT |= {"max_position_embeddings": 77, "vocab_size": 49408, "hidden_act": "quick_gelu"}
"""What transformers leaves out of a ``config.json``."""
LAYER = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "self_attn.out_proj": "attn.out_proj"}
LAYER |= {"mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}


def open_backbone(
    clip: str,
    weights: str | None = None,
    *,
    image_size: int,
    stages: tuple[int, ...],
    tower: str | None = None,
    tower_weights: str | None = None,
) -> Backbone:
    """Return a CLIP.

    Args:
        clip: see the table above; or "embedded" for the shipped one.
        weights: only with a name of open_clip's.
        image_size: side of the square that it sees.
        stages: the blocks whose patch tokens are used; the embedded CLIP without another tower has its own.
        tower: timm's name of a tower whose patch tokens are used instead of CLIP's, such as a DINOv2's.
        tower_weights: see :meth:`~clipsam.towers.TimmTower.from_timm`.

    Raises:
        ValueError: an unknown form, damaged weights, or a size or a block that is not possible.
        ImportError: a package is missing; says which.
        OSError: a file cannot be read.
    """
    options: dict[str, Any] = {"image_size": image_size, "stages": stages}
    if tower is not None:
        options["tower"] = TimmTower.from_timm(tower, tower_weights)
    if clip == EMBEDDED:
        # by name: the library does not know the models that ship, which may not be there
        backbone = import_module("clipsam.embedded.dinov2").embedded_backbone(image_size)
        if tower is not None:
            parts = {"mean": backbone.mean.tolist(), "std": backbone.std.tolist(), "source": backbone.source}
            backbone = Backbone(backbone.model, backbone.tokenizer, name=backbone.name, **parts, **options)
    elif Path(clip).exists():
        backbone = Backbone(*model_of(Path(clip)), name=Path(clip).name, source={"clip": whole(clip)}, **options)
    else:
        backbone = Backbone.from_open_clip(clip, weights, **options)
    if tower is not None:
        backbone.name += f" with {tower}"
        if tower_weights is None:  # random ones, which nobody makes again
            backbone.source = None
        elif backbone.source is not None:
            backbone.source |= {"tower": tower, "tower_weights": whole(tower_weights)}
    return backbone


def model_of(path: Path) -> tuple[Any, Any]:
    """Return the model and the tokenizer of a file or folder.

    Raises:
        ValueError: it holds something else.
        OSError: it cannot be read.
    """
    try:
        if path.is_file():
            return of_openai(path), open_clip.get_tokenizer("ViT-B-32")  # all of OpenAI's have this one
        if (path / "open_clip_config.json").exists():
            name = f"local-dir:{path}"
            return open_clip.create_model(name, load_weights=True), open_clip.get_tokenizer(name)
        return of_transformers(path), open_clip.get_tokenizer("ViT-B-32")
    except OSError:
        raise
    except Exception as error:  # a damaged file raises whatever its reader stumbles over
        why = (str(error).splitlines() or [type(error).__name__])[0][:300]
        raise ValueError(f"{str(path)!r} holds no CLIP: {why}; allowed: {ALLOWED}") from error


def of_openai(path: Path) -> Any:
    """Return the model of one of OpenAI's files.

    Raises:
        ValueError: the file holds weights alone, which do not tell the activation.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TorchScript is deprecated, and OpenAI's files are what they are
            state = torch.jit.load(path, map_location="cpu").state_dict()
    except RuntimeError as error:
        raise ValueError(
            "it is no TorchScript archive, and weights alone do not tell the activation: name the model, such as "
            "ViT-B-32 or ViT-B-32-quickgelu, and give this file as its weights"
        ) from error
    return build_model_from_openai_state_dict(state, cast_dtype=torch.float32).float()


def of_transformers(folder: Path) -> Any:
    """Return open_clip's model with the weights of a folder of transformers' CLIP.

    Raises:
        ValueError: it is another model's, or has an activation that open_clip has not.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config.get("model_type") != "clip":
        raise ValueError(f"model_type={config.get('model_type')!r}")
    vision, text = VISION | config.get("vision_config", {}), TEXT | config.get("text_config", {})
    activations = {vision["hidden_act"], text["hidden_act"]}
    if activations not in ({"quick_gelu"}, {"gelu"}):
        raise ValueError(f"hidden_act={', '.join(sorted(activations))} is neither gelu nor quick_gelu")
    model = open_clip.CLIP(
        config.get("projection_dim", 512),
        CLIPVisionCfg(
            layers=vision["num_hidden_layers"],
            width=vision["hidden_size"],
            head_width=vision["hidden_size"] // vision["num_attention_heads"],
            mlp_ratio=vision["intermediate_size"] / vision["hidden_size"],
            patch_size=vision["patch_size"],
            image_size=vision["image_size"],
        ),
        CLIPTextCfg(
            layers=text["num_hidden_layers"],
            width=text["hidden_size"],
            heads=text["num_attention_heads"],
            mlp_ratio=text["intermediate_size"] / text["hidden_size"],
            context_length=text["max_position_embeddings"],
            vocab_size=text["vocab_size"],
        ),
        quick_gelu=activations == {"quick_gelu"},
    )
    model.load_state_dict(from_transformers(weights_in(folder)))
    return model


def weights_in(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of a folder of transformers."""
    path = folder / "model.safetensors"
    if path.exists():
        return load_file(path)
    return torch.load(folder / "pytorch_model.bin", map_location="cpu", weights_only=True)


def from_transformers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the state of transformers' CLIPModel under open_clip's names."""
    found = {
        "logit_scale": state["logit_scale"],
        "text_projection": state["text_projection.weight"].T,
        "token_embedding.weight": state["text_model.embeddings.token_embedding.weight"],
        "positional_embedding": state["text_model.embeddings.position_embedding.weight"],
        "visual.proj": state["visual_projection.weight"].T,
        "visual.class_embedding": state["vision_model.embeddings.class_embedding"],
        "visual.conv1.weight": state["vision_model.embeddings.patch_embedding.weight"],
        "visual.positional_embedding": state["vision_model.embeddings.position_embedding.weight"],
    }
    norms = {"text_model.final_layer_norm": "ln_final", "vision_model.pre_layrnorm": "visual.ln_pre"}
    norms |= {"vision_model.post_layernorm": "visual.ln_post"}
    for old, new in norms.items():
        found |= renamed(state, old, new)
    for side, prefix in {"text_model": "", "vision_model": "visual."}.items():
        layers = {name.split(".")[3] for name in state if name.startswith(f"{side}.encoder.layers.")}
        for number in layers:
            at, to = f"{side}.encoder.layers.{number}", f"{prefix}transformer.resblocks.{number}"
            for old, new in LAYER.items():
                found |= renamed(state, f"{at}.{old}", f"{to}.{new}")
            for part in ("weight", "bias"):
                projections = [state[f"{at}.self_attn.{letter}_proj.{part}"] for letter in "qkv"]
                found[f"{to}.attn.in_proj_{part}"] = torch.cat(projections)
    return found


def renamed(state: dict[str, Tensor], old: str, new: str) -> dict[str, Tensor]:
    """Return weight and bias of a layer under its new name."""
    return {f"{new}.{part}": state[f"{old}.{part}"] for part in ("weight", "bias")}
