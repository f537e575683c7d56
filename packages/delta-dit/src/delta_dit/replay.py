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

from delta_dit.adapters import adapter_for, argument_reader
from delta_dit.attach import sole_transformer
from delta_dit.clock import SchedulerClock
from delta_dit.hook_chain import add_hook, remove_hook

HOOK = "delta_cache_replay"

Outputs = list[tuple[int, Any]]
"""What the transformer gave in a run, in the order of its calls, each with its step."""


class ReplayHook(ModelHook):
    """Gives what is known of the run's first steps, runs the transformer in the others, and keeps what it gives."""

    fn_ref: Any

    def __init__(self, pipe: Any, known: Outputs, first: int) -> None:
        super().__init__()
        self.clock = SchedulerClock(pipe)
        self.timestep = argument_reader(pipe.transformer, adapter_for(pipe.transformer).timestep)
        self.given = [output for step, output in known if step < first]
        self.kept: Outputs = [call for call in known if call[0] < first]
        self.calls = 0

    @torch.compiler.disable
    def new_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Give, or run and keep."""
        step = self.clock.known_step(self.timestep(args, kwargs))
        self.calls += 1
        if self.calls <= len(self.given):
            return self.given[self.calls - 1]
        output = self.fn_ref.original_forward(*args, **kwargs)
        self.kept.append((step, output))
        return output


@contextmanager
def replaying(pipe: Any, known: Outputs | None = None, first: int = 0) -> Iterator[Outputs]:
    """Draw one run with a pipeline from step ``first`` on; its images are those of the whole run.

    A cache that is to take part is enabled before, so that it does not see the calls that are not made.

    Args:
        pipe: the pipeline, of one transformer.
        known: what the transformer gave in a run of the same inputs that is the same in the steps before ``first``.
        first: the first step that is run.

    Yields:
        What the transformer gave in this run, filled while it is drawn; to be given as ``known`` to another.
    """
    transformer: Any = sole_transformer(pipe)
    hook = ReplayHook(pipe, known or [], first)
    add_hook(transformer, hook, HOOK)
    try:
        yield hook.kept
    finally:
        remove_hook(transformer, HOOK)
