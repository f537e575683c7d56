"""Where each diffusers transformer keeps its blocks, and what flows through them: one table.

An :class:`Adapter` names the ``ModuleList``s in the order in which they run. For each it says what a block returns: the
name of the ``forward`` argument that comes back changed or, where a block returns a tuple, those names in its order.
Short stacks that only prepare an input (text encoders, refiners) are left out and always run.

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


def _never(*_: Any) -> bool:
    return False


@dataclass(frozen=True)
class Stack:
    """One list of blocks.

    Args:
        name: attribute of the transformer that holds the ``ModuleList``; dots reach into its parts.
        returns: what a block returns: a tensor (the argument's name), or a tuple (the arguments' names in order).
        cut_after: ``cut_after(transformer, i)`` says whether the transformer itself looks at the output of block i (a
            long skip connection, an adapter between two blocks) or starts another stream there. The Δ of a range is
            then kept in two parts, before and after, so that what it looks at is right. What it merely adds or
            replaces, whatever the stream, needs no cut: ControlNet's residuals, a fresh text per block.
        drawn: the stream that the output is made of; default: ``hidden_states``, or else the first.
    """

    name: str
    returns: str | tuple[str, ...] = H
    cut_after: Callable[[Any, int], bool] = _never
    drawn: str = H

    @property
    def streams(self) -> tuple[str, ...]:
        """Names of the arguments that flow from block to block."""
        return (self.returns,) if isinstance(self.returns, str) else self.returns

    @property
    def place(self) -> int:
        """Which of the streams the output is made of."""
        return self.streams.index(self.drawn) if self.drawn in self.streams else 0


@dataclass(frozen=True, init=False)
class Adapter:
    """How to find and read the blocks of one transformer class.

    Args:
        stacks: in the order of execution. A range of blocks that spans two stacks is cached as two pieces.
        interleaved: the stacks take turns, block by block, and the stream is reshaped between them.
        timestep: name of the transformer's timestep argument.
        bypass: ``bypass(arguments)`` says whether a call of the transformer has to run every block whatever the plan
            says: it fills a key/value cache.
    """

    stacks: tuple[Stack, ...]
    interleaved: bool
    timestep: str
    bypass: Callable[[dict[str, Any]], bool]

    def __init__(
        self,
        *stacks: Stack,
        interleaved: bool = False,
        timestep: str = "timestep",
        bypass: Callable[[dict[str, Any]], bool] = _never,
    ) -> None:
        object.__setattr__(self, "stacks", stacks)
        object.__setattr__(self, "interleaved", interleaved)
        object.__setattr__(self, "timestep", timestep)
        object.__setattr__(self, "bypass", bypass)


def _fills_kv_cache(arguments: dict[str, Any]) -> bool:
    return arguments.get("kv_cache_mode") in ("extract", "capture_pre_rope", "inject_and_capture_post_rope")


ADAPTERS: dict[str, Adapter] = {
    # One stream.
    **dict.fromkeys(
        (
            "AllegroTransformer3DModel",
            "CosmosTransformer3DModel",
            "DiTTransformer2DModel",
            "Krea2Transformer2DModel",
            "LTXVideoTransformer3DModel",
            "MiniMaxH3Transformer3DModel",
            "MiniMaxMusic3Transformer1DModel",
            "NucleusMoEImageTransformer2DModel",
            "PixArtTransformer2DModel",
            "PriorTransformer",
            "SanaTransformer2DModel",
            "SanaVideoTransformer3DModel",
            "StableAudio3DiTModel",
            "StableAudioDiTModel",
            "Transformer2DModel",
        ),
        Adapter(Stack("transformer_blocks")),
    ),
    **dict.fromkeys(
        ("QwenImage21Transformer2DModel", "SanaWMLTX2RefinerTransformer3DModel"),
        Adapter(Stack("transformer_blocks"), bypass=_fills_kv_cache),
    ),
    **dict.fromkeys(
        (
            "AnyFlowTransformer3DModel",
            "ChronoEditTransformer3DModel",
            "HeliosTransformer3DModel",
            "LongCatAudioDiTTransformer",
            "PRXTransformer2DModel",
            "SkyReelsV2Transformer3DModel",
            "WanTransformer3DModel",
            "WanVACETransformer3DModel",
        ),
        Adapter(Stack("blocks")),
    ),
    "AnyFlowFARTransformer3DModel": Adapter(
        Stack("blocks"), bypass=lambda arguments: bool((arguments.get("kv_cache_flag") or {}).get("is_cache_step"))
    ),
    # the second half of the blocks takes the outputs of most of the first
    "HunyuanDiT2DModel": Adapter(Stack("blocks", cut_after=lambda model, i: i < model.config.num_layers // 2 - 1)),
    "SanaWMTransformer3DModel": Adapter(Stack("blocks", "x")),
    # attention to the face after every fifth block
    "WanAnimateTransformer3DModel": Adapter(
        Stack("blocks", cut_after=lambda model, i: i % model.config.inject_face_latents_blocks == 0)
    ),
    "WanAnimate2Transformer3DModel": Adapter(Stack("blocks"), bypass=_fills_kv_cache),
    **dict.fromkeys(
        (
            "AceStepTransformer1DModel",
            "Ideogram4Transformer2DModel",
            "Lumina2Transformer2DModel",
            "LuminaNextDiT2DModel",
            "OmniGenTransformer2DModel",
        ),
        Adapter(Stack("layers")),
    ),
    **dict.fromkeys(
        ("BriaFibo2Transformer2DModel", "ErnieImageTransformer2DModel"),
        Adapter(Stack("layers", "x")),
    ),
    "ZImageTransformer2DModel": Adapter(Stack("layers", "x"), timestep="t"),
    "Kandinsky5Transformer3DModel": Adapter(Stack("visual_transformer_blocks", "visual_embed")),
    "Kandinsky6SRTransformer3DModel": Adapter(Stack("visual_transformer_blocks")),
    "LatteTransformer3DModel": Adapter(
        Stack("transformer_blocks"), Stack("temporal_transformer_blocks"), interleaved=True
    ),
    "T5FilmDecoder": Adapter(Stack("decoders", (H,)), timestep="decoder_noise_time"),
    # Two streams: image or video, and text or audio.
    **dict.fromkeys(
        (
            "CogVideoXTransformer3DModel",
            "CogView3PlusTransformer2DModel",
            "CogView4Transformer2DModel",
            "EasyAnimateTransformer3DModel",
            "HunyuanVideo15Transformer3DModel",
            "MochiTransformer3DModel",
        ),
        Adapter(Stack("transformer_blocks", (H, E))),
    ),
    # attention to the face after every other block
    "ConsisIDTransformer3DModel": Adapter(
        Stack(
            "transformer_blocks",
            (H, E),
            cut_after=lambda model, i: model.config.is_train_face and i % model.config.cross_attn_interval == 0,
        )
    ),
    "GlmImageTransformer2DModel": Adapter(
        Stack("transformer_blocks", (H, E)),
        bypass=lambda arguments: arguments.get("kv_caches") is not None and arguments["kv_caches"][0].mode == "write",
    ),
    **dict.fromkeys(
        ("JoyImageEditPlusTransformer3DModel", "JoyImageEditTransformer3DModel"),
        Adapter(Stack("double_blocks", (H, E))),
    ),
    "Cosmos3OmniTransformer": Adapter(
        Stack("layers", ("und_seq", "gen_seq"), drawn="gen_seq"), timestep="vision_timesteps"
    ),
    "Kandinsky6Transformer3DModel": Adapter(Stack("visual_transformer_blocks", ("vis", "aud"))),
    "LTX2VideoTransformer3DModel": Adapter(Stack("transformer_blocks", (H, "audio_hidden_states"))),
    **dict.fromkeys(
        ("QwenImageTransformer2DModel", "SD3Transformer2DModel"), Adapter(Stack("transformer_blocks", (E, H)))
    ),
    # Two stacks.
    **dict.fromkeys(
        (
            "BriaTransformer2DModel",
            "FluxTransformer2DModel",
            "LongCatImageTransformer2DModel",
            "OvisImageTransformer2DModel",
        ),
        Adapter(Stack("transformer_blocks", (E, H)), Stack("single_transformer_blocks", (E, H))),
    ),
    **dict.fromkeys(
        (
            "HunyuanImageTransformer2DModel",
            "HunyuanVideoFramepackTransformer3DModel",
            "HunyuanVideoTransformer3DModel",
        ),
        Adapter(Stack("transformer_blocks", (H, E)), Stack("single_transformer_blocks", (H, E))),
    ),
    # the last blocks are a decoder, which starts again from the input
    "MotifVideoTransformer3DModel": Adapter(
        Stack("transformer_blocks", (H, E)),
        Stack(
            "single_transformer_blocks",
            (H, E),
            cut_after=lambda model, i: i + 1 == len(model.single_transformer_blocks) - model.num_decoder_layers,
        ),
    ),
    "AuraFlowTransformer2DModel": Adapter(
        Stack("joint_transformer_blocks", (E, H)), Stack("single_transformer_blocks")
    ),
    **dict.fromkeys(
        ("BriaFiboTransformer2DModel", "ChromaTransformer2DModel"),
        Adapter(Stack("transformer_blocks", (E, H)), Stack("single_transformer_blocks")),
    ),
    "Flux2Transformer2DModel": Adapter(
        Stack("transformer_blocks", (E, H)), Stack("single_transformer_blocks"), bypass=_fills_kv_cache
    ),
    "Flux3Transformer2DModel": Adapter(Stack("mode_blocks.image"), Stack("single_transformer_blocks", (E, H))),
    "HiDreamImageTransformer2DModel": Adapter(
        Stack("double_stream_blocks", (H, E)), Stack("single_stream_blocks"), timestep="timesteps"
    ),
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
        f"transformer {type(transformer).__name__!r} is unknown; allowed: those in delta_dit.adapters.ADAPTERS, "
        "or your own after delta_dit.register_adapter(class_name, Adapter(Stack(attribute, returns)))"
    )


@dataclass(frozen=True)
class Block:
    """One block in the order of execution."""

    module: nn.Module
    stack: Stack
    opens_piece: bool  # whether no sum of Δ may reach from the block before into this one


def blocks_of(transformer: nn.Module) -> list[Block]:
    """Return a transformer's blocks in the order in which they run.

    Raises:
        ValueError: no adapter is known, or it names a list or a timestep that the transformer does not have.
    """
    adapter = adapter_for(transformer)
    argument_reader(transformer, adapter.timestep)
    lists = [_blocks_of_stack(transformer, stack, adapter.interleaved) for stack in adapter.stacks]
    if adapter.interleaved:
        return [block for turn in zip(*lists, strict=True) for block in turn]
    return [block for blocks in lists for block in blocks]


def _blocks_of_stack(transformer: nn.Module, stack: Stack, every_block: bool) -> list[Block]:
    try:
        modules = transformer.get_submodule(stack.name)
    except AttributeError as error:
        raise ValueError(f"{type(transformer).__name__} has no list of blocks {stack.name!r}: {error}") from error
    if not isinstance(modules, nn.ModuleList):
        raise ValueError(
            f"{stack.name!r} of {type(transformer).__name__} is {type(modules).__name__}; allowed: ModuleList"
        )
    opens = [every_block or i == 0 or stack.cut_after(transformer, i - 1) for i in range(len(modules))]
    return [Block(module, stack, opens_piece) for module, opens_piece in zip(modules, opens, strict=True)]


def argument_reader(module: nn.Module, name: str) -> Callable[[tuple, dict[str, Any]], Any]:
    """Return a function that picks one argument out of a call of ``module.forward``; None if the call omits it.

    Raises:
        ValueError: ``forward`` takes no such argument.
    """
    names = list(inspect.signature(type(module).forward).parameters)[1:]
    if name not in names:
        raise ValueError(f"{type(module).__name__}.forward takes no {name!r}; allowed: {', '.join(names)}")
    place = names.index(name)

    def read(args: tuple, kwargs: dict[str, Any]) -> Any:
        return kwargs[name] if name in kwargs else args[place] if place < len(args) else None

    return read


def stream_reader(block: Block) -> Callable[[tuple, dict[str, Any]], Streams]:
    """Return a function that picks a block's streams out of the arguments of its ``forward``."""
    readers = [argument_reader(block.module, name) for name in block.stack.streams]

    def read(args: tuple, kwargs: dict[str, Any]) -> Streams:
        return tuple(reader(args, kwargs) for reader in readers)

    return read
