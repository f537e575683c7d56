"""The pretrained model that everything starts from, and how its images are prepared."""

import re
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import create_transform
from torch import Tensor, nn

from frugal_shared.errors import RunError, UsageError
from frugal_shared.seeds import derived_seed
from frugal_shared.weights import DINOV2_VITS14, EFFICIENTNET_LITE0, dinov2_vits14, efficientnet_lite0
from partial_finetune.commands.options import DINOV2, EFFICIENTNET, RecipeConfig

DINOV2_SIZE = 98  # pixels: 50 tokens, a fifth of the cost of 224
_HEAD = 1  # stream of random numbers

Transform = Callable[[Any], Tensor]


@dataclass(frozen=True, eq=False)
class Base:
    """A pretrained model with a new classifier."""

    name: str
    """As :func:`open_base` knows it."""
    model: nn.Module
    image_size: int
    """Side of the square images, in pixels."""
    mean: tuple[float, ...]
    """Of the RGB channels, images in [0, 1]; the pretraining's own, since another one is a handicap of its own."""
    std: tuple[float, ...]
    """Likewise."""
    crop: float = 1.0
    """Share of the resized image's side that evaluation keeps, in the middle."""

    def eval_transform(self) -> Transform:
        """Return the map from a PIL image to what the model sees, ``(3, image_size, image_size)``."""
        options = {"mean": self.mean, "std": self.std, "crop_pct": self.crop, "interpolation": "bicubic"}
        return create_transform(self.image_size, **options)  # type: ignore[return-value]

    def train_transform(self, recipe: RecipeConfig) -> Transform:
        """Return the same map with the recipe's random crops, flips and policy."""
        return create_transform(  # type: ignore[return-value]
            self.image_size,
            is_training=True,
            scale=(recipe.crop_scale, 1.0),
            ratio=(1.0, 1.0) if recipe.crop_scale == 1 else (3 / 4, 4 / 3),
            color_jitter=0.0,
            auto_augment=recipe.auto_augment,
            interpolation="bicubic",
            mean=self.mean,
            std=self.std,
        )


def open_base(
    name: str,
    classes: int,
    *,
    weights: Path | None = None,
    image_size: int | None = None,
    drop_path: float = 0.0,
    seed: int = 0,
) -> Base:
    """Return a pretrained model with a new, random classifier of so many classes.

    Args:
        name: "dinov2-vits14", "efficientnet-lite0", or a name of timm's.
        classes: of the new classifier.
        weights: a local file for timm's model; default: timm fetches its own.
        image_size: side of the square images; default: see :class:`~partial_finetune.commands.options.BaseConfig`.
        drop_path: rate of stochastic depth.
        seed: of the classifier.

    Raises:
        UsageError: an unknown name, an impossible image size, or a file that is not this model's.
        RunError: the ``[demo]`` extra is missing, or the weights cannot be fetched.
    """
    if name == DINOV2:
        base = _embedded(name, DINOV2_VITS14, dinov2_vits14(image_size or DINOV2_SIZE), image_size or DINOV2_SIZE)
    elif name == EFFICIENTNET:
        base = _embedded(name, EFFICIENTNET_LITE0, efficientnet_lite0(), image_size or 224)
    else:
        base = _from_timm(name, weights, image_size)
    model = with_drop_path(base.model, drop_path) if drop_path else base.model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(seed, _HEAD))
        model.reset_classifier(classes)  # type: ignore[operator]
    return Base(base.name, model.eval(), base.image_size, base.mean, base.std, base.crop)


def with_drop_path(model: nn.Module, rate: float) -> nn.Module:
    """Return the same network and weights with stochastic depth, whose rate timm fixes when it builds a model.

    Raises:
        UsageError: this architecture has none.
    """
    cfg = model.pretrained_cfg  # type: ignore[union-attr]
    options: dict[str, Any] = {"num_classes": model.num_classes, "drop_path_rate": rate}
    if (grid := getattr(getattr(model, "patch_embed", None), "img_size", None)) is not None:
        options["img_size"] = grid
    try:
        twin = timm.create_model(cfg["architecture"], **options)  # type: ignore[index]
    except TypeError as error:
        raise UsageError(f"drop_path={rate!r} of a model without stochastic depth; allowed: 0") from error
    twin.load_state_dict(model.state_dict())
    return twin


def _embedded(name: str, network: Any, model: nn.Module, image_size: int) -> Base:
    return Base(name, model, image_size, network.mean, network.std)


def _from_timm(name: str, weights: Path | None, image_size: int | None) -> Base:
    if not timm.is_model(name):
        raise UsageError(f"model={name!r} is unknown; allowed: {DINOV2}, {EFFICIENTNET}, or a name of timm's")
    if weights is not None and not weights.is_file():
        raise UsageError(f"weights={str(weights)!r} is not a file")
    # with the number of classes that the weights were made for, because only then timm loads strictly
    overlay = {"file": str(weights)} if weights else None
    options = _size_option(name, image_size)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd pickles, which are refused anyway
            if weights is not None:
                refuse_code(weights)
            model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **options)
    except Exception as error:
        if weights is not None:
            raise UsageError(f"weights={str(weights)!r} do not fit model={name!r}: {_first_line(error)}") from error
        raise RunError(f"the weights of model={name!r} cannot be fetched: {_first_line(error)}") from error
    cfg: Any = model.pretrained_cfg
    size = image_size or cfg["input_size"][-1]
    return Base(name, model, size, tuple(cfg["mean"]), tuple(cfg["std"]), cfg["crop_pct"])


def refuse_code(weights: Path) -> None:
    """Raise an error if a file is a pickle of more than tensors: timm 1.0.20 would run what it holds."""
    if weights.suffix == ".safetensors":
        return
    if zipfile.is_zipfile(weights):
        with zipfile.ZipFile(weights) as archive:
            if all(name.endswith(".npy") for name in archive.namelist()):
                return  # an .npz, which some of timm's networks read without pickles
    torch.load(weights, map_location="cpu", weights_only=True)


def _size_option(name: str, image_size: int | None) -> dict[str, Any]:
    """Return the option by which a network of fixed size (one with position embeddings) is told another one."""
    if image_size is None:
        return {}
    with torch.device("meta"):
        try:
            options: dict[str, Any] = {"img_size": image_size}
            model = timm.create_model(name, **options)
        except TypeError:  # it takes any size
            options, model = {}, timm.create_model(name)
        try:
            model.eval()(torch.empty(1, 3, image_size, image_size))
        except (AssertionError, RuntimeError) as error:
            raise UsageError(f"image_size={image_size!r} of model={name!r}: {_first_line(error)}") from error
    return options


def _first_line(error: Exception) -> str:
    return re.split(r"\n|(?<=\.) ", str(error).strip() or type(error).__name__)[0][:200]
