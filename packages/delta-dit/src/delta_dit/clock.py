"""Where in a sampling run a transformer call stands: which step, and which of the step's calls.

Diffusers does not tell a transformer which step it is at. The scheduler knows, as a plain integer, so that reading it
neither stalls a GPU nor changes anything; schedulers without a counter, and transformers without a scheduler, are read
off the timestep.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch


class Position(NamedTuple):
    """One transformer call.

    ``branch`` counts the calls within a step: separate classifier-free guidance makes two, each with Δs of its own.
    """

    step: int
    branch: int
    new_run: bool


class Clock(Protocol):
    """Tells the position of each transformer call."""

    steps: int
    levels: Sequence[float] | None

    def tick(self, timestep: Any) -> Position | None:
        """Return the position of the call that is about to happen, or None if it cannot be known."""
        ...


class SchedulerClock:
    """Reads a diffusers scheduler."""

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler
        self.timesteps: torch.Tensor | None = None
        self.levels: list[float] | None = None
        self.position = Position(-1, 0, True)

    @property
    def steps(self) -> int:
        """T: how often a run calls the transformer (per branch); two-call solvers count twice."""
        return 0 if self.timesteps is None else len(self.timesteps)

    def tick(self, timestep: Any) -> Position | None:
        """See :class:`Clock`."""
        # every run begins with set_timesteps, which makes a new tensor
        new_run = self.scheduler.timesteps is not self.timesteps
        if new_run:
            self._begin()
        step = self._step(timestep)
        if step is None or not 0 <= step < self.steps:
            return None
        last = self.position
        if new_run or step < last.step:
            self.position = Position(step, 0, True)
        else:
            self.position = Position(step, last.branch + 1 if step == last.step else 0, False)
        return self.position

    def _begin(self) -> None:
        self.timesteps = self.scheduler.timesteps
        training_steps = self.scheduler.config.get("num_train_timesteps", 1000)
        self.levels = [float(t) / training_steps for t in self.timesteps.cpu()]

    def _step(self, timestep: Any) -> int | None:
        counter = getattr(self.scheduler, "step_index", None)
        if counter is None:  # before the first step of a run
            counter = getattr(self.scheduler, "begin_index", None)
        if counter is not None:
            return int(counter)
        # DDIM and DDPM keep no counter, and image-to-image may begin anywhere: look the timestep up
        assert self.timesteps is not None
        found = (self.timesteps.cpu() == _value(timestep)).nonzero()
        return int(found[0]) if len(found) else None


class TimestepClock:
    """Counts the distinct timesteps that a bare transformer is given, each a step; a turn of direction is a new run."""

    levels = None

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.value: float | None = None
        self.direction = 0
        self.position = Position(-1, 0, True)

    def tick(self, timestep: Any) -> Position | None:
        """See :class:`Clock`."""
        value, before = _value(timestep), self.value
        self.value = value
        last = self.position
        if before is None:
            self.position = Position(0, 0, True)
        elif value == before:
            self.position = Position(last.step, last.branch + 1, False)
        else:
            direction = 1 if value > before else -1
            turned = self.direction not in (0, direction) or last.step + 1 >= self.steps
            self.direction = 0 if turned else direction
            self.position = Position(0, 0, True) if turned else Position(last.step + 1, 0, False)
        return self.position


def _value(timestep: Any) -> float:
    return float(timestep.flatten()[0]) if isinstance(timestep, torch.Tensor) else float(timestep)
