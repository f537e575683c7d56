"""A scheduler takes a plan's own steps, whole or not, and then its own; better ones are found by trying."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)

from delta_dit.moved_steps import Spacing, argument_of, improve_steps, moved, restore_steps

DISCRETE = [DPMSolverMultistepScheduler, DDPMScheduler, EulerDiscreteScheduler]
FLOW = FlowMatchEulerDiscreteScheduler


def falls(values):
    return values[-1] >= 0 and all(a > b for a, b in pairwise(values))


@pytest.mark.parametrize("kind", DISCRETE)
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_whole_timesteps_that_fall_are_taken(kind, share):
    scheduler = kind()
    for steps in (1, 2, 7, 60):
        values = Spacing.of(scheduler, share).values(steps)
        assert values[0] <= 999 and falls(values)
        with moved(scheduler, "timesteps", values):
            scheduler.set_timesteps(steps)
            assert scheduler.timesteps.tolist() == list(values)


def test_evenly_in_time_is_the_common_spacing():
    scheduler = DPMSolverMultistepScheduler()
    scheduler.set_timesteps(10)
    np.testing.assert_allclose(Spacing.of(scheduler, 0).values(10), scheduler.timesteps, atol=6)


def test_evenly_in_lambda_is_even():
    scheduler = FLOW()
    sigmas = np.array(Spacing.of(scheduler, 1.0).values(12))[1:]
    gaps = np.diff(np.log(sigmas / (1 - sigmas)))
    assert gaps.max() / gaps.min() < 1.2


def test_a_shift_of_flow_matching_is_applied_as_ever():
    scheduler = FLOW(shift=3.0)
    values = Spacing.of(scheduler, 0.5).values(6)
    scheduler.set_timesteps(sigmas=list(values))
    wanted = scheduler.sigmas.clone()
    with moved(scheduler, "sigmas", values):
        for asked in ({"num_inference_steps": 6}, {"sigmas": np.linspace(1, 1 / 6, 6)}):  # as SD3 asks, and as FLUX
            scheduler.set_timesteps(**asked)
            assert torch.equal(scheduler.sigmas, wanted)


def test_only_so_many_steps_are_moved_and_none_that_were_given():
    scheduler, plain = FLOW(), FLOW()
    with moved(scheduler, "sigmas", Spacing.of(scheduler, 0.5).values(6)):
        for asked in ({"num_inference_steps": 5}, {"sigmas": [1.0, 0.7, 0.5, 0.4, 0.3, 0.2]}):
            scheduler.set_timesteps(**asked), plain.set_timesteps(**asked)
            assert torch.equal(scheduler.sigmas, plain.sigmas)
    scheduler.set_timesteps(6), plain.set_timesteps(6)
    assert torch.equal(scheduler.sigmas, plain.sigmas) and "set_timesteps" not in vars(scheduler)


def test_a_method_of_somebody_elses_stays():
    scheduler = FLOW()
    scheduler.set_timesteps = print
    restore_steps(scheduler)
    assert scheduler.set_timesteps is print


def test_a_scheduler_that_takes_no_steps_is_told():
    assert argument_of(DDIMScheduler()) is None
    with pytest.raises(ValueError, match=r"DDIMScheduler takes no steps from outside; allowed: "):
        Spacing.of(DDIMScheduler(), 0.5)
    with (
        pytest.raises(ValueError, match=r"DDIMScheduler takes no timesteps.*; allowed: "),
        moved(DDIMScheduler(), "timesteps", [1.0]),
    ):
        pass
    with pytest.raises(ValueError, match=r"share=1.5.*; allowed: 0 to 1"):
        Spacing.of(FLOW(), 1.5)


@pytest.mark.parametrize(("start", "whole"), [((900.0, 500.0, 200.0), True), ((0.9, 0.5, 0.2), False)])
def test_coordinate_search_comes_nearer_within_its_evaluations(start, whole):
    best = tuple(value * factor for value, factor in zip(start, (1, 1.3, 0.6)))
    tried = []

    def quality(values):
        tried.append(values)
        assert values[0] == start[0] and falls(values)
        assert not whole or all(value == round(value) for value in values)
        return -sum(abs(a - b) for a, b in zip(values, best))

    found = improve_steps(start, quality, 20)
    assert found is not None and len(tried) <= 21
    assert quality(found) > quality(start)
    assert improve_steps(start, lambda values: float(values == start), 9) is None
