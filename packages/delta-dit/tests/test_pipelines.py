"""Real pipelines: calibrated, planned for and cached, from Python, as they are; and exactly as before afterwards."""

import warnings

import numpy as np
import pytest
import tiny_pipelines
import torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel

from delta_dit import (
    Calibration,
    Trial,
    calibrate,
    delta_cache,
    delta_cache_stats,
    delta_cache_summary,
    disable_delta_cache,
    enable_delta_cache,
)
from delta_dit.attach import transformers_of

STEPS = 6
VIDEO = ["wan", "wan_2_2", "ltx", "cogvideox", "hunyuan_video"]
DOWN_AND_UP = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
FROM_IMAGE = ["sd3_from_image", "flux_kontext"]


def draw(pipe, inputs, steps=STEPS):
    noise = torch.Generator().manual_seed(3)
    return pipe(**inputs, num_inference_steps=steps, generator=noise, output_type="latent")[0]


def hooked(pipe):
    """Return the modules that somebody has put something on."""
    modules = [module for each in transformers_of(pipe) for module in each.modules()]
    registries = {module: getattr(module, "_diffusers_hook", None) for module in modules}
    found = [module for module, registry in registries.items() if registry is not None and registry.hooks]
    return found + [module for module in modules if module._forward_hooks or module._forward_pre_hooks]


@pytest.mark.parametrize("name", [*VIDEO, *FROM_IMAGE])
def test_calibrate_plan_enable_and_leave_no_trace(name):
    pipe, inputs = getattr(tiny_pipelines, name)()
    plain = draw(pipe, inputs)
    found = calibrate(pipe, [inputs], steps=STEPS)
    assert hooked(pipe) == [] and torch.equal(draw(pipe, inputs), plain)
    runs = len(found.levels)
    assert found.sketches.shape[:3] == (1, runs, 1 + tiny_pipelines.BLOCKS) and np.isfinite(found.harm).any()
    assert runs == (4 if name == "sd3_from_image" else STEPS)

    plan = found.plan(speedup=1.4, trial=Trial(pipe, [inputs], seed=7), evaluations=3)
    assert plan.steps == runs and plan.mac_speedup() == pytest.approx(1.4, rel=0.05)
    enable_delta_cache(pipe, plan)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is told of a run that reuses nothing
        for _ in range(2):
            assert not torch.equal(draw(pipe, inputs), plain)
    stats = delta_cache_stats(pipe)
    assert not stats.fallbacks and stats.block_speedup == pytest.approx(plan.mac_speedup())
    disable_delta_cache(pipe)
    assert hooked(pipe) == [] and torch.equal(draw(pipe, inputs), plain)


def compiled_blocks(transformer):
    for block in transformer.blocks:
        block.forward = torch.compile(block.forward, backend="eager")


def compiled_in_place(transformer):
    for block in transformer.blocks:
        block.compile(backend="eager")


def with_lora(transformer):
    pytest.importorskip("peft")
    from peft import LoraConfig

    transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))


def offloaded(transformer):
    transformer.enable_group_offload(torch.device("cpu"), num_blocks_per_group=1, offload_type="block_level")


def in_half(transformer):
    transformer.to(torch.bfloat16)


@pytest.mark.parametrize("change", [compiled_blocks, compiled_in_place, with_lora, offloaded, in_half])
def test_a_pipeline_is_calibrated_as_it_is(change):
    pipe, inputs = tiny_pipelines.wan()
    change(pipe.transformer)
    plain, before = draw(pipe, inputs, 3), hooked(pipe)
    found = calibrate(pipe, [inputs], steps=3)
    assert np.isfinite(found.sketches).all() and 0.5 < found.block_share <= 1
    assert hooked(pipe) == before and torch.equal(draw(pipe, inputs, 3), plain)
    plan = found.plan(speedup=1.3)
    with delta_cache(pipe, plan):
        assert not torch.equal(draw(pipe, inputs, 3), plain)
        assert delta_cache_stats(pipe).blocks_run == 2 * plan.blocks_run()
    assert torch.equal(draw(pipe, inputs, 3), plain)


def test_two_transformers_share_a_plan_that_never_reuses_from_one_to_the_other(tmp_path):
    pipe, inputs = tiny_pipelines.wan_2_2()
    found = calibrate(pipe, [inputs], steps=STEPS)
    (start,) = found.starts
    pipe.scheduler.set_timesteps(STEPS)
    assert [bool(t >= 700) for t in pipe.scheduler.timesteps] == [step < start for step in range(STEPS)]
    most = (STEPS - 2) * tiny_pipelines.BLOCKS  # each has a first step that is full
    fastest = STEPS * tiny_pipelines.BLOCKS / (STEPS * tiny_pipelines.BLOCKS - most)
    found.save(tmp_path / "two.safetensors")
    for each in (found, Calibration.load(tmp_path / "two.safetensors")):
        plan = each.plan(speedup=fastest)
        assert plan.reuses[0] is None and plan.reuses[start] is None and plan.full_steps == 2
    with pytest.raises(ValueError, match=f"no plan saves 20 block evaluations; allowed: 0 to {most}"):
        found.plan(speedup=STEPS)
    with delta_cache(pipe, plan):
        draw(pipe, inputs)
        stats, table = delta_cache_stats(pipe), str(delta_cache_summary(pipe))
    assert stats.calls == 2 * STEPS and stats.blocks_total - stats.blocks_run == 2 * most
    assert table.count("WanTransformer3DModel") == 2


@pytest.mark.parametrize("budget", [3.0, 4.5])
def test_a_budget_of_two_transformers_is_kept(budget):
    pipe, inputs = tiny_pipelines.wan_2_2()
    found = calibrate(pipe, [inputs], steps=STEPS)
    plan = found.plan(budget=budget, target="uncached")
    with delta_cache(pipe, plan):
        draw(pipe, inputs)
        stats = delta_cache_stats(pipe)
    assert plan.cost_steps(found.block_share) <= budget and not stats.fallbacks
    assert stats.blocks_run == 2 * plan.blocks_run()


def test_videos_are_compared_by_their_latents_and_on_request_by_their_pixels():
    pipe, inputs = tiny_pipelines.wan_with_decoder()
    decoded, decode = [], pipe.vae.decode
    pipe.vae.decode = lambda *args, **kwargs: decoded.append(1) or decode(*args, **kwargs)
    by_latents = calibrate(pipe, [inputs], steps=3)
    assert decoded == []
    by_pixels = calibrate(pipe, [inputs | {"output_type": "pt"}], steps=3)
    assert decoded and not np.array_equal(by_pixels.harm, by_latents.harm, equal_nan=True)
    np.testing.assert_array_equal(by_pixels.sketches, by_latents.sketches)


def test_a_run_that_begins_late_is_replayed_from_where_it_differs():
    pipe, inputs = tiny_pipelines.sd3_from_image()
    found, trial = calibrate(pipe, [inputs], steps=STEPS), Trial(pipe, [inputs])
    trial.follow(found)
    first, second = found.plan(speedup=1.3), found.plan(speedup=1.6)
    db = [trial(plan.reuses) for plan in (first, second)]
    fresh = Trial(pipe, [inputs])
    fresh.follow(found)
    assert torch.equal(fresh(second.reuses), db[1]) and db[1] < db[0] < 100


def test_a_calibration_and_a_plan_of_another_model_are_refused():
    pipe, inputs = tiny_pipelines.wan()
    found = calibrate(pipe, [inputs], steps=3)
    other, theirs = tiny_pipelines.ltx()
    told = "is of another model .*WanTransformer3DModel.* this LTXVideoTransformer3DModel.*; allowed: "
    with pytest.raises(ValueError, match=f"the calibration {told}"):
        found.plan(speedup=1.2, trial=Trial(other, [theirs]))
    with pytest.raises(ValueError, match=f"the plan {told}"):
        enable_delta_cache(other, found.plan(speedup=1.2))
    assert hooked(other) == []
    enable_delta_cache(tiny_pipelines.wan()[0], found.plan(speedup=1.2))  # other weights of the same model would do


def test_a_pipeline_that_draws_nan_is_told():
    pipe, inputs = tiny_pipelines.ltx()
    with torch.no_grad():
        pipe.transformer.proj_out.bias.fill_(torch.nan)
    for measure in (lambda: calibrate(pipe, [inputs], steps=3), lambda: Trial(pipe, [inputs])((None,) * 3)):
        with pytest.raises(ValueError, match=r"LTXPipeline draws images that are not finite.*; allowed: "):
            measure()
    assert hooked(pipe) == []


def test_guidance_that_goes_off_in_mid_run_is_told():
    pipe, inputs = tiny_pipelines.wan()

    def off(pipe, step, timestep, options):
        pipe._guidance_scale = 1.0
        return options

    with pytest.raises(ValueError, match="different numbers of branches; allowed: "):
        calibrate(pipe, [inputs | {"callback_on_step_end": off}], steps=3)
    assert hooked(pipe) == []


def test_a_pipeline_around_a_unet_is_told():
    unet = UNet2DModel(sample_size=8, block_out_channels=(4, 4), norm_num_groups=2, **DOWN_AND_UP)
    pipe = DDIMPipeline(unet, DDIMScheduler())
    for use in (enable_delta_cache, lambda pipe: calibrate(pipe, [{}]), lambda pipe: Trial(pipe, [{}])):
        with pytest.raises(ValueError, match="DDIMPipeline has no transformer; allowed: "):
            use(pipe)
    assert not any(hasattr(module, "_diffusers_hook") for module in unet.modules())
