"""Other people's caches, put on the same model, so that Δ-DiT can be compared with them.

- diffusers' FirstBlockCache, TaylorSeer and MagCache;
- cache-dit's DBCache, and its mask of steps, if cache-dit is installed;
- what has no library: :mod:`delta_dit.commands.module_caches`.

What they need beyond their documentation is done for them here: the pipelines of DiT and PixArt open no cache context
and reset nothing between two generations, TaylorSeer's default names match no module of these models, and cache-dit,
put on a bare transformer, notices a new generation one call late.
"""

import ast
import functools
import io
import logging
from contextlib import redirect_stdout
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

from delta_dit.adapters import blocks_of
from delta_dit.clock import Position
from delta_dit.commands.foreign import TUNING_SEED, Attach, Dial, Option, Peer, Setting, on_copy, watch
from delta_dit.commands.models import Sampler
from delta_dit.commands.module_caches import invar_diff, smooth_cache

MASKS = ("slow", "medium", "fast", "ultra")
"""Of cache-dit, by name."""

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


def first_block_cache(sampler: Sampler, steps: int, speedup: float) -> list[Option]:
    """Return diffusers' FirstBlockCache: skip while the first block's residual changes little."""

    def setting(threshold: float) -> Setting:
        def attach(pipe: Any, steps: int) -> None:
            apply_first_block_cache(pipe.transformer, FirstBlockCacheConfig(threshold))
            _open_contexts(pipe)

        return Setting({"threshold": threshold}, attach)

    return [Dial(setting)]


def taylorseer(sampler: Sampler, steps: int, speedup: float) -> list[Option]:
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


def full_steps(steps: int, interval: int, start: int, end: int | None) -> list[bool]:
    """Return which steps TaylorSeer computes: all before ``start`` and from ``end`` on, between them at an interval."""
    return [step < start or (step - start - 1) % interval == 0 or step >= (end or steps) for step in range(steps)]


def _taylorseer_schedules(steps: int, speedup: float) -> list[tuple[int, int, int | None]]:
    """Return ``(interval, first step, end)`` that differ and come close to the speed-up, the shortest gaps first."""
    wanted = round(steps / speedup)
    schedules: dict[str, tuple[int, int, int | None]] = {}
    for interval, start, end in product(range(2, 7), range(1, steps), [None, *range(steps // 2, steps)]):
        full = full_steps(steps, interval, start, end)
        if wanted - 1 <= sum(full) <= min(wanted, steps - 1):
            schedules.setdefault("".join("F" if each else "." for each in full), (interval, start, end))
    # of schedules alike in their longest gap, neighbours in this list are to differ: every fifth, then the ones between
    order = sorted(schedules, key=lambda full: (max(map(len, full.split("F"))), full))
    return [schedules[full] for offset in range(5) for full in order[offset::5]]


def mag_cache(sampler: Sampler, steps: int, speedup: float) -> list[Option]:
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


def dbcache(sampler: Sampler, steps: int, speedup: float) -> list[Option]:
    """Return cache-dit's DBCache: FirstBlockCache with more first and last blocks, a warm-up, and extrapolation.

    Raises:
        ImportError: cache-dit is not installed.
    """
    blocks = len(blocks_of(sampler.pipe.transformer))

    def dial(first: int, last: int, warm_up: int, order: int) -> Dial:
        def setting(threshold: float) -> Setting:
            knobs = {"F": first, "B": last, "warm_up": warm_up, "taylorseer": order, "threshold": threshold}
            options = {
                "Fn_compute_blocks": first,
                "Bn_compute_blocks": last,
                "max_warmup_steps": warm_up,
                "residual_diff_threshold": threshold,
            }
            return Setting(knobs, cache_dit_with(order, options))

        return Dial(setting)

    early, half = max(1, steps // 4), max(1, blocks // 2)
    return [dial(1, 0, early, 1), dial(1, 0, early, 0), dial(half, 0, 1, 0), dial(1, half // 2, early, 1)]


def dbcache_mask(sampler: Sampler, steps: int, speedup: float) -> list[Option]:
    """Return cache-dit's mask of steps: which are computed is fixed, the others reuse all blocks but the first.

    Its own four masks come first, then those of TaylorSeer's kind that come close to the speed-up.

    Raises:
        ImportError: cache-dit is not installed.
    """
    cache_dit = library()
    named = {}
    if steps >= 8:  # cache-dit has none for fewer
        named = {name: cache_dit.steps_mask(total_steps=steps, mask_policy=name) for name in MASKS}
    near = {
        f"every {interval} from {start} to {end}": full_steps(steps, interval, start, end)
        for interval, start, end in _taylorseer_schedules(steps, speedup)
    }

    def setting(name: str, mask: list[int], order: int) -> Setting:
        options = {
            "Fn_compute_blocks": 1,
            "max_warmup_steps": 1,
            "residual_diff_threshold": 1e9,
            "steps_computation_mask": mask,
            "steps_computation_policy": "static",
        }
        return Setting({"mask": name, "taylorseer": order}, cache_dit_with(order, options))

    masks = {name: list(map(int, mask))[:steps] for name, mask in (named | near).items()}
    return [setting(name, mask, order) for name, mask in masks.items() for order in (1, 0)]


def library() -> Any:
    """Return cache-dit, told to be quiet.

    Raises:
        ImportError: it is not installed.
    """
    try:
        cache_dit = import_module("cache_dit")
    except ImportError as error:
        raise ImportError("cache-dit is not installed; install it with: pip install cache-dit") from error
    logging.getLogger("CACHE_DIT").setLevel(logging.WARNING)
    return cache_dit


def cache_dit_with(order: int, options: dict[str, Any]) -> Attach:
    """Return what puts cache-dit on a pipeline; of order 1 and more it extrapolates as TaylorSeer does."""
    cache_dit = library()

    def attach(pipe: Any, steps: int) -> None:
        config = cache_dit.DBCacheConfig(**options, num_inference_steps=steps)
        calibrator = cache_dit.TaylorSeerCalibratorConfig(taylorseer_order=order) if order else None
        cache_dit.enable_cache(pipe.transformer, cache_config=config, calibrator_config=calibrator)
        run = -1

        def refresh(position: Position, branch: int) -> None:
            nonlocal run
            if position.run != run:
                cache_dit.refresh_context(pipe.transformer, cache_config=config, calibrator_config=calibrator)
            run = position.run

        watch(pipe, refresh)

    return attach


PEERS: dict[str, Peer] = {
    "FirstBlockCache": first_block_cache,
    "TaylorSeer": taylorseer,
    "MagCache": mag_cache,
    "DBCache": dbcache,
    "DBCache-mask": dbcache_mask,
    "SmoothCache-like": smooth_cache,
    "InvarDiff-like": invar_diff,
}
