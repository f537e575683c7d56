"""Where a transformer call stands in a run: with every kind of scheduler, and without one."""

import gc

import diffusers
import pytest
import torch

from delta_dit.clock import Position, SchedulerClock, TimestepClock

# diffusers 0.42 with NumPy 2
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:The `scale_model_input`")

STEPS = 6
SHAPE = (1, 3, 8, 8)


class Pipe:
    """All that the clock knows of a pipeline."""

    def __init__(self, scheduler):
        self.scheduler = scheduler


def make(name, **config):
    return getattr(diffusers, name)(**config)


def walk(scheduler, timesteps=None):
    """Yield each timestep of a run, and step the scheduler after it, as a pipeline does."""
    sample = torch.ones(SHAPE)
    for t in scheduler.timesteps if timesteps is None else timesteps:
        yield t
        sample = scheduler.step(0.1 * sample, t, sample, return_dict=False)[0]


def ticks(clock, timesteps):
    return [clock.tick(t) for t in timesteps]


COUNTING = [
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "DEISMultistepScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "FlowMatchEulerDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "LCMScheduler",
    "LMSDiscreteScheduler",
    "SASolverScheduler",
    "TCDScheduler",
    "UniPCMultistepScheduler",
]
STATELESS = ["DDIMScheduler", "DDPMScheduler", "CogVideoXDDIMScheduler"]


@pytest.mark.parametrize("name", COUNTING + STATELESS)
def test_every_step_of_every_run_is_known(name):
    pipe = Pipe(make(name))
    clock = SchedulerClock(pipe)
    for run in range(2):
        pipe.scheduler.set_timesteps(STEPS)
        seen = [clock.tick(t.expand(2)) for t in walk(pipe.scheduler)]
        assert seen == [Position(run, step) for step in range(len(pipe.scheduler.timesteps))]
        assert clock.steps == len(seen) >= STEPS
        assert clock.levels == sorted(clock.levels, reverse=True)
        assert 0.75 < clock.levels[0] <= 1 and 0 <= clock.levels[-1] < 0.4


@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler"])
def test_all_calls_of_one_step_have_one_position(name):
    pipe = Pipe(make(name))
    clock = SchedulerClock(pipe)
    pipe.scheduler.set_timesteps(STEPS)
    for step, t in enumerate(walk(pipe.scheduler)):
        assert ticks(clock, [t, t, t]) == [Position(0, step)] * 3


@pytest.mark.parametrize("begin", [True, False])
@pytest.mark.parametrize("name", COUNTING + STATELESS)
def test_a_run_that_enters_late_is_placed_by_its_noise_level(name, begin):
    scheduler = make(name)
    clock = SchedulerClock(Pipe(scheduler))
    scheduler.set_timesteps(STEPS)
    start = len(scheduler.timesteps) - 3
    if begin and hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(start)
    steps = [position.step for position in ticks(clock, walk(scheduler, scheduler.timesteps[start:]))]
    # of two steps with the same timestep (Heun), which the scheduler itself confuses, the first is as good
    levels = [clock.levels[step] for step in steps]
    assert levels[0] == clock.levels[start] and levels == sorted(levels, reverse=True)
    if begin or name in STATELESS:
        assert steps == [start, start + 1, start + 2]


def test_a_timestep_that_comes_twice_is_one_step():
    scheduler = make("PNDMScheduler", skip_prk_steps=True)
    clock = SchedulerClock(Pipe(scheduler))
    scheduler.set_timesteps(STEPS)
    assert [p.step for p in ticks(clock, walk(scheduler))] == [0, 1, 1, *range(3, STEPS + 1)]


@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler"])
@pytest.mark.parametrize("stop", [1, 3, STEPS])
def test_a_run_after_one_that_broke_off_is_a_new_run(name, stop):
    pipe = Pipe(make(name))
    clock = SchedulerClock(pipe)
    for run in range(3):
        pipe.scheduler.set_timesteps(STEPS)
        for step, t in enumerate(walk(pipe.scheduler)):
            if step == stop:
                break
            assert clock.tick(t) == Position(run, step)


def test_a_loop_that_does_not_set_its_timesteps_anew_still_starts_a_new_run():
    scheduler = make("DDIMScheduler")
    clock = SchedulerClock(Pipe(scheduler))
    scheduler.set_timesteps(STEPS)
    assert [p.run for _ in range(2) for p in ticks(clock, walk(scheduler))] == [0] * STEPS + [1] * STEPS


def test_the_scheduler_may_be_swapped():
    pipe = Pipe(make("DDIMScheduler"))
    clock = SchedulerClock(pipe)
    pipe.scheduler.set_timesteps(STEPS)
    assert len(ticks(clock, walk(pipe.scheduler))) == STEPS
    pipe.scheduler = make("EulerDiscreteScheduler")
    pipe.scheduler.set_timesteps(2 * STEPS)
    assert ticks(clock, walk(pipe.scheduler)) == [Position(1, step) for step in range(2 * STEPS)]


def test_the_clock_does_not_keep_its_pipeline_alive_but_its_scheduler():
    scheduler = make("DDIMScheduler")
    pipe = Pipe(scheduler)
    clock = SchedulerClock(pipe)
    del pipe
    gc.collect()
    assert clock.pipeline() is None
    scheduler.set_timesteps(STEPS)
    assert len(set(ticks(clock, walk(scheduler)))) == STEPS


def test_a_scheduler_that_another_loop_does_not_drive_gives_no_steps():
    driven, idle = make("EulerDiscreteScheduler"), make("EulerDiscreteScheduler")
    clock = SchedulerClock(Pipe(idle))
    driven.set_timesteps(STEPS)
    idle.set_timesteps(STEPS)
    list(walk(idle))
    assert ticks(clock, walk(driven)) == [None] * STEPS  # its own run has ended
    assert SchedulerClock(Pipe(make("DDIMScheduler"))).tick(0.123) is None


@pytest.mark.parametrize("unit", [lambda t: t / 1000, lambda t: 1 - t / 1000, lambda t: None])
def test_a_model_may_have_a_timestep_of_its_own_unit(unit):
    scheduler = make("FlowMatchEulerDiscreteScheduler")
    clock = SchedulerClock(Pipe(scheduler))
    scheduler.set_timesteps(STEPS)
    assert [clock.tick(unit(t)).step for t in walk(scheduler)] == list(range(STEPS))


def test_a_timestep_may_be_rounded_to_the_dtype_of_the_model():
    scheduler = make("DDIMScheduler")
    clock = SchedulerClock(Pipe(scheduler))
    scheduler.set_timesteps(50)
    assert [p.step for p in ticks(clock, (t.to(torch.bfloat16) for t in walk(scheduler)))] == list(range(50))


def test_after_restart_the_next_call_begins_a_run():
    scheduler = make("DDIMScheduler")
    clock = SchedulerClock(Pipe(scheduler))
    scheduler.set_timesteps(STEPS)
    first, second = scheduler.timesteps[:2]
    assert clock.tick(first) == Position(0, 0)
    clock.restart()
    assert clock.tick(second) == Position(1, 1)


def steps_of(clock, *timesteps):
    return [tuple(clock.tick(torch.tensor([float(t)] * 2))) for t in timesteps]


@pytest.mark.parametrize("unit", [lambda t: t, lambda t: 1 - t / 1000])
def test_without_a_scheduler_each_timestep_is_a_step_and_a_turn_begins_a_run(unit):
    clock = TimestepClock(4)
    run = [unit(t) for t in (999, 700, 400, 100)]
    assert steps_of(clock, *run) == [(0, 0), (0, 1), (0, 2), (0, 3)]
    assert steps_of(clock, *run[:2]) == [(1, 0), (1, 1)]  # breaks off
    assert steps_of(clock, *run) == [(2, 0), (2, 1), (2, 2), (2, 3)]


def test_without_a_scheduler_equal_timesteps_are_calls_of_one_step():
    assert steps_of(TimestepClock(3), 9, 9, 5, 5, 1, 1) == [(0, 0), (0, 0), (0, 1), (0, 1), (0, 2), (0, 2)]


def test_without_a_scheduler_a_run_has_no_more_steps_than_it_was_told():
    assert steps_of(TimestepClock(2), 9, 7, 5, 3) == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_without_a_scheduler_known_frames_at_timestep_0_do_not_count():
    clock = TimestepClock(2)
    assert [clock.tick(torch.tensor([[0.0, t, t]])) for t in (9, 5)] == [Position(0, 0), Position(0, 1)]
    assert clock.tick(None) is None


def test_without_a_scheduler_restart_begins_a_run():
    clock = TimestepClock(3)
    steps_of(clock, 9)
    clock.restart()
    assert steps_of(clock, 9, 5) == [(1, 0), (1, 1)]
