"""What it takes to put somebody else's cache on a pipeline, and to take it off again.

Each is put on a copy of the transformer that shares the weights and is thrown away afterwards, so that nothing has to
be taken off.
"""

import copy
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from delta_dit.adapters import adapter_for, argument_reader
from delta_dit.clock import Position, SchedulerClock
from delta_dit.commands.models import Sampler

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


Option = Setting | Dial
Peer = Callable[[Sampler, int, float], list[Option]]
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
