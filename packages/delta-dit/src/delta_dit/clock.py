"""Where in a sampling run a transformer call stands: which run, and which step of it.

Diffusers does not tell a transformer which step it is at. The scheduler knows, as a plain integer, so that reading it
neither stalls a GPU nor changes anything; schedulers without a counter, and transformers without a scheduler, are read
off the timestep.
"""

import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch

from delta_dit.noise import log_snr, log_snr_of_levels

MOST_TIMESTEPS = 3
"""How many timesteps the calls of one step may have: a model may be called for known frames, too."""


class Position(NamedTuple):
    """A step of a run. Runs are numbered, so that the start of a new one cannot be missed."""

    run: int
    step: int


class Clock(Protocol):
    """Tells the position of each transformer call."""

    @property
    def steps(self) -> int:
        """T: at how many timesteps a run calls the transformer. Two-call solvers (Heun, KDPM2) count both."""
        ...

    @property
    def levels(self) -> Sequence[float] | None:
        """Noise level of each step in [0, 1], 1 = pure noise, if known."""
        ...

    @property
    def ratios(self) -> Sequence[float] | None:
        """λ of each step (:mod:`delta_dit.noise`), if known."""
        ...

    def tick(self, timestep: Any) -> Position | None:
        """Return the position of the call that is about to happen, or None if it cannot be known."""
        ...

    def restart(self) -> None:
        """Take the next call for the first of a new run."""
        ...


class SchedulerClock:
    """Reads the scheduler that a pipeline has at the moment: users swap it."""

    def __init__(self, pipeline: Any) -> None:
        self.pipeline = weakref.ref(pipeline)  # the pipeline holds the transformer, which holds this clock
        self.scheduler = pipeline.scheduler
        self.run = -1
        self.restart()

    @property
    def steps(self) -> int:
        """See :class:`Clock`."""
        return len(self.levels)

    @property
    def ratios(self) -> Sequence[float] | None:
        """See :class:`Clock`."""
        return log_snr(self.scheduler, self.values.tolist()).tolist()

    def restart(self) -> None:
        """See :class:`Clock`."""
        self.timesteps: torch.Tensor | None = None
        self.values = torch.empty(0)
        self.levels: list[float] = []
        self.step = 0
        self.seen: list[float] = []

    def tick(self, timestep: Any) -> Position | None:
        """See :class:`Clock`."""
        pipeline = self.pipeline()
        if pipeline is not None:
            self.scheduler = pipeline.scheduler
        if self.scheduler.timesteps is not self.timesteps:  # every run begins with set_timesteps: a new tensor
            self._begin()
        step = self._step(timestep)
        if step is None or not 0 <= step < self.steps or self._is_idle(step, timestep):
            return None
        self.run += step < self.step  # a loop that does not set its timesteps anew
        self.step = step
        return Position(self.run, step)

    def known_step(self, timestep: Any) -> int:
        """Return the step of the call that is about to happen.

        Raises:
            ValueError: the scheduler does not tell.
        """
        position = self.tick(timestep)
        if position is None:
            raise ValueError(f"{type(self.scheduler).__name__} does not tell its steps; allowed: another one")
        return position.step

    def _begin(self) -> None:
        self.timesteps = self.scheduler.timesteps
        training_steps = self.scheduler.config.get("num_train_timesteps", 1000)
        self.values = torch.empty(0) if self.timesteps is None else self.timesteps.cpu()
        self.levels = [float(t) / training_steps for t in self.values]
        if self.levels and self.levels[0] < self.levels[-1]:  # invert_sigmas: 1 is the image
            self.levels = [1 - level for level in self.levels]
        self.step = 0
        self.seen = []
        self.run += 1

    def _step(self, timestep: Any) -> int | None:
        counts = hasattr(self.scheduler, "step_index")
        # before the first step of a run there is at most a beginning: image-to-image enters the schedule late
        counter = self.scheduler.step_index if counts else None
        if counter is None:
            counter = getattr(self.scheduler, "begin_index", None)
        if counter is not None:
            return int(counter)
        found = self._find(timestep)
        # a model may have a timestep of its own unit, in [0, 1]: in no schedule, or by chance its last
        return 0 if counts and found in (None, self.steps - 1) else found

    def _is_idle(self, step: int, timestep: Any) -> bool:
        """Return whether another scheduler drives the transformer, so that this one does not move.

        It was never set up, or its counter stands still while the timesteps go on. They are read where that takes no
        waiting for a GPU.
        """
        if getattr(self.scheduler, "num_inference_steps", 0) is None:
            return True
        if step != self.step:
            self.seen = []
        if isinstance(timestep, torch.Tensor) and timestep.device.type == "cpu" and timestep.numel():
            value = float(timestep.max())
            self.seen += [value] if value not in self.seen else []
        return hasattr(self.scheduler, "step_index") and len(self.seen) > MOST_TIMESTEPS

    def _find(self, timestep: Any) -> int | None:
        """Return the first step with this timestep: DDIM and DDPM keep no counter."""
        if timestep is None:
            return None
        value = torch.as_tensor(timestep).max().cpu()  # pipelines may round it to the model's dtype
        found = (self.values.to(value.dtype) == value).nonzero()
        return int(found[0]) if len(found) else None


class TimestepClock:
    """Counts the distinct timesteps that a bare transformer is given, each a step; a turn of direction is a new run.

    A run that breaks off and is followed by one that begins at a lower noise level cannot be told from a run that goes
    on: enable the cache anew between them, or on a pipeline.
    """

    levels: Sequence[float] | None = None
    ratios: Sequence[float] | None = None

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.run = -1
        self.restart()

    def restart(self) -> None:
        """See :class:`Clock`."""
        self.value: float | None = None
        self.direction = 0
        self.step = 0

    def tick(self, timestep: Any) -> Position | None:
        """See :class:`Clock`."""
        if timestep is None:
            return None
        # the largest: some video models give tokens of known frames the timestep 0
        value, before = float(torch.as_tensor(timestep).max()), self.value
        if before is None or (value != before and not self._goes_on(value - before)):
            self.restart()
            self.run += 1
        elif value != before:
            self.direction = 1 if value > before else -1
            self.step += 1
        self.value = value
        return Position(self.run, self.step)

    def _goes_on(self, change: float) -> bool:
        return self.direction * change >= 0 and self.step + 1 < self.steps


class RequestClock(TimestepClock):
    """Counts the steps of one request, or is told them by the loop that serves it.

    Args:
        steps: T.
        levels: noise level of each step in [0, 1], 1 = pure noise, if known.
    """

    def __init__(self, steps: int, levels: Sequence[float] | None = None) -> None:
        super().__init__(steps)
        self.levels = levels
        self.ratios = None if levels is None else log_snr_of_levels(levels).tolist()
        self.told: int | None = None

    def tick(self, timestep: Any) -> Position | None:
        """See :class:`Clock`."""
        if self.told is None:
            return super().tick(timestep)
        self.run += self.run < 0 or self.told < self.step  # a request that is served again from its beginning
        self.step = self.told
        return Position(self.run, self.step)
