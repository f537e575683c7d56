"""Other people's caches, put on the same model, so that Δ-DiT can be compared with them.

- the naive feature cache of the paper's §3: the range's *output* is kept, where Δ-DiT keeps what the range adds;
- diffusers' FirstBlockCache, TaylorSeer and MagCache;
- cache-dit's DBCache, if cache-dit is installed.

Each is put on a copy of the transformer that shares the weights and is thrown away afterwards, so that nothing has to
be taken off. What they need beyond their documentation is done for them here: the pipelines of DiT and PixArt open no
cache context and reset nothing between two generations, TaylorSeer's default names match no module of these models,
and cache-dit, put on a bare transformer, notices a new generation one call late.
"""

import ast
import copy
import functools
import io
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from importlib import import_module
from itertools import product
from typing import Any

from diffusers import CacheMixin
from diffusers.hooks import (
    FirstBlockCacheConfig,
    HookRegistry,
    MagCacheConfig,
    TaylorSeerCacheConfig,
    apply_first_block_cache,
    apply_mag_cache,
    apply_taylorseer_cache,
)
from torch import nn

from delta_dit.adapters import adapter_for, argument_reader, blocks_of
from delta_dit.clock import Position, SchedulerClock
from delta_dit.commands.models import Sampler
from delta_dit.config import DeltaCacheConfig
from delta_dit.delta_plan import DeltaPlan, Full, Range, Reuse

TUNING_SEED = 2000  # of the samples that settings are compared on; none of the comparison's own

Attach = Callable[[Any, int], None]
"""Puts a cache on a pipeline, for runs of so many steps."""


@dataclass(frozen=True)
class Setting:
    """One way to set up a cache."""

    knobs: dict[str, Any]
    attach: Attach


@dataclass(frozen=True)
class Dial:
    """A cache whose cost falls as one number of it rises."""

    setting: Callable[[float], Setting]
    low: float = 0.002
    high: float = 4.0


Peer = Callable[[Sampler, int, float], list[Setting | Dial]]
"""What to try on a sampler at so many steps for about this speed-up, the most promising first."""


@contextmanager
def on_copy(pipe: Any) -> Iterator[None]:
    """Give a pipeline a copy of its transformer for a while: other modules, the same weights."""
    original = pipe.transformer
    shared = {id(tensor): tensor for tensor in (*original.parameters(), *original.buffers())}
    pipe.transformer = copy.deepcopy(original, shared)
    try:
        yield
    finally:
        pipe.transformer = original


def watch(pipe: Any, before: Callable[[Position, int], None]) -> None:
    """Call ``before(position, branch)`` ahead of every transformer call; branches are the calls within one step."""
    transformer = pipe.transformer
    read = argument_reader(transformer, adapter_for(transformer).timestep)
    clock, forward = SchedulerClock(pipe), transformer.forward
    position, branch = None, 0

    @functools.wraps(forward)
    def watched(*args: Any, **kwargs: Any) -> Any:
        nonlocal position, branch
        now = clock.tick(read(args, kwargs))
        if now is None:
            raise ValueError("the scheduler does not know the step")
        branch = branch + 1 if now == position else 0
        position = now
        before(now, branch)
        return forward(*args, **kwargs)

    transformer.forward = watched


# ------------------------------------------------------------------------------------------- the naive feature cache


def naive_feature_cache(config: DeltaCacheConfig) -> Setting:
    """Return the cache that keeps the output of each range that ``config`` reuses, instead of its Δ."""

    def attach(pipe: Any, steps: int) -> None:
        FeatureCache(config.plan_for(steps, len(blocks_of(pipe.transformer)))).attach(pipe)

    return Setting({}, attach)


@dataclass
class FeatureCache:
    """Keeps block outputs at the full steps of a plan, and returns them at its reuse steps.

    Raises:
        ValueError: when attached, if a range spans stacks whose blocks return different things.
    """

    plan: DeltaPlan
    outputs: dict[tuple[int, Range], Any] = field(default_factory=dict)
    run: int = -1
    step: int = 0
    branch: int = 0

    def attach(self, pipe: Any) -> None:
        """Wrap the blocks of a pipeline's transformer."""
        blocks = blocks_of(pipe.transformer)
        for start, stop in {action.range for action in self.plan.actions if isinstance(action, Reuse)}:
            if any(block.opens_piece for block in blocks[start + 1 : stop]):
                raise ValueError(f"blocks [{start}, {stop}) return different things; one output cannot replace them")
        for index, block in enumerate(blocks):
            self._wrap(block.module, index)
        watch(pipe, self._begin)

    def _begin(self, position: Position, branch: int) -> None:
        if position.run != self.run:
            self.outputs.clear()
        self.run, self.step, self.branch = *position, branch

    def _wrap(self, block: nn.Module, index: int) -> None:
        forward = block.forward

        @functools.wraps(forward)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            action = self.plan.actions[self.step]
            if isinstance(action, Reuse) and action.start <= index < action.stop:
                return self.outputs[self.branch, action.range]
            output = forward(*args, **kwargs)
            if isinstance(action, Full):
                self.outputs |= {(self.branch, kept): output for kept in action.records if kept[1] == index + 1}
            return output

        block.forward = wrapped


# ------------------------------------------------------------------------------------------------------- diffusers


def _open_contexts(pipe: Any) -> None:
    """Open a cache context around each call, one per branch, and reset the hooks when a generation begins."""
    transformer = pipe.transformer
    registry = HookRegistry.check_if_exists_or_initialize(transformer)
    run, name, forward = -1, "", transformer.forward

    def before(position: Position, branch: int) -> None:
        nonlocal run, name
        if position.run != run:
            registry.reset_stateful_hooks()
        run, name = position.run, f"call-{branch}"

    @functools.wraps(forward)
    def in_context(*args: Any, **kwargs: Any) -> Any:
        with CacheMixin.cache_context(transformer, name):
            return forward(*args, **kwargs)

    transformer.forward = in_context
    watch(pipe, before)


def first_block_cache(sampler: Sampler, steps: int, speedup: float) -> list[Setting | Dial]:
    """Return diffusers' FirstBlockCache: skip while the first block's residual changes little."""

    def setting(threshold: float) -> Setting:
        def attach(pipe: Any, steps: int) -> None:
            apply_first_block_cache(pipe.transformer, FirstBlockCacheConfig(threshold))
            _open_contexts(pipe)

        return Setting({"threshold": threshold}, attach)

    return [Dial(setting)]


def taylorseer(sampler: Sampler, steps: int, speedup: float) -> list[Setting | Dial]:
    """Return diffusers' TaylorSeer: full steps at an interval, between them module outputs are extrapolated.

    How many steps are full decides the cost: all intervals, starts and ends that come close to the speed-up are tried,
    with attention and MLP predicted, as its paper does, or whole blocks at once.
    """
    names = sorted({name.split(".")[0] for name, _ in sampler.pipe.transformer.named_modules() if _is_block(name)})
    modules = {"attention, MLP": r"\.\d+\.(.*attn\d*|ff|mlp)", "blocks": r"\.\d+"}

    def setting(interval: int, start: int, end: int | None, order: int, kind: str) -> Setting:
        def attach(pipe: Any, steps: int) -> None:
            config = TaylorSeerCacheConfig(
                cache_interval=interval,
                disable_cache_before_step=start,
                disable_cache_after_step=end,
                max_order=order,
                taylor_factors_dtype=pipe.transformer.dtype,
                cache_identifiers=[name + modules[kind] for name in names],
            )
            apply_taylorseer_cache(pipe.transformer, config)
            _open_contexts(pipe)

        return Setting({"interval": interval, "from": start, "to": end, "order": order, "of": kind}, attach)

    kinds = [(1, "attention, MLP"), (1, "blocks"), (0, "attention, MLP"), (2, "attention, MLP")]
    return [setting(*schedule, *kind) for schedule in _taylorseer_schedules(steps, speedup) for kind in kinds]


def _is_block(name: str) -> bool:
    stack, _, number = name.partition(".")
    return stack.endswith(("blocks", "layers")) and number.isdigit()


def _taylorseer_schedules(steps: int, speedup: float) -> list[tuple[int, int, int | None]]:
    """Return ``(interval, first step, end)`` that differ and come close to the speed-up, the shortest gaps first."""
    wanted = round(steps / speedup)
    schedules: dict[str, tuple[int, int, int | None]] = {}
    for interval, start, end in product(range(2, 7), range(1, steps), [None, *range(steps // 2, steps)]):
        full = [step < start or (step - start - 1) % interval == 0 or step >= (end or steps) for step in range(steps)]
        if wanted - 1 <= sum(full) <= min(wanted, steps - 1):
            schedules.setdefault("".join("F" if each else "." for each in full), (interval, start, end))
    # of schedules alike in their longest gap, neighbours in this list are to differ: every fifth, then the ones between
    order = sorted(schedules, key=lambda full: (max(map(len, full.split("F"))), full))
    return [schedules[full] for offset in range(5) for full in order[offset::5]]


def mag_cache(sampler: Sampler, steps: int, speedup: float) -> list[Setting | Dial]:
    """Return diffusers' MagCache: skip while the predicted change of the residual's magnitude stays small.

    Its calibration is a run that prints the magnitudes' ratios, to be copied by hand.
    """
    printed = io.StringIO()
    with on_copy(sampler.pipe), redirect_stdout(printed):
        apply_mag_cache(sampler.pipe.transformer, MagCacheConfig(calibrate=True, num_inference_steps=steps))
        _open_contexts(sampler.pipe)
        sampler.draw(TUNING_SEED, range(1), steps=steps)
    ratios = ast.literal_eval(next(line for line in printed.getvalue().splitlines() if line.startswith("[1")))

    def dial(retention: float, longest: int) -> Dial:
        def setting(threshold: float) -> Setting:
            def attach(pipe: Any, steps: int) -> None:
                config = MagCacheConfig(threshold, longest, retention, steps, mag_ratios=ratios)
                apply_mag_cache(pipe.transformer, config)
                _open_contexts(pipe)

            return Setting({"threshold": threshold, "retention": retention, "longest": longest}, attach)

        return Dial(setting)

    return [dial(0.2, 3), dial(0.3, 1), dial(0.2, 2), dial(0.1, 1)]


# ------------------------------------------------------------------------------------------------------- cache-dit


def dbcache(sampler: Sampler, steps: int, speedup: float) -> list[Setting | Dial]:
    """Return cache-dit's DBCache: FirstBlockCache with more first and last blocks, a warm-up, and extrapolation.

    Raises:
        ImportError: cache-dit is not installed.
    """
    try:
        cache_dit = import_module("cache_dit")
    except ImportError as error:
        raise ImportError("cache-dit is not installed; install it with: pip install cache-dit") from error
    logging.getLogger("CACHE_DIT").setLevel(logging.WARNING)
    blocks = len(blocks_of(sampler.pipe.transformer))

    def dial(first: int, last: int, warm_up: int, extrapolate: bool) -> Dial:
        def setting(threshold: float) -> Setting:
            def attach(pipe: Any, steps: int) -> None:
                config = cache_dit.DBCacheConfig(
                    Fn_compute_blocks=first,
                    Bn_compute_blocks=last,
                    max_warmup_steps=warm_up,
                    residual_diff_threshold=threshold,
                    num_inference_steps=steps,
                )
                calibrator = cache_dit.TaylorSeerCalibratorConfig(taylorseer_order=1) if extrapolate else None
                cache_dit.enable_cache(pipe.transformer, cache_config=config, calibrator_config=calibrator)
                watch(pipe, _refresh(pipe.transformer, config, calibrator))

            knobs = {"F": first, "B": last, "warm_up": warm_up, "taylorseer": extrapolate, "threshold": threshold}
            return Setting(knobs, attach)

        return Dial(setting)

    def _refresh(transformer: nn.Module, config: Any, calibrator: Any) -> Callable[[Position, int], None]:
        run = -1

        def before(position: Position, branch: int) -> None:
            nonlocal run
            if position.run != run:
                cache_dit.refresh_context(transformer, cache_config=config, calibrator_config=calibrator)
            run = position.run

        return before

    early, half = max(1, steps // 4), max(1, blocks // 2)
    return [dial(1, 0, early, True), dial(1, 0, early, False), dial(half, 0, 1, False), dial(1, half // 2, early, True)]


PEERS: dict[str, Peer] = {
    "FirstBlockCache": first_block_cache,
    "TaylorSeer": taylorseer,
    "MagCache": mag_cache,
    "DBCache": dbcache,
}
