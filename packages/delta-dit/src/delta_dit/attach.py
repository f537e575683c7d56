"""Attach the Δ-cache to a diffusers pipeline or transformer, and take it off again without a trace.

One hook on the transformer opens a call, in which :mod:`delta_dit.cache` decides what each block does; one hook on each
block does it. Only ``HookRegistry`` and ``ModelHook`` of diffusers are used. The state is ours, because the pipelines
of the paper's own models (DiT, PixArt, SD3) neither open a cache context nor reset stateful hooks between generations.

To compile, compile the blocks first, so that the hooks stay outside the graphs; no step recompiles anything::

    for block in pipe.transformer.transformer_blocks:
        block.forward = torch.compile(block.forward)  # fullgraph=True and other modes work too
    delta_dit.enable_delta_cache(pipe)

``block.compile()``, ``compile_repeated_blocks()`` and ``torch.compile(transformer)`` work as well, before or after the
cache is enabled, but break the graph at every block; so ``fullgraph=True`` is not possible with them.

Before torch 2.10 every block is compiled anew, in part also without the cache, and after eight of them torch gives up:
for models of more blocks, set ``torch._dynamo.config.recompile_limit`` to twice their number.
"""

import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
from diffusers.hooks import HookRegistry, ModelHook
from torch import nn

from delta_dit.adapters import Block, adapter_for, blocks_of, stream_reader
from delta_dit.cache import DeltaCache, DeltaCacheStats
from delta_dit.clock import SchedulerClock, TimestepClock
from delta_dit.config import DeltaCacheConfig
from delta_dit.delta import Streams
from delta_dit.delta_plan import DeltaPlan
from delta_dit.moved_steps import move_steps, restore_steps

ROOT_HOOK = "delta_cache_root"
BLOCK_HOOK = "delta_cache_block"
# attributes of a pipeline: Wan 2.2 has two, and so has Ideogram 4; Kandinsky 2 has a prior
_TRANSFORMERS = ("transformer", "transformer_2", "unconditional_transformer", "prior")

Model = TypeVar("Model")
Function = TypeVar("Function", bound=Callable[..., Any])


def _untraced(function: Function) -> Function:
    """Keep torch.compile out of what changes from step to step."""
    return cast(Function, torch.compiler.disable(function))


class PerThread(threading.local):
    """One cache per thread, so that two threads sampling at once do not mix their Δs."""

    def __init__(self, config: DeltaCacheConfig, blocks: list[Block], pipeline: Any | None) -> None:
        clock = TimestepClock(config.num_inference_steps or 0) if pipeline is None else SchedulerClock(pipeline)
        self.cache = DeltaCache(config, blocks, clock)


class DeltaRootHook(ModelHook):
    """Opens and closes a call of the cache around the transformer's forward."""

    _is_stateful = True  # diffusers resets such hooks when a pipeline of a CacheMixin model is done
    fn_ref: Any

    def __init__(self, caches: PerThread, transformer: nn.Module) -> None:
        super().__init__()
        self.caches = caches
        self.adapter = adapter_for(transformer)
        self.signature = inspect.signature(type(transformer).forward)

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Run the transformer with the cache."""
        try:
            cached = self._begin(module, args, kwargs)
            output = self.fn_ref.original_forward(*args, **kwargs)
            if cached and not self._end():
                output = self.fn_ref.original_forward(*args, **kwargs)
        except BaseException:
            self.reset_state(module)
            raise
        return output

    @_untraced
    def _begin(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> bool:
        inputs = self.signature.bind(module, *args, **kwargs).arguments
        del inputs["self"]
        if torch.is_grad_enabled() or self.adapter.bypass(inputs):  # Δs must not keep a graph alive
            return False
        timestep = inputs.pop(self.adapter.timestep, None)
        self.caches.cache.begin(timestep, inputs)
        return True

    @_untraced
    def _end(self) -> bool:
        return self.caches.cache.end()

    @_untraced
    def reset_state(self, module: nn.Module) -> nn.Module:
        """Forget the run."""
        self.caches.cache.reset()
        return module


class DeltaBlockHook(ModelHook):
    """Runs a block, or stands in for it."""

    fn_ref: Any

    def __init__(self, caches: PerThread, index: int, block: Block) -> None:
        super().__init__()
        self.caches = caches
        self.index = index
        self.returns_tensor = isinstance(block.stack.returns, str)
        self.read = stream_reader(block)
        self.ended: tuple[bool, ...] = tuple(False for _ in block.stack.streams)  # streams that end in this block

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Add Δ, pass on, or run the block and let its Δ be summed."""
        substitute = self._before(args, kwargs)
        if substitute is not None:
            return substitute
        output = self.fn_ref.original_forward(*args, **kwargs)
        self._after(output)
        return output

    @_untraced
    def _before(self, args: tuple, kwargs: dict[str, Any]) -> Any | None:
        call, inputs = self.caches.cache.call, self.read(args, kwargs)
        if call.skips_block(self.index):
            return self._pack(call.in_place_of(self.index, inputs))
        call.enter(self.index, inputs)
        return None

    @_untraced
    def _after(self, output: Any) -> None:
        outputs = (output,) if self.returns_tensor else tuple(output)
        self.ended = tuple(stream is None for stream in outputs)
        self.caches.cache.call.leave(self.index, outputs)

    def _pack(self, streams: Streams) -> Any:
        if self.returns_tensor:
            return streams[0]
        return tuple(None if ended else stream for ended, stream in zip(self.ended, streams, strict=True))


def enable_delta_cache(model: Model, config: DeltaCacheConfig | DeltaPlan | None = None) -> Model:
    """Put the Δ-cache on a pipeline's transformer(s), or on a bare transformer. Returns ``model``.

    Args:
        model: a ``DiffusionPipeline`` with a transformer, or such a transformer.
        config: what to do, or just the plan; default: the generic plan at 1.6×.

    Raises:
        ValueError: an unknown transformer, a plan that does not fit it, a cache that is already there, group offloading
            that does not stand skipped blocks, or a bare transformer without ``num_inference_steps``. The model is then
            as it was.
    """
    config = config if isinstance(config, DeltaCacheConfig) else DeltaCacheConfig(plan=config)
    pipeline = None if getattr(model, "scheduler", None) is None else model
    transformers = transformers_of(model)
    if pipeline is None and config.num_inference_steps is None:
        raise ValueError("num_inference_steps=None cannot be known from a bare transformer; allowed: 1 or more")
    for transformer in transformers:
        _check(transformer, config)
    try:
        for transformer in transformers:
            _attach(transformer, config, pipeline)
        if pipeline is not None and config.plan is not None and config.plan.moved is not None:
            move_steps(pipeline.scheduler, *config.plan.moved)
    except BaseException:
        disable_delta_cache(model)
        raise
    return model


def disable_delta_cache(model: Model) -> Model:
    """Take the Δ-cache off again; a model without one is left alone. Returns ``model``."""
    for transformer in transformers_of(model):
        for block in blocks_of(transformer):
            remove_hook(block.module, BLOCK_HOOK)
        remove_hook(transformer, ROOT_HOOK)
        if isinstance(getattr(transformer, "_cache_config", None), DeltaCacheConfig):
            del transformer._cache_config
        _forget_registries(transformer)
    if getattr(model, "scheduler", None) is not None:
        restore_steps(model.scheduler)
    return model


def delta_cache_stats(model: Any) -> DeltaCacheStats:
    """Return what the cache has done so far: in this thread, summed over a pipeline's transformers.

    Raises:
        ValueError: no cache is enabled.
    """
    hooks = [hook for transformer in transformers_of(model) if (hook := _hook(transformer, ROOT_HOOK)) is not None]
    if not hooks:
        raise ValueError(f"no delta cache is enabled on {type(model).__name__}")
    return sum((hook.caches.cache.stats for hook in hooks), DeltaCacheStats())


@contextmanager
def delta_cache(model: Model, config: DeltaCacheConfig | DeltaPlan | None = None) -> Iterator[Model]:
    """Enable the Δ-cache in a ``with`` block (see :func:`enable_delta_cache`)."""
    enable_delta_cache(model, config)
    try:
        yield model
    finally:
        disable_delta_cache(model)


def transformers_of(model: Any) -> list[nn.Module]:
    """Return a pipeline's transformers, or the transformer itself.

    Raises:
        ValueError: there is none.
    """
    found = [model] if isinstance(model, nn.Module) else [getattr(model, name, None) for name in _TRANSFORMERS]
    # torch.compile(module) is a wrapper around the module
    transformers = [getattr(module, "_orig_mod", module) for module in found if isinstance(module, nn.Module)]
    if not transformers:
        raise ValueError(f"{type(model).__name__} has no transformer; allowed: a diffusion transformer or its pipeline")
    return transformers


def sole_transformer(pipe: Any) -> nn.Module:
    """Return a pipeline's transformer, of which there is one, led by a scheduler.

    Raises:
        ValueError: the pipeline has no scheduler, no transformer, or more than one.
    """
    found = transformers_of(pipe)
    if len(found) > 1 or getattr(pipe, "scheduler", None) is None:
        has = f"{len(found)} transformers" if len(found) > 1 else "no scheduler"
        raise ValueError(f"{type(pipe).__name__} has {has}; allowed: a pipeline with a scheduler and one transformer")
    return found[0]


def _check(transformer: nn.Module, config: DeltaCacheConfig) -> None:
    name = type(transformer).__name__
    blocks = blocks_of(transformer)
    for hook in _hooks(*transformer.modules()):
        if isinstance(hook, DeltaRootHook):
            raise ValueError(f"{name} already has a delta cache; disable it first")
        if hook._is_stateful:  # as all of diffusers' caches are
            raise ValueError(f"{name} already has a cache, {type(hook).__name__}; disable it first")
        if getattr(hook, "group", None) is not None and hook.group.stream is not None:
            # it loads the block that came next at the first call, and lets go of hooks above its own
            raise ValueError(f"{name} is offloaded with streams; enable the delta cache first, or use_stream=False")
    for hook in _hooks(*(block.module for block in blocks)):
        if getattr(hook, "group", None) is not None and len(hook.group.modules) > 1:
            # the first block loads the others, and may be skipped
            raise ValueError(f"{name} is offloaded in groups of several blocks; enable the delta cache first")
    if config.plan is not None and config.plan.blocks != len(blocks):
        raise ValueError(f"the plan is for {config.plan.blocks} blocks and {name} has {len(blocks)}")
    if config.num_inference_steps is not None:
        config.plan_for(config.num_inference_steps, len(blocks))


def _attach(transformer: Any, config: DeltaCacheConfig, pipeline: Any | None) -> None:
    blocks = blocks_of(transformer)
    caches = PerThread(config, blocks, pipeline)
    add_hook(transformer, DeltaRootHook(caches, transformer), ROOT_HOOK)
    for index, block in enumerate(blocks):
        add_hook(block.module, DeltaBlockHook(caches, index, block), BLOCK_HOOK)
    transformer._cache_config = config  # diffusers' own enable_cache then refuses a second cache
    _forget_registries(transformer)


def _hooks(*modules: nn.Module) -> Iterator[Any]:
    for module in modules:
        registry: Any = getattr(module, "_diffusers_hook", None)
        if registry is not None:
            yield from registry.hooks.values()


def _hook(module: nn.Module, name: str) -> Any | None:
    registry = getattr(module, "_diffusers_hook", None)
    return None if registry is None else registry.get_hook(name)


def add_hook(module: nn.Module, hook: ModelHook, name: str) -> None:
    """Put a hook on a module, on the outside of those that are there."""
    with _below_accelerate(module):
        HookRegistry.check_if_exists_or_initialize(module).register_hook(hook, name)


def remove_hook(module: Any, name: str) -> None:
    """Remove one hook, also from under others.

    diffusers 0.42 repairs the chain above a removed hook as if the next hook had no ``new_forward``: that hook would
    silently stop working. Hand it the inner forward as what it is, its original.
    """
    registry = getattr(module, "_diffusers_hook", None)
    if registry is None:
        return
    if name in registry.hooks:
        above = registry._hook_order.index(name) + 1
        outer = registry._fn_refs[above] if above < len(registry._fn_refs) else None
        own_forward = None if outer is None else outer.forward
        with _below_accelerate(module):
            registry.remove_hook(name, recurse=False)
        if outer is not None and outer.original_forward is not None:
            outer.original_forward, outer.forward = outer.forward, own_forward
    if not registry.hooks:
        del module._diffusers_hook
        if vars(module).get("forward") == type(module).forward.__get__(module):
            del module.forward  # diffusers leaves the class's own forward behind as an attribute of the instance


@contextmanager
def _below_accelerate(module: Any) -> Iterator[None]:
    """Work on the forward that accelerate's offloading wraps.

    A pipeline takes that offloading off and puts it on again after every generation, and would drop what lies above.
    """
    if not hasattr(module, "_old_forward"):
        yield
        return
    wrapper, module.forward = module.forward, module._old_forward
    try:
        yield
    finally:
        module._old_forward, module.forward = module.forward, wrapper


def _forget_registries(transformer: Any) -> None:
    """Let diffusers look for hooks again: it remembers a list from before ours came or went."""
    if hasattr(transformer, "_diffusers_hook"):
        transformer._diffusers_hook.invalidate_child_registries_cache()
