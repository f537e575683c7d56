"""A run from its middle: what the transformer gave in the first steps is given again, without running it.

Whoever changes one step of a run needs only what comes after. A pipeline always begins at its first step; with the
outputs of an earlier run of the same inputs, its loop comes to the step to be changed at no cost, and with the same
bits.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.hooks import ModelHook
from torch import nn

from delta_dit.adapters import adapter_for, argument_reader
from delta_dit.attach import led_transformers
from delta_dit.clock import SchedulerClock
from delta_dit.hook_chain import add_hook, remove_hook

HOOK = "delta_cache_replay"

Outputs = list[tuple[int, Any]]
"""What the transformers gave in a run, in the order of their calls; each with its step, where the run's first is 0."""


class Replay:
    """What is known of a run, and what is kept of it: of all the pipeline's transformers together."""

    def __init__(self, pipe: Any, known: Outputs, first: int) -> None:
        self.clock = SchedulerClock(pipe)
        self.given = [output for step, output in known if step < first]
        self.kept: Outputs = [call for call in known if call[0] < first]
        self.calls = 0
        self.begin: int | None = None

    def step_of(self, timestep: Any) -> int:
        """Return the step of the call that is about to happen."""
        step = self.clock.known_step(timestep)
        self.begin = step if self.begin is None else self.begin
        return step - self.begin


class ReplayHook(ModelHook):
    """Gives what is known of the run's first steps, runs the transformer in the others, and keeps what it gives."""

    fn_ref: Any

    def __init__(self, replay: Replay, transformer: nn.Module) -> None:
        super().__init__()
        self.replay = replay
        self.timestep = argument_reader(transformer, adapter_for(transformer).timestep)

    @torch.compiler.disable
    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Give, or run and keep."""
        replay = self.replay
        step = replay.step_of(self.timestep(args, kwargs))
        replay.calls += 1
        if replay.calls <= len(replay.given):
            return replay.given[replay.calls - 1]
        output = self.fn_ref.original_forward(*args, **kwargs)
        replay.kept.append((step, output))
        return output


@contextmanager
def replaying(pipe: Any, known: Outputs | None = None, first: int = 0) -> Iterator[Outputs]:
    """Draw one run with a pipeline from step ``first`` on; its images are those of the whole run.

    A cache that is to take part is enabled before, so that it does not see the calls that are not made.

    Args:
        pipe: the pipeline.
        known: what the transformers gave in a run of the same inputs that is the same in the steps before ``first``.
        first: the first step that is run.

    Yields:
        What the transformers gave in this run, filled while it is drawn; to be given as ``known`` to another.
    """
    transformers = led_transformers(pipe)
    replay = Replay(pipe, known or [], first)
    try:
        for transformer in transformers:
            add_hook(transformer, ReplayHook(replay, transformer), HOOK)
        yield replay.kept
    finally:
        for transformer in transformers:
            remove_hook(transformer, HOOK)
