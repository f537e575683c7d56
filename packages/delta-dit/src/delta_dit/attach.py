"""Attach the Δ-cache to a diffusers pipeline or transformer, and take it off again without a trace.

To compile, compile the blocks first, so that the hooks stay outside the graphs; no step recompiles anything::

    for block in pipe.transformer.transformer_blocks:
        block.forward = torch.compile(block.forward)  # fullgraph=True and other modes work too
    delta_dit.enable_delta_cache(pipe)

``block.compile()``, ``compile_repeated_blocks()`` and ``torch.compile(transformer)`` work as well, before or after the
cache is enabled, but break the graph at every block; so ``fullgraph=True`` is not possible with them.

Before torch 2.10 every block is compiled anew, in part also without the cache, and after eight of them torch gives up:
for models of more blocks, set ``torch._dynamo.config.recompile_limit`` to twice their number.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, TypeVar

from torch import nn

from delta_dit.adapters import blocks_of
from delta_dit.caches import Caches
from delta_dit.config import DeltaCacheConfig
from delta_dit.copies import copy_as_usual, copy_without_hooks
from delta_dit.delta_plan import DeltaPlan
from delta_dit.hook_chain import add_hook, hook_of, remove_hook
from delta_dit.hooks import BLOCK_HOOK, ROOT_HOOK, DeltaBlockHook, DeltaRootHook, other_cache, survey
from delta_dit.identity import check_identity
from delta_dit.moved_steps import move_steps, restore_steps
from delta_dit.stats import DeltaCacheStats

# attributes of a pipeline: Wan 2.2 has two, and so has Ideogram 4; Kandinsky 2 has a prior
_TRANSFORMERS = ("transformer", "transformer_2", "unconditional_transformer", "prior")

Model = TypeVar("Model")


def enable_delta_cache(model: Model, config: DeltaCacheConfig | DeltaPlan | None = None) -> Model:
    """Put the Δ-cache on a pipeline's transformer(s), or on a bare transformer. Returns ``model``.

    Where there is one already, it stays if its config is the same, and follows this pipeline's scheduler from now on;
    it is replaced if not.

    Args:
        model: a ``DiffusionPipeline`` with a transformer, or such a transformer.
        config: what to do, or just the plan; default: the generic plan at 1.6×.

    Raises:
        ValueError: an unknown transformer, a plan that does not fit it, another kind of cache that is already there, or
            a bare transformer without ``num_inference_steps``. The model is then as it was.
    """
    config = config if isinstance(config, DeltaCacheConfig) else DeltaCacheConfig(plan=config)
    pipeline = None if getattr(model, "scheduler", None) is None else model
    transformers = transformers_of(model)
    before = _state_of(transformers)
    if pipeline is None and config.num_inference_steps is None:
        raise ValueError("num_inference_steps=None cannot be known from a bare transformer; allowed: 1 or more")
    for transformer in transformers:
        _check(transformer, config)
    _space(model, config.plan)
    try:
        for transformer in transformers:
            _enable(transformer, config, pipeline, shares_runs=len(transformers) > 1)
    except BaseException:
        _restore(model, before)
        raise
    return model


def disable_delta_cache(model: Model) -> Model:
    """Take the Δ-cache off again; a model without one is left alone. Returns ``model``."""
    for transformer in transformers_of(model):
        _detach(transformer)
    _space(model, None)
    return model


def delta_cache_stats(model: Any) -> DeltaCacheStats:
    """Return what the cache has done so far: in all threads, summed over a pipeline's transformers.

    Raises:
        ValueError: no cache is enabled.
    """
    return sum((caches.stats for caches in caches_of(model)), DeltaCacheStats())


@contextmanager
def delta_cache(model: Model, config: DeltaCacheConfig | DeltaPlan | None = None) -> Iterator[Model]:
    """Enable the Δ-cache in a ``with`` block (see :func:`enable_delta_cache`); one from before is back after it."""
    before = _state_of(transformers_of(model))
    enable_delta_cache(model, config)
    try:
        yield model
    finally:
        _restore(model, before)


@contextmanager
def uncached(model: Model) -> Iterator[Model]:
    """Take the Δ-cache off in a ``with`` block, if there is one; it is back after it."""
    before = _state_of(transformers_of(model))
    disable_delta_cache(model)
    try:
        yield model
    finally:
        _restore(model, before)


@contextmanager
def delta_cache_request(
    model: Any,
    name: str,
    *,
    steps: int | None = None,
    sigmas: Sequence[float] | None = None,
    step: int | None = None,
) -> Iterator[None]:
    """Tell the cache that the calls in this ``with`` block belong to the request ``name``: for a server's own loop.

    Each request has Δs of its own, so requests may take turns, in one thread or in several. All calls of a step belong
    into one block. With its last step a request is forgotten; one that is dropped before is told to
    :func:`end_delta_cache_request`.

    Args:
        model: a transformer with a cache, or its pipeline.
        name: of the request.
        steps: T of the request, if ``sigmas`` are not known.
        sigmas: noise level of each step, 1 = pure noise, as flow matching has them; a 0 at the end is no step.
            Calibrated plans are carried over to them.
        step: which step this is, from 0; default: each new timestep is the next one, for which it has to be read.

    Raises:
        ValueError: no cache is enabled; neither steps nor sigmas are known, or both; a step that the request has not.
    """
    if (steps is None) == (sigmas is None):
        raise ValueError(f"steps={steps!r} and sigmas={sigmas!r}; allowed: one of them")
    levels = None
    if sigmas is not None:
        levels = [float(sigma) for sigma in sigmas]
        levels = levels[:-1] if levels and levels[-1] == 0 else levels
        if not all(0 <= level <= 1 for level in levels):
            raise ValueError(f"sigmas={sigmas!r} are no noise levels; allowed: from 0 to 1")
    count = len(levels) if levels is not None else steps or 0
    if count < 1 or not (step is None or 0 <= step < count):
        raise ValueError(f"step={step!r} of {count} steps is not possible; allowed: 1 or more steps, counted from 0")
    with ExitStack() as stack:
        for caches in caches_of(model):
            stack.enter_context(caches.request(name, count, levels, step))
        yield


def end_delta_cache_request(model: Any, name: str) -> None:
    """Let go of a request that did not come to its last step; one that is not known is no fault."""
    for caches in caches_of(model):
        caches.end_request(name)


def caches_of(model: Any) -> list[Caches]:
    """Return the caches of a model's transformers.

    Raises:
        ValueError: there are none.
    """
    found = [caches for transformer in transformers_of(model) if (caches := _caches(transformer)) is not None]
    if not found:
        raise ValueError(f"no delta cache is enabled on {type(model).__name__}")
    return found


def transformers_of(model: Any) -> list[nn.Module]:
    """Return a pipeline's transformers, or the transformer itself.

    Raises:
        ValueError: there is none.
    """
    found = [model] if isinstance(model, nn.Module) else [getattr(model, name, None) for name in _TRANSFORMERS]
    # torch.compile(module) is a wrapper around the module
    transformers = [getattr(module, "_orig_mod", module) for module in found if isinstance(module, nn.Module)]
    transformers = list(dict.fromkeys(transformers))
    if not transformers:
        raise ValueError(f"{type(model).__name__} has no transformer; allowed: a diffusion transformer or its pipeline")
    return transformers


def led_transformers(pipe: Any) -> list[nn.Module]:
    """Return a pipeline's transformers, led by its scheduler: of any two, as many blocks are in each.

    Raises:
        ValueError: the pipeline has no scheduler, no transformer, or two of different depth.
    """
    found = transformers_of(pipe)
    if getattr(pipe, "scheduler", None) is None:
        raise ValueError(f"{type(pipe).__name__} has no scheduler; allowed: a pipeline with one")
    counts = [len(blocks_of(transformer)) for transformer in found]
    if len(set(counts)) > 1:
        each = " and ".join(map(str, counts))
        raise ValueError(f"{type(pipe).__name__} has transformers of {each} blocks; allowed: as many in each")
    return found


def _check(transformer: nn.Module, config: DeltaCacheConfig) -> None:
    name = type(transformer).__name__
    blocks = blocks_of(transformer)
    other = other_cache(transformer)
    if other is not None:
        raise ValueError(f"{name} already has a cache, {other}; disable it first")
    if config.plan is not None and config.plan.blocks != len(blocks):
        raise ValueError(f"the plan is for {config.plan.blocks} blocks and {name} has {len(blocks)}")
    if config.plan is not None:
        check_identity(transformer, config.plan.provenance, "plan")
    if config.num_inference_steps is not None:
        config.plan_for(config.num_inference_steps, len(blocks))


def _space(model: Any, plan: DeltaPlan | None) -> None:
    """Let a pipeline's scheduler take a plan's own steps, or else those that are its own."""
    scheduler = getattr(model, "scheduler", None)
    if scheduler is None:
        return
    if plan is None or plan.moved is None:
        restore_steps(scheduler)
    else:
        move_steps(scheduler, *plan.moved)


def _enable(transformer: nn.Module, config: DeltaCacheConfig, pipeline: Any | None, *, shares_runs: bool) -> None:
    caches = _caches(transformer)
    if caches is None or caches.config != config:
        _detach(transformer)
        look = partial(survey, transformer)
        name, blocks = type(transformer).__name__, blocks_of(transformer)
        _attach(transformer, Caches(config, name, blocks, pipeline, look, shares_runs))
    elif pipeline is not None and caches.pipeline is not pipeline:
        caches.follow(pipeline)


def _attach(transformer: Any, caches: Caches) -> None:
    add_hook(transformer, DeltaRootHook(caches, transformer), ROOT_HOOK)
    for index, block in enumerate(caches.blocks):
        add_hook(block.module, DeltaBlockHook(caches, index, block), BLOCK_HOOK)
    transformer._cache_config = caches.config  # diffusers' own enable_cache then refuses a second cache
    copy_without_hooks(transformer)
    _forget_registries(transformer)


def _detach(transformer: Any) -> None:
    for block in blocks_of(transformer):
        remove_hook(block.module, BLOCK_HOOK)
    remove_hook(transformer, ROOT_HOOK)
    if isinstance(getattr(transformer, "_cache_config", None), DeltaCacheConfig):
        del transformer._cache_config
    copy_as_usual(transformer)
    _forget_registries(transformer)


def _state_of(transformers: list[nn.Module]) -> list[tuple[nn.Module, Caches | None, Any]]:
    """Return each transformer's caches, and the pipeline that they follow."""
    found = [(transformer, _caches(transformer)) for transformer in transformers]
    return [(transformer, caches, None if caches is None else caches.pipeline) for transformer, caches in found]


def _restore(model: Any, before: list[tuple[nn.Module, Caches | None, Any]]) -> None:
    for transformer, caches, pipeline in before:
        if _caches(transformer) is not caches:
            _detach(transformer)
            if caches is not None:
                _attach(transformer, caches)
        if caches is not None and caches.pipeline is not pipeline:
            caches.follow(pipeline)
    _space(model, next((caches.config.plan for _, caches, _ in before if caches is not None), None))


def _caches(transformer: nn.Module) -> Caches | None:
    hook = hook_of(transformer, ROOT_HOOK)
    return None if hook is None else hook.caches


def _forget_registries(transformer: Any) -> None:
    """Let diffusers look for hooks again: it remembers a list from before ours came or went."""
    if hasattr(transformer, "_diffusers_hook"):
        transformer._diffusers_hook.invalidate_child_registries_cache()
