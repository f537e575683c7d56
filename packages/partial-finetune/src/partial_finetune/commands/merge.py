"""``partial-finetune merge``: the tuned model as one plain timm state dict, for use without this package."""

from safetensors.torch import save

from frugal_shared.checkpoint import write_bytes
from frugal_shared.errors import UsageError
from partial_finetune.checkpoint import merge
from partial_finetune.commands.options import MergeConfig
from partial_finetune.commands.tuned import base_of, find_delta


def merge_file(config: MergeConfig) -> None:
    """Write base and delta together, as ``timm.create_model(name, num_classes=N, checkpoint_path=FILE)`` reads them.

    Raises:
        ValueError: a folder that holds no delta, or another base.
        RunError: the base's weights cannot be fetched.
    """
    if len(config.deltas) != 1:
        raise UsageError(f"{len(config.deltas)} deltas to merge; allowed: one")
    delta = find_delta(config.deltas[0])
    state = merge(delta, base_of(delta, config.weights).model)
    write_bytes(config.output, save(state, {"classes": "\n".join(delta.info["classes"])}))
