"""Parameter groups of the tuned weights: no decay where it does not belong, layer decay that frozen layers do not bend.

timm's own ``param_groups_layer_decay`` counts only the layers that are still tuned (timm #2691), and its ``lr_scale``
does nothing under torch's schedulers. Here a layer's number follows from the whole model's anatomy, and the scaled
learning rate is each group's own ``lr``, which every scheduler starts from.
"""

from collections import defaultdict
from typing import Any

from torch import nn

from partial_finetune.frozen import Frozen
from partial_finetune.parts import Anatomy, Unit


def parameter_groups(
    frozen: Frozen, learning_rate: float, *, weight_decay: float = 0.05, layer_decay: float | None = None
) -> list[dict[str, Any]]:
    """Return the groups for a torch optimizer: every tuned parameter, each once.

    Args:
        frozen: what is tuned.
        learning_rate: of the head; layer l of L before it gets ``learning_rate · layer_decay^(L − l)``.
        weight_decay: of matrices; biases, norms and what the model excepts itself (``no_weight_decay``) get none.
        layer_decay: factor from a layer to the one below, in (0, 1]; default: the same rate everywhere.

    Raises:
        ValueError: the layer decay is not possible.
    """
    if layer_decay is not None and not 0 < layer_decay <= 1:
        raise ValueError(f"layer_decay={layer_decay!r} is out of range; allowed: above 0, at most 1")
    spared = spared_names(frozen.model)
    top = len(frozen.anatomy.blocks) + 1
    groups: dict[tuple[int, bool], list[nn.Parameter]] = defaultdict(list)
    for name, value in frozen.named_parameters().items():
        decays = value.ndim > 1 and name not in spared
        groups[layer_number(frozen.anatomy, frozen.anatomy.owner(name)), decays].append(value)
    return [
        {
            "params": values,
            "lr": learning_rate * (layer_decay or 1.0) ** (top - layer),
            "weight_decay": weight_decay if decays else 0.0,
        }
        for (layer, decays), values in sorted(groups.items(), key=lambda item: item[0])
    ]


def layer_number(parts: Anatomy, unit: Unit) -> int:
    """Return a unit's layer: 0 the stem, 1 … L the blocks with the transitions before them, L + 1 the head."""
    if unit.block is not None:
        return unit.block + 1
    return 0 if unit.kind == "stem" else len(parts.blocks) + 1


def spared_names(model: nn.Module) -> set[str]:
    """Return the parameters that the model itself excepts from weight decay, such as ``pos_embed``."""
    rule = getattr(model, "no_weight_decay", None)
    return set(rule()) if rule is not None else set()
