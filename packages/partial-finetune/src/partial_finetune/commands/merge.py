"""``partial-finetune merge``: the tuned model as one plain timm state dict, for use without this package."""

from safetensors.torch import save

from frugal_shared.errors import UsageError
from frugal_shared.writing import write_bytes
from partial_finetune.commands.models import DTYPES, find_delta, open_base
from partial_finetune.commands.options import MergeConfig
from partial_finetune.deltas import merge


def main(config: MergeConfig) -> None:
    """Write base and delta together, as ``timm.create_model(name, num_classes=N, checkpoint_path=FILE)`` reads them.

    Raises:
        ValueError: a folder that holds no delta, or another base.
        RunError: the base's weights cannot be fetched.
    """
    if len(config.deltas) != 1:
        raise UsageError(f"{len(config.deltas)} deltas to merge; allowed: one")
    delta = find_delta(config.deltas[0])
    state = merge(delta, open_base(delta, config.weights).model)
    dtype = DTYPES[config.dtype]
    state = {name: value.to(dtype) if value.is_floating_point() else value for name, value in state.items()}
    write_bytes(config.output, save(state, {"classes": "\n".join(delta.info["classes"])}))
