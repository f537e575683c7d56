"""Where each diffusers transformer keeps its blocks, and what flows through them: one table.

An :class:`Adapter` names the ``ModuleList``s in the order in which they run. For each it says what a block returns: the
name of the ``forward`` argument that comes back changed or, where a block returns a tuple, those names in its order.

A model that is not in the table is registered in a few lines::

    from delta_dit import Adapter, Stack, register_adapter

    register_adapter(
        "MyTransformer2DModel",
        Adapter(
            Stack("double_blocks", ("encoder_hidden_states", "hidden_states")),
            Stack("single_blocks", "hidden_states"),
        ),
    )
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from delta_dit.delta import Streams

H = "hidden_states"
E = "encoder_hidden_states"


@dataclass(frozen=True)
class Stack:
    """One list of blocks.

    Args:
        name: attribute of the transformer that holds the ``ModuleList``.
        returns: what a block returns: a tensor (the argument's name), or a tuple (the arguments' names in order).
    """

    name: str
    returns: str | tuple[str, ...] = H

    @property
    def streams(self) -> tuple[str, ...]:
        """Names of the arguments that flow from block to block."""
        return (self.returns,) if isinstance(self.returns, str) else self.returns


@dataclass(frozen=True, init=False)
class Adapter:
    """How to find and read the blocks of one transformer class.

    Args:
        stacks: in the order of execution. A range of blocks that spans two stacks is cached as two pieces.
        interleaved: the stacks take turns, block by block.
        every_block: keep the Δ of each block of a range, not their sum: needed where something reads a block's output
            in the middle of a range (long skip connections) or reshapes it there. Costs one Δ per block.
        timestep: name of the transformer's timestep argument.
    """

    stacks: tuple[Stack, ...]
    interleaved: bool
    every_block: bool
    timestep: str

    def __init__(
        self, *stacks: Stack, interleaved: bool = False, every_block: bool = False, timestep: str = "timestep"
    ) -> None:
        object.__setattr__(self, "stacks", stacks)
        object.__setattr__(self, "interleaved", interleaved)
        object.__setattr__(self, "every_block", every_block or interleaved)
        object.__setattr__(self, "timestep", timestep)


ADAPTERS: dict[str, Adapter] = {
    "AuraFlowTransformer2DModel": Adapter(
        Stack("joint_transformer_blocks", (E, H)), Stack("single_transformer_blocks")
    ),
    "CogVideoXTransformer3DModel": Adapter(Stack("transformer_blocks", (H, E))),
    "CogView4Transformer2DModel": Adapter(Stack("transformer_blocks", (H, E))),
    "DiTTransformer2DModel": Adapter(Stack("transformer_blocks")),
    "FluxTransformer2DModel": Adapter(Stack("transformer_blocks", (E, H)), Stack("single_transformer_blocks", (E, H))),
    # the second half of its blocks reads the outputs of the first
    "HunyuanDiT2DModel": Adapter(Stack("blocks"), every_block=True),
    "HunyuanVideoTransformer3DModel": Adapter(
        Stack("transformer_blocks", (H, E)), Stack("single_transformer_blocks", (H, E))
    ),
    "LTXVideoTransformer3DModel": Adapter(Stack("transformer_blocks")),
    # space and time take turns, with a reshape between them
    "LatteTransformer3DModel": Adapter(
        Stack("transformer_blocks"), Stack("temporal_transformer_blocks"), interleaved=True
    ),
    "Lumina2Transformer2DModel": Adapter(Stack("layers")),
    "MochiTransformer3DModel": Adapter(Stack("transformer_blocks", (H, E))),
    "PixArtTransformer2DModel": Adapter(Stack("transformer_blocks")),
    "QwenImageTransformer2DModel": Adapter(Stack("transformer_blocks", (E, H))),
    "SD3Transformer2DModel": Adapter(Stack("transformer_blocks", (E, H))),
    "SanaTransformer2DModel": Adapter(Stack("transformer_blocks")),
    "WanTransformer3DModel": Adapter(Stack("blocks")),
    "ZImageTransformer2DModel": Adapter(Stack("layers", "x"), timestep="t"),
}


def register_adapter(class_name: str, adapter: Adapter) -> None:
    """Make the transformer class of this name known; an existing entry is replaced."""
    ADAPTERS[class_name] = adapter


def adapter_for(transformer: nn.Module) -> Adapter:
    """Return the adapter of a transformer's class, or of the nearest base class that has one.

    Raises:
        ValueError: no adapter is known.
    """
    for base in type(transformer).__mro__:
        if base.__name__ in ADAPTERS:
            return ADAPTERS[base.__name__]
    raise ValueError(
        f"transformer {type(transformer).__name__!r} is unknown; allowed: {', '.join(sorted(ADAPTERS))}, "
        "or your own after delta_dit.register_adapter(class_name, Adapter(Stack(attribute, returns)))"
    )


@dataclass(frozen=True)
class Block:
    """One block in the order of execution."""

    module: nn.Module
    stack: Stack
    opens_piece: bool  # whether no sum of Δ may reach from the block before into this one


def blocks_of(transformer: nn.Module) -> list[Block]:
    """Return a transformer's blocks in the order in which they run."""
    adapter = adapter_for(transformer)
    lists = [[(module, stack) for module in getattr(transformer, stack.name)] for stack in adapter.stacks]
    if adapter.interleaved:
        ordered = [block for turn in zip(*lists, strict=True) for block in turn]
    else:
        ordered = [block for blocks in lists for block in blocks]
    firsts = {id(blocks[0][0]) for blocks in lists if blocks}
    return [Block(module, stack, adapter.every_block or id(module) in firsts) for module, stack in ordered]


def stream_reader(block: Block) -> Callable[[tuple, dict[str, Any]], Streams]:
    """Return a function that picks a block's streams out of the arguments of its ``forward``."""
    parameters = list(inspect.signature(type(block.module).forward).parameters)[1:]
    places = [(name, parameters.index(name)) for name in block.stack.streams]

    def read(args: tuple, kwargs: dict[str, Any]) -> Streams:
        return tuple(kwargs[name] if name in kwargs else args[at] if at < len(args) else None for name, at in places)

    return read
