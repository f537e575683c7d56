"""λ of a scheduler's steps, and linear forecasts along it."""

import math

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DiTTransformer2DModel, FlowMatchEulerDiscreteScheduler

from delta_dit import DeltaCacheConfig, DeltaPlan, delta_cache
from delta_dit.commands.models import open_gates
from delta_dit.embedded.pixel import PixelDiTPipeline
from delta_dit.noise import log_snr, log_snr_of_levels


def test_lambda_is_the_log_of_alpha_over_sigma():
    scheduler = DDIMScheduler()
    alpha, sigma = scheduler.alphas_cumprod[400].sqrt(), (1 - scheduler.alphas_cumprod[400]).sqrt()
    assert log_snr(scheduler, [400])[0] == pytest.approx(math.log(alpha / sigma), abs=1e-5)
    assert log_snr(FlowMatchEulerDiscreteScheduler(), [250.0])[0] == pytest.approx(math.log(0.75 / 0.25))
    assert log_snr_of_levels([0.5])[0] == 0


def test_pure_noise_and_no_noise_are_finite():
    assert np.isfinite(log_snr_of_levels([0.0, 1.0])).all()
    assert np.isfinite(log_snr(DDIMScheduler(rescale_betas_zero_snr=True), [0, 999])).all()


def drawn(pipe, config):
    with delta_cache(pipe, config):
        return pipe([0], num_inference_steps=12, generator=torch.Generator().manual_seed(0), output_type="pt").images


def test_a_schedule_extrapolates_along_lambda_and_a_plan_along_the_steps_that_it_was_tried_on():
    torch.manual_seed(0)
    sizes = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "sample_size": 8, "patch_size": 4}
    model = DiTTransformer2DModel(
        in_channels=3, out_channels=3, num_embeds_ada_norm=3, norm_type="ada_norm_zero", **sizes
    ).eval()
    open_gates(model)
    pipe = PixelDiTPipeline(model, DDIMScheduler(prediction_type="sample"))
    pipe.set_progress_bar_config(disable=True)
    generic = DeltaCacheConfig(speedup=1.3).plan_for(12, 2)
    pipe.scheduler.set_timesteps(12)
    ratios = log_snr(pipe.scheduler, pipe.scheduler.timesteps.tolist()).tolist()

    def weighted(axis):
        reuses, full = [], []
        for step, reuse in enumerate(generic.reuses):
            if reuse is None:
                full.append(step)
            elif reuse.order:
                assert len(full) > 1
                a_b = reuse.coefficients(axis[full[-1]], axis[full[-2]], axis[step])
                reuse = reuse.__class__(reuse.start, reuse.stop, 1, a_b)
            reuses.append(reuse)
        return DeltaCacheConfig(plan=DeltaPlan.of(2, reuses))

    assert any(reuse and reuse.order for reuse in generic.reuses)
    along_lambda, along_steps = drawn(pipe, weighted(ratios)), drawn(pipe, weighted(range(12)))
    apart = (along_lambda - along_steps).abs().max()
    assert apart > 0
    assert (drawn(pipe, DeltaCacheConfig(speedup=1.3)) - along_lambda).abs().max() < 0.01 * apart
    assert (drawn(pipe, DeltaCacheConfig(plan=generic)) - along_steps).abs().max() < 0.01 * apart
