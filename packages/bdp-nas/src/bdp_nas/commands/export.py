"""``bdp-nas export``: a network that needs nothing of this package: a torch.export program, and ONNX."""

from importlib import import_module
from io import BytesIO
from pathlib import Path

import torch
from torch import Tensor, nn

from bdp_nas.commands.bilevel import make_searcher
from bdp_nas.commands.blueprint import Blueprint
from bdp_nas.commands.data import open_data
from bdp_nas.commands.loading import normalise
from bdp_nas.commands.options import ExportConfig
from bdp_nas.commands.retrain import NETWORK
from bdp_nas.commands.search import SUPERNET, read_config
from bdp_nas.spaces import get_space
from bdp_nas.spaces.space import Network
from frugal_shared.checkpoint import write_bytes
from frugal_shared.errors import RunError, UsageError
from frugal_shared.tensors import pack_tensors, read_tensors

PROGRAM, ONNX = "network.pt2", "network.onnx"
CALIBRATION, BATCH = 512, 64  # images that batch norms are calibrated on, and how many at once


def export(config: ExportConfig) -> None:
    """Write the network of a retraining or of a search.

    Raises:
        UsageError: inherited weights of something that has none.
        RunError: a folder of something else, or the ``[onnx]`` extra is missing.
    """
    if config.onnx:
        require_onnx()
    blueprint = Blueprint.read(config.source)
    network = network_of(config, blueprint).eval()
    model = Standalone(network, *blueprint.moments).eval()
    images = torch.rand(2, *blueprint.image)
    files = {PROGRAM: program(model, images), NETWORK: pack_tensors(network.state_dict())}
    if config.onnx:
        files[ONNX] = onnx_model(model, images)
    for name, data in files.items():
        write_bytes(config.output_dir / name, data)
    blueprint.write(config.output_dir)


def network_of(config: ExportConfig, blueprint: Blueprint) -> Network:
    """Return the network with its weights: trained, inherited, or random."""
    if (config.source / NETWORK).exists():
        if config.inherit:
            raise UsageError(f"inherit=True with the retraining {str(config.source)!r}; allowed: a search")
        network = blueprint.network()
        network.load_state_dict(read_weights(config.source / NETWORK, network))
        return network
    if config.inherit:
        return inherited(config.source, blueprint)
    torch.manual_seed(config.seed)
    return blueprint.network()


def inherited(folder: Path, blueprint: Blueprint) -> Network:
    """Return the network with the weights of the supernet that found it, on the search's own images.

    Raises:
        ValueError: the searcher's operations have other weights than the network's.
        RunError: what the search left cannot be read.
    """
    config = read_config(folder)
    supernet = make_searcher(config, config.seed).supernet(get_space(blueprint.space), blueprint.size)
    supernet.load_state_dict(read_weights(folder / SUPERNET, supernet))
    network = supernet.derive(blueprint.genotype)
    pixels = open_data(config, config.seed).train.pixels[:CALIBRATION]
    calibrate(network, normalise(pixels, *blueprint.moments))
    return network


@torch.no_grad()
def calibrate(network: nn.Module, images: Tensor) -> None:
    """Replace the running statistics of batch norms by the means over these images ``(N, C, H, W)``."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over batches
    network.train()
    for batch in images.split(BATCH):
        network(batch)
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum


def read_weights(path: Path, model: nn.Module) -> dict[str, Tensor]:
    """Return what a file holds for a model.

    Raises:
        RunError: no such file, or it is of another model.
    """
    try:
        state, _ = read_tensors(path)
    except RunError as error:
        raise RunError(f"{error}; allowed: what a search or a retraining wrote") from None
    expected = {name: value.shape for name, value in model.state_dict().items()}
    if {name: value.shape for name, value in state.items()} != expected:
        raise RunError(f"{str(path)!r} is of another space, size or genotype; allowed: that of its genotype.json")
    return state


def program(model: nn.Module, images: Tensor) -> bytes:
    """Return a torch.export program for any number of images, as the bytes of its file."""
    batch, buffer = {0: torch.export.Dim("batch")}, BytesIO()
    torch.export.save(torch.export.export(model, (images,), dynamic_shapes=(batch,)), buffer)
    return buffer.getvalue()


def onnx_model(model: nn.Module, images: Tensor) -> bytes:
    """Return an ONNX model for any number of images, as the bytes of its file."""
    exported = torch.onnx.export(
        model,
        (images,),
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        dynamo=True,
        verbose=False,
    )
    assert exported is not None
    return exported.model_proto.SerializeToString()


def require_onnx() -> None:
    """Raise :class:`RunError` with what to install unless ONNX files can be written."""
    for module in ("onnx", "onnxscript"):
        try:
            import_module(module)
        except ImportError:
            raise RunError(f"{module} is not installed; install it with: pip install onnx onnxscript") from None


class Standalone(nn.Module):
    """A network with the normalisation of its images in front.

    Args:
        network: in evaluation mode.
        mean: of each channel, ``(C,)``.
        std: of each channel, ``(C,)``.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", mean[:, None, None])
        self.register_buffer("std", std[:, None, None])

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``(B, C, H, W)`` in [0, 1] to logits ``(B, classes)``."""
        return self.network((images - self.mean) / self.std)
