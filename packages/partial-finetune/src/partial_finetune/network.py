"""A pretrained network and how its images are prepared; another image size, a new classifier, stochastic depth."""

import re
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import create_transform
from torch import Tensor, nn

Transform = Callable[[Any], Tensor]
"""From a PIL image to what a network sees of it, ``(3, H, W)``."""


@dataclass(frozen=True, eq=False)
class Network:
    """A network with a classifier, and how its images are prepared."""

    name: str
    """The one that it was opened by, such as timm's."""
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

    def train_transform(self, *, crop_scale: float = 1.0, auto_augment: str | None = None) -> Transform:
        """Return the same map with random crops, flips and a policy.

        Args:
            crop_scale: smallest share of the image's area that a crop keeps; 1: no crop.
            auto_augment: timm's policy, such as "rand-m9-mstd0.5-inc1"; default: none.
        """
        return create_transform(  # type: ignore[return-value]
            self.image_size,
            is_training=True,
            scale=(crop_scale, 1.0),
            ratio=(1.0, 1.0) if crop_scale == 1 else (3 / 4, 4 / 3),
            color_jitter=0.0,
            auto_augment=auto_augment,
            interpolation="bicubic",
            mean=self.mean,
            std=self.std,
        )


def open_pretrained(name: str, *, weights: Path | None = None, image_size: int | None = None) -> Network:
    """Return a pretrained network of timm's in eval mode, with the classifier that it was trained with.

    Args:
        name: timm's, such as "vit_base_patch16_224.augreg_in21k".
        weights: a local file; default: timm fetches its own.
        image_size: side of the square images; default: what the network was trained at.

    Raises:
        ValueError: an unknown name, an impossible image size, or a file that is not this network's.
        OSError: the weights cannot be fetched.
    """
    if not timm.is_model(name):
        raise ValueError(f"model={name!r} is unknown; allowed: a name of timm's")
    if weights is not None and not weights.is_file():
        raise ValueError(f"weights={str(weights)!r} is not a file")
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
            raise ValueError(f"weights={str(weights)!r} do not fit model={name!r}: {_first_line(error)}") from error
        raise OSError(f"the weights of model={name!r} cannot be fetched: {_first_line(error)}") from error
    cfg: Any = model.pretrained_cfg
    size = image_size or cfg["input_size"][-1]
    return Network(name, model.eval(), size, tuple(cfg["mean"]), tuple(cfg["std"]), cfg["crop_pct"])


def with_classes(network: Network, classes: int, *, seed: int = 0) -> Network:
    """Return the network after giving it a new, random classifier of so many classes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network.model.reset_classifier(classes)  # type: ignore[operator]
    return network


def with_drop_path(network: Network, rate: float) -> Network:
    """Return the same network and weights with stochastic depth, whose rate timm fixes when it builds a model.

    Raises:
        ValueError: this architecture has none.
    """
    if not rate:
        return network
    model: Any = network.model
    options: dict[str, Any] = {"num_classes": model.num_classes, "drop_path_rate": rate}
    if (grid := getattr(getattr(model, "patch_embed", None), "img_size", None)) is not None:
        options["img_size"] = grid
    try:
        twin = timm.create_model(model.pretrained_cfg["architecture"], **options)
    except TypeError as error:
        raise ValueError(f"drop_path={rate!r} of a model without stochastic depth; allowed: 0") from error
    twin.load_state_dict(model.state_dict())
    return replace(network, model=twin.eval())


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
            raise ValueError(f"image_size={image_size!r} of model={name!r}: {_first_line(error)}") from error
    return options


def _first_line(error: Exception) -> str:
    return re.split(r"\n|(?<=\.) ", str(error).strip() or type(error).__name__)[0][:200]
