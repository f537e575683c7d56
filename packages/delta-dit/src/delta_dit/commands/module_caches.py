"""Caches of single modules, attention and MLP, whose reuse is decided beforehand from how much their outputs change.

Both are reconstructions from the papers' equations, for the comparison only:

* SmoothCache (arXiv 2411.10510): a kind of module is reused, in all blocks at once, while the L1 change of its outputs
  since they were last computed, averaged over blocks and samples, stays below a threshold.
* InvarDiff (arXiv 2512.05134): the same for every module by itself; without its second pass, which corrects for reuse
  many times in a row. Here no module is reused more than a few times in a row instead.
"""

import functools
import re
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from statistics import fmean
from typing import Any

from torch import Tensor

from delta_dit.clock import Position
from delta_dit.commands.foreign import TUNING_SEED, Dial, Option, Setting, on_copy, watch
from delta_dit.commands.models import Sampler

LONGEST = 4
"""How many times in a row a module is reused at most."""
SAMPLES = 8
"""What the changes are measured on."""
MODULES = re.compile(r"(?:^|\.)\w*(?:blocks|layers)\.\d+\.(\w*attn\d*|ff|mlp)$")

Changes = Mapping[str, Mapping[tuple[int, int], float]]
"""By module: the relative L1 change of its output from one step to another."""
Skips = set[tuple[int, str]]
"""Steps and modules that are reused."""
Run = Callable[[], Any]
"""Runs a module on what it was called with."""


def smooth_cache(sampler: Sampler, steps: int, speedup: float) -> list[Option]:
    """Return SmoothCache: a threshold for all modules of a kind together."""
    changes = measured(sampler, steps)
    kinds: dict[str, list[str]] = defaultdict(list)
    for name in changes:
        kinds[name.rpartition(".")[2]].append(name)
    together = {
        kind: {pair: fmean(changes[name][pair] for name in names) for pair in changes[names[0]]}
        for kind, names in kinds.items()
    }
    return [dial({name: together[kind] for kind, names in kinds.items() for name in names}, steps)]


def invar_diff(sampler: Sampler, steps: int, speedup: float) -> list[Option]:
    """Return InvarDiff: a threshold for every module by itself."""
    return [dial(measured(sampler, steps), steps)]


def dial(changes: Changes, steps: int) -> Dial:
    """Return the cache that reuses what changes by less than a threshold."""

    def setting(threshold: float) -> Setting:
        def attach(pipe: Any, steps: int) -> None:
            skipping(pipe, skips_of(changes, steps, threshold))

        return Setting({"threshold": threshold}, attach)

    return Dial(setting)


def skips_of(changes: Changes, steps: int, threshold: float) -> Skips:
    """Return where each module has changed by less than the threshold since it was last computed."""
    skips: Skips = set()
    for name, change in changes.items():
        computed = 0
        for step in range(1, steps):
            if step - computed <= LONGEST and change[computed, step] < threshold:
                skips.add((step, name))
            else:
                computed = step
    return skips


def measured(sampler: Sampler, steps: int) -> Changes:
    """Draw uncached, and return how much each module's output changes between steps."""
    found: dict[str, dict[tuple[int, int], list[float]]] = defaultdict(lambda: defaultdict(list))
    kept: dict[tuple[str, int], deque[tuple[int, Tensor]]] = defaultdict(lambda: deque(maxlen=LONGEST))

    def compare(name: str, step: int, branch: int, run: Run) -> Any:
        output = run()
        now = (output if isinstance(output, Tensor) else output[0]).float()
        for before, then in kept[name, branch]:
            found[name][before, step].append(((now - then).abs().mean() / then.abs().mean()).item())
        kept[name, branch].append((step, now))
        return output

    with on_copy(sampler.pipe):
        around_modules(sampler.pipe, compare)
        sampler.draw(TUNING_SEED, range(SAMPLES), steps=steps)
    return {name: {pair: fmean(values) for pair, values in pairs.items()} for name, pairs in found.items()}


def skipping(pipe: Any, skips: Skips) -> None:
    """Let modules return what they gave last, where ``skips`` has them."""
    kept: dict[tuple[str, int], Any] = {}

    def run_or_reuse(name: str, step: int, branch: int, run: Run) -> Any:
        if (step, name) not in skips:
            kept[name, branch] = run()
        return kept[name, branch]

    around_modules(pipe, run_or_reuse)


def around_modules(pipe: Any, call: Callable[[str, int, int, Run], Any]) -> None:
    """Let ``call(name, step, branch, run)`` stand in for every attention and MLP module, of a copy of a transformer."""
    step = branch = 0

    def begin(position: Position, of_step: int) -> None:
        nonlocal step, branch
        step, branch = position.step, of_step

    def wrap(name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        return functools.wraps(forward)(
            lambda *args, **kwargs: call(name, step, branch, lambda: forward(*args, **kwargs))
        )

    for name, module in pipe.transformer.named_modules():
        if MODULES.search(name):
            module.forward = wrap(name, module.forward)
    watch(pipe, begin)
