"""Attach the Δ-cache to a diffusers pipeline or transformer, and take it off again without a trace.

One hook on the transformer decides, before a call, what each block will do; one hook on each block does it. Only
``HookRegistry`` and ``ModelHook`` of diffusers are used. The state is ours, because the pipelines of the paper's own
models (DiT, PixArt, SD3) neither open a cache context nor reset stateful hooks between generations.

Whatever does not fit, costs a full step and never an image: the first step of a run, another batch size or resolution
in mid-run, a scheduler that does not know where it is.
"""

import inspect
import itertools
import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from diffusers.hooks import HookRegistry, ModelHook
from torch import nn

from delta_dit.adapters import Block, adapter_for, blocks_of, stream_reader
from delta_dit.clock import Clock, Position, SchedulerClock, TimestepClock
from delta_dit.config import DeltaCacheConfig
from delta_dit.delta import DeltaRecord, DeltaSum, Streams, add_delta
from delta_dit.plan import DeltaPlan, Full, Range, Reuse

ROOT_HOOK = "delta_cache_root"
BLOCK_HOOK = "delta_cache_block"
_TRANSFORMERS = ("transformer", "transformer_2")  # attributes of a pipeline

Model = TypeVar("Model")


@dataclass
class DeltaCacheStats:
    """What a cached transformer did since the cache was enabled."""

    calls: int = 0
    reuse_calls: int = 0
    blocks_run: int = 0
    blocks_total: int = 0
    fallbacks: Counter = field(default_factory=Counter)
    """Calls that the plan wanted to reuse and that ran in full, by reason."""

    @property
    def block_speedup(self) -> float:
        """Block evaluations without the cache ÷ with it."""
        return self.blocks_total / self.blocks_run if self.blocks_run else float("nan")


@dataclass
class Call:
    """What every block does in one transformer call."""

    position: Position
    adds: dict[int, Streams] = field(default_factory=dict)  # first block of a reused piece → its Δ
    skips: frozenset[int] = frozenset()  # blocks that do not run
    sums: dict[int, list[DeltaSum]] = field(default_factory=dict)  # block → the sums it is part of
    pieces: dict[tuple[int, Range], DeltaSum] = field(default_factory=dict)  # (branch, piece) → its sum


class DeltaCache:
    """The state of one transformer's cache: its plan, its recorded Δs and the call in progress."""

    def __init__(self, config: DeltaCacheConfig, blocks: list[Block], clock: Clock) -> None:
        self.config = config
        self.blocks = blocks
        self.clock = clock
        self.stats = DeltaCacheStats()
        self.call: Call | None = None
        self.reset()

    def reset(self) -> None:
        """Forget the run: its plan and all recorded Δs."""
        self.plan: DeltaPlan | None = None
        self.signature: Any = None
        self.records: dict[tuple[int, Range], DeltaRecord] = {}

    def begin(self, timestep: Any, signature: Any) -> None:
        """Decide what the blocks will do in the call that is about to happen."""
        position = self.clock.tick(timestep)
        self.stats.calls += 1
        self.stats.blocks_total += len(self.blocks)
        if position is None:
            self._fall_back("the scheduler does not know the step")
            return
        if position.new_run or self.plan is None:
            self.reset()
            self.plan = self.config.plan_for(self.clock.steps, len(self.blocks), self.clock.levels)
        if signature != self.signature:
            self.records.clear()
            self.signature = signature
        self.call = self._reuse(position) or self._full(position)
        self.stats.reuse_calls += bool(self.call.skips)
        self.stats.blocks_run += len(self.blocks) - len(self.call.skips)

    def end(self) -> None:
        """Keep what the call's blocks recorded."""
        call, self.call = self.call, None
        if call is None:
            return
        for key, total in call.pieces.items():
            self.records.setdefault(key, DeltaRecord()).push(call.position.step, total.total(), keep=self._keep())

    def _reuse(self, position: Position) -> Call | None:
        assert self.plan is not None
        action = self.plan.actions[position.step]
        if not isinstance(action, Reuse):
            return None
        keys = [(position.branch, piece) for piece in self._pieces(action.range)]
        if not all(key in self.records for key in keys):
            self._fall_back("no Δ was recorded", counted=False)
            return None
        adds = {key[1][0]: self.records[key].at(position.step, action.order) for key in keys}
        return Call(position, adds=adds, skips=frozenset(range(*action.range)))

    def _full(self, position: Position) -> Call:
        call = Call(position)
        for piece in {piece for wanted in self._wanted(position.step) for piece in self._pieces(wanted)}:
            call.pieces[position.branch, piece] = total = DeltaSum()
            for block in range(*piece):
                call.sums.setdefault(block, []).append(total)
        return call

    def _wanted(self, step: int) -> tuple[Range, ...]:
        """Return the ranges to record; a step that could not reuse stands in for the full step before it."""
        assert self.plan is not None
        return next(a.records for a in reversed(self.plan.actions[: step + 1]) if isinstance(a, Full))

    def _pieces(self, blocks: Range) -> list[Range]:
        """Split a range where no single sum of Δ can span it."""
        start, stop = blocks
        cuts = [start, *(i for i in range(start + 1, stop) if self.blocks[i].opens_piece), stop]
        return list(itertools.pairwise(cuts))

    def _keep(self) -> int:
        assert self.plan is not None
        return 1 + max((a.order for a in self.plan.actions if isinstance(a, Reuse)), default=0)

    def _fall_back(self, reason: str, *, counted: bool = True) -> None:
        self.stats.fallbacks[reason] += 1
        if counted:
            self.stats.blocks_run += len(self.blocks)


class DeltaRootHook(ModelHook):
    """Opens and closes a call of the cache around the transformer's forward."""

    def __init__(self, caches: "PerThread", transformer: nn.Module) -> None:
        super().__init__()
        self.caches = caches
        self.timestep = adapter_for(transformer).timestep
        self.place = list(inspect.signature(type(transformer).forward).parameters)[1:].index(self.timestep)

    @torch.compiler.disable(recursive=False)
    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Run the transformer with the cache."""
        cache = self.caches.cache
        # Δs must not keep a graph alive; skip-layer guidance is an extra call that must not move the run along.
        if torch.is_grad_enabled() or kwargs.get("skip_layers") is not None:
            return self.fn_ref.original_forward(*args, **kwargs)
        timestep = kwargs[self.timestep] if self.timestep in kwargs else args[self.place]
        cache.begin(timestep, _signature((args, kwargs)))
        try:
            output = self.fn_ref.original_forward(*args, **kwargs)
            cache.end()
        except BaseException:
            cache.call = None
            cache.reset()
            raise
        return output


class DeltaBlockHook(ModelHook):
    """Runs a block, or stands in for it."""

    def __init__(self, caches: "PerThread", index: int, block: Block) -> None:
        super().__init__()
        self.caches = caches
        self.index = index
        self.returns_tensor = isinstance(block.stack.returns, str)
        self.read = stream_reader(block)
        self.ended: tuple[bool, ...] = tuple(False for _ in block.stack.streams)  # streams that end in this block

    @torch.compiler.disable(recursive=False)
    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Add Δ, pass on, or run the block and let its Δ be summed."""
        call = self.caches.cache.call
        if call is None:
            return self.fn_ref.original_forward(*args, **kwargs)
        if self.index in call.skips:
            streams = self.read(args, kwargs)
            if self.index in call.adds:
                streams = add_delta(streams, call.adds[self.index])
            return self._give(streams)
        output = self.fn_ref.original_forward(*args, **kwargs)
        if self.index in call.sums:
            outputs = (output,) if self.returns_tensor else tuple(output)
            self.ended = tuple(stream is None for stream in outputs)
            inputs = self.read(args, kwargs)
            for total in call.sums[self.index]:
                total.add(inputs, outputs)
        return output

    def _give(self, streams: Streams) -> Any:
        if self.returns_tensor:
            return streams[0]
        return tuple(None if ended else stream for ended, stream in zip(self.ended, streams, strict=True))


class PerThread(threading.local):
    """One cache per thread, so that two threads sampling at once do not mix their Δs."""

    def __init__(self, config: DeltaCacheConfig, blocks: list[Block], scheduler: Any | None) -> None:
        clock = TimestepClock(config.num_inference_steps or 0) if scheduler is None else SchedulerClock(scheduler)
        self.cache = DeltaCache(config, blocks, clock)


def enable_delta_cache(model: Model, config: DeltaCacheConfig | None = None) -> Model:
    """Put the Δ-cache on a pipeline's transformer(s), or on a bare transformer. Returns ``model``.

    Args:
        model: a ``DiffusionPipeline`` with a transformer, or such a transformer.
        config: default: the generic plan at 1.6×.

    Raises:
        ValueError: an unknown transformer, a plan that does not fit it, a cache that is already there, or a bare
            transformer without ``num_inference_steps``. The model is then as it was.
    """
    config = DeltaCacheConfig() if config is None else config
    scheduler = getattr(model, "scheduler", None)
    transformers = _transformers(model)
    if scheduler is None and config.num_inference_steps is None:
        raise ValueError("num_inference_steps=None cannot be known from a bare transformer; allowed: 1 or more")
    for transformer in transformers:
        _check(transformer, config)
    try:
        for transformer in transformers:
            _attach(transformer, config, scheduler)
    except BaseException:
        disable_delta_cache(model)
        raise
    return model


def disable_delta_cache(model: Model) -> Model:
    """Take the Δ-cache off again; a model without one is left alone. Returns ``model``."""
    for transformer in _transformers(model):
        for block in blocks_of(transformer):
            _remove_hook(block.module, BLOCK_HOOK)
        _remove_hook(transformer, ROOT_HOOK)
        _forget_registries(transformer)
    return model


def delta_cache_stats(model: Any) -> DeltaCacheStats:
    """Return what the cache did since it was enabled (in this thread; of a pipeline's first transformer).

    Raises:
        ValueError: no cache is enabled.
    """
    transformer = _transformers(model)[0]
    hook = _hook(transformer, ROOT_HOOK)
    if hook is None:
        raise ValueError(f"no delta cache is enabled on {type(transformer).__name__}")
    return hook.caches.cache.stats


def _transformers(model: Any) -> list[nn.Module]:
    if isinstance(model, nn.Module):
        return [model]
    found = [getattr(model, name, None) for name in _TRANSFORMERS]
    transformers = [transformer for transformer in found if isinstance(transformer, nn.Module)]
    if not transformers:
        raise ValueError(f"{type(model).__name__} has no transformer; allowed: a diffusion transformer or its pipeline")
    return transformers


def _check(transformer: nn.Module, config: DeltaCacheConfig) -> None:
    blocks = len(blocks_of(transformer))
    if _hook(transformer, ROOT_HOOK) is not None:
        raise ValueError(f"{type(transformer).__name__} already has a delta cache; disable it first")
    if getattr(transformer, "_cache_config", None) is not None:
        other = type(transformer._cache_config).__name__
        raise ValueError(f"{type(transformer).__name__} already has a cache of {other}; disable it first")
    if config.plan is not None and config.plan.blocks != blocks:
        raise ValueError(f"the plan is for {config.plan.blocks} blocks and {type(transformer).__name__} has {blocks}")
    if config.num_inference_steps is not None:
        config.plan_for(config.num_inference_steps, blocks)


def _attach(transformer: nn.Module, config: DeltaCacheConfig, scheduler: Any | None) -> None:
    blocks = blocks_of(transformer)
    caches = PerThread(config, blocks, scheduler)
    HookRegistry.check_if_exists_or_initialize(transformer).register_hook(DeltaRootHook(caches, transformer), ROOT_HOOK)
    for index, block in enumerate(blocks):
        hook = DeltaBlockHook(caches, index, block)
        HookRegistry.check_if_exists_or_initialize(block.module).register_hook(hook, BLOCK_HOOK)
    _forget_registries(transformer)


def _hook(module: nn.Module, name: str) -> Any | None:
    registry = getattr(module, "_diffusers_hook", None)
    return None if registry is None else registry.get_hook(name)


def _remove_hook(module: nn.Module, name: str) -> None:
    """Remove one hook, also from under others.

    diffusers 0.42 repairs the chain above a removed hook as if the next hook had no ``new_forward``: that hook would
    silently stop working. Hand it the inner forward as what it is, its original.
    """
    if _hook(module, name) is None:
        return
    registry = HookRegistry.check_if_exists_or_initialize(module)
    above = registry._hook_order.index(name) + 1
    outer = registry._fn_refs[above] if above < len(registry._fn_refs) else None
    own_forward = None if outer is None else outer.forward
    registry.remove_hook(name, recurse=False)
    if outer is not None and outer.original_forward is not None:
        outer.original_forward, outer.forward = outer.forward, own_forward


def _forget_registries(transformer: nn.Module) -> None:
    """Let diffusers look for hooks again: it remembers a list from before ours came or went."""
    registry = HookRegistry.check_if_exists_or_initialize(transformer)
    if hasattr(registry, "invalidate_child_registries_cache"):
        registry.invalidate_child_registries_cache()


def _signature(value: Any) -> Any:
    """Return shape, type and device of every tensor in the arguments of a call."""
    if isinstance(value, torch.Tensor):
        return value.shape, value.dtype, value.device
    if isinstance(value, dict):
        return tuple((key, _signature(item)) for key, item in value.items())
    if isinstance(value, list | tuple):
        return tuple(_signature(item) for item in value)
    return None
