"""Steps moved to where they count: noise levels of a plan's own, in place of the scheduler's.

A solver's error per step follows the logarithm of the signal-to-noise ratio, λ, while most schedules are spaced evenly
in time: their last step then spans half of all of λ. :class:`Spacing` mixes both densities. What a plan gives to the
scheduler is what it takes from users, ``timesteps`` or ``sigmas``, so any shift of a flow-matching scheduler is applied
as ever.
"""

import functools
import inspect
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from delta_dit.delta_plan import Argument
from delta_dit.noise import NEAREST, log_snr, log_snr_of_levels

MOVES = "moves_steps_of_a_plan"  # marks the method that stands in for a scheduler's own
GRID = 1000  # levels that a density is known at


@dataclass(frozen=True)
class Spacing:
    """Where in the noise the steps of a run lie, for any number of steps.

    Args:
        argument: of the scheduler's ``set_timesteps`` that takes them.
        share: of the steps, evenly spaced in λ.
        quantiles: falling; a run of T steps has those at i / T of the whole.
    """

    argument: Argument
    share: float
    quantiles: tuple[float, ...]

    @classmethod
    def of(cls, scheduler: Any, share: float) -> "Spacing":
        """Return a mixture: a share of the steps evenly spaced in λ, the others in time, from the scheduler's first.

        Raises:
            ValueError: a share outside [0, 1], or a scheduler that takes no steps from outside.
        """
        if not 0 <= share <= 1:
            raise ValueError(f"share={share!r} is not possible; allowed: 0 to 1")
        argument = argument_of(scheduler)
        if argument is None:
            raise ValueError(f"{type(scheduler).__name__} takes no steps from outside; allowed: its own steps")
        if argument == "timesteps":
            values = np.arange(len(scheduler.alphas_cumprod))
            ratio = log_snr(scheduler, values.tolist())
            last = scheduler.config.get("lambda_min_clipped", -math.inf)
            values, ratio = values[ratio >= last], ratio[ratio >= last]
        else:
            values = np.linspace(NEAREST, 1, GRID)
            ratio = log_snr_of_levels(values)
        density = np.abs(np.gradient(ratio))
        both = (1 - share) / len(values) + share * density / density.sum()
        # from the noisiest level downwards
        passed = np.concatenate([[0.0], np.cumsum(both[::-1])])[:-1]
        return cls(
            argument, share, tuple(np.interp(np.linspace(0, 1, GRID + 1), passed, values[::-1]).round(6).tolist())
        )

    def values(self, steps: int) -> tuple[float, ...]:
        """Return the levels of a run of so many steps, falling."""
        found = np.interp(np.arange(steps) / steps, np.linspace(0, 1, len(self.quantiles)), self.quantiles)
        if self.argument == "timesteps":  # whole numbers, none of them twice
            found = np.maximum(found.round(), np.arange(steps)[::-1])
            for i in range(1, steps):
                found[i] = min(found[i], found[i - 1] - 1)
        return tuple(found.tolist())


def argument_of(scheduler: Any) -> Argument | None:
    """Return the argument by which a scheduler takes steps from outside, None if it does not."""
    takes = inspect.signature(scheduler.set_timesteps).parameters
    if "timesteps" in takes and hasattr(scheduler, "alphas_cumprod"):
        return "timesteps"
    return "sigmas" if "sigmas" in takes else None


def move_steps(scheduler: Any, argument: Argument, values: Iterable[float]) -> None:
    """Let a scheduler take these steps whenever it is asked for as many, unless it is given some.

    Raises:
        ValueError: it does not take them.
    """
    if argument_of(scheduler) != argument:
        raise ValueError(
            f"{type(scheduler).__name__} takes no {argument}, as the plan has; allowed: {argument_of(scheduler)}"
        )
    moved, plain = list(values), type(scheduler).set_timesteps.__get__(scheduler)
    given: Any = [int(value) for value in moved] if argument == "timesteps" else moved

    @functools.wraps(plain)  # pipelines look at its signature
    def set_timesteps(num_inference_steps: int | None = None, device: Any = None, **options: Any) -> Any:
        steps = options.get("sigmas")
        count = num_inference_steps if steps is None else len(steps)
        even = steps is None or np.allclose(steps, np.linspace(1, 1 / len(steps), len(steps)), atol=1e-3)
        if count != len(moved) or not even or options.get("timesteps") is not None:
            return plain(num_inference_steps, device, **options)
        return plain(device=device, **options | {argument: given})

    setattr(set_timesteps, MOVES, True)
    scheduler.set_timesteps = set_timesteps


def restore_steps(scheduler: Any) -> None:
    """Undo :func:`move_steps`; a scheduler that is as it was is left alone."""
    if hasattr(vars(scheduler).get("set_timesteps"), MOVES):
        del scheduler.set_timesteps


@contextmanager
def moved(scheduler: Any, argument: Argument | None, values: Iterable[float]) -> Iterator[None]:
    """Let a scheduler take these steps in a ``with`` block; its own if there is no argument."""
    if argument is None:
        yield
        return
    move_steps(scheduler, argument, values)
    try:
        yield
    finally:
        restore_steps(scheduler)


def improve_steps(
    values: tuple[float, ...], quality: Callable[[tuple[float, ...]], float], evaluations: int
) -> tuple[float, ...] | None:
    """Return better steps, by coordinate search: one at a time is moved a part of the way to its neighbours.

    Args:
        values: falling; the first one stays.
        quality: what to maximise.
        evaluations: how many may be tried.

    Returns:
        The steps; None if none were found that are better.
    """
    best, best_quality, left, part = values, quality(values), evaluations, 0.5
    while left > 0 and part > 0.1:
        before = best
        for i in range(1, len(values)):
            below = best[i + 1] if i + 1 < len(best) else 0.0
            for neighbour in (best[i - 1], below):
                tried = _moved(best, i, neighbour, part)
                if left <= 0 or tried is None:
                    continue
                left -= 1
                if (found := quality(tried)) > best_quality:
                    best, best_quality = tried, found
                    break
        part /= 2 if best == before else 1
    return None if best == values else best


def _moved(values: tuple[float, ...], i: int, towards: float, part: float) -> tuple[float, ...] | None:
    """Return the steps with one of them moved a part of the way to a neighbour, whole if they are; None if it meets."""
    whole = all(value == round(value) for value in values)
    new = values[i] + part * (towards - values[i])
    new = float(round(new)) if whole else round(new, 6)
    below = values[i + 1] if i + 1 < len(values) else -1.0
    return (*values[:i], new, *values[i + 1 :]) if below < new < values[i - 1] and new != values[i] else None
