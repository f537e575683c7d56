"""``bdp-nas export``: a network that needs nothing of this package: a torch.export program, and ONNX."""

from importlib import import_module
from pathlib import Path

import torch

from bdp_nas.blueprint import Blueprint
from bdp_nas.commands.bilevel import make_searcher
from bdp_nas.commands.data import open_data
from bdp_nas.commands.folders import NETWORK, SUPERNET, read_blueprint, read_options, read_weights
from bdp_nas.commands.loading import normalise
from bdp_nas.commands.options import ExportConfig
from bdp_nas.spaces import get_space
from bdp_nas.spaces.space import Network, calibrate
from bdp_nas.standalone import Standalone, to_onnx, to_program
from frugal_shared.checkpoint import write_bytes
from frugal_shared.errors import RunError, UsageError
from frugal_shared.tensors import pack_tensors

PROGRAM, ONNX = "network.pt2", "network.onnx"
CALIBRATION = 512  # images that batch norms are calibrated on
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def main(config: ExportConfig) -> None:
    """Write the network of a retraining or of a search.

    Raises:
        UsageError: inherited weights of something that has none.
        RunError: a folder of something else, or the ``[onnx]`` extra is missing.
    """
    if config.onnx:
        require_onnx()
    blueprint, dtype = read_blueprint(config.source), DTYPES[config.dtype]
    network = network_of(config, blueprint).to(dtype).eval()
    model, images = Standalone(network, *blueprint.moments), torch.rand(2, *blueprint.image, dtype=dtype)
    files = {PROGRAM: to_program(model, images), NETWORK: pack_tensors(network.state_dict())}
    if config.onnx:
        files[ONNX] = to_onnx(model, images)
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
    options = read_options(folder)
    supernet = make_searcher(options, options.seed).supernet(get_space(blueprint.space), blueprint.size)
    supernet.load_state_dict(read_weights(folder / SUPERNET, supernet))
    network = supernet.derive(blueprint.genotype)
    pixels = open_data(options, options.seed).train.pixels[:CALIBRATION]
    calibrate(network, normalise(pixels, *blueprint.moments))
    return network


def require_onnx() -> None:
    """Raise :class:`RunError` with what to install unless ONNX files can be written."""
    for module in ("onnx", "onnxscript"):
        try:
            import_module(module)
        except ImportError:
            raise RunError(f"{module} is not installed; install it with: pip install onnx onnxscript") from None
