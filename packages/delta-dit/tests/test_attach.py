"""The Δ-cache on diffusers' own transformers and pipelines, with tiny random weights whose blocks matter."""

import gc
import threading
import weakref

import accelerate.hooks
import diffusers
import pytest
import torch
import torch._dynamo.testing
from accelerate import cpu_offload_with_hook
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DModel,
)
from diffusers.hooks import (
    FirstBlockCacheConfig,
    HookRegistry,
    ModelHook,
    apply_first_block_cache,
)
from tiny_diffusers import (
    BARE,
    BLOCKS,
    FAST,
    NOTHING,
    PAPER,
    STEPS,
    Pipe,
    attention_calls,
    cached,
    dit,
    draw,
    flux,
    guided,
    latents,
    pixel,
    sample_ddim,
    sample_flow,
    sd3,
)

from delta_dit import (
    DeltaCacheConfig,
    DeltaPlan,
    PixelDiTPipeline,
    delta_cache,
    delta_cache_stats,
    disable_delta_cache,
    enable_delta_cache,
)
from delta_dit.cache_mixin import patch_diffusers, unpatch_diffusers
from delta_dit.delta_plan import Reuse

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

# Solvers


@pytest.mark.parametrize(
    "name",
    [
        "DDIMScheduler",
        "DDPMScheduler",
        "DEISMultistepScheduler",
        "DPMSolverMultistepScheduler",
        "EulerAncestralDiscreteScheduler",
        "EulerDiscreteScheduler",
        "HeunDiscreteScheduler",
        "KDPM2DiscreteScheduler",
        "UniPCMultistepScheduler",
    ],
)
def test_with_every_solver_the_blocks_run_as_planned_and_speedup_1_changes_no_bit(name):
    pipe = pixel(getattr(diffusers, name)())
    calls = attention_calls(pipe.transformer)
    uncached = draw(pipe)
    steps = len(pipe.scheduler.timesteps)
    assert len(calls) == steps * BLOCKS  # Heun and KDPM2: 2T − 1 steps

    same, _ = cached(pipe, NOTHING)
    assert torch.equal(same, uncached)

    calls.clear()
    image, stats = cached(pipe, FAST)
    assert len(calls) == stats.blocks_run == FAST.plan_for(steps, BLOCKS).blocks_run() < steps * BLOCKS
    assert stats.blocks_total == steps * BLOCKS and stats.calls == steps and not stats.fallbacks
    assert image.isfinite().all() and not torch.equal(image, uncached)


def test_lcm_in_4_steps():
    pipe = pixel(diffusers.LCMScheduler())
    calls = attention_calls(pipe.transformer)
    config = DeltaCacheConfig(schedule="paper", interval=2, cached_blocks=2)
    _, stats = cached(pipe, config, num_inference_steps=4, guidance_scale=1.0)
    assert stats.blocks_run == len(calls) == 4 * BLOCKS - 2 * 2 and not stats.fallbacks


def test_a_solver_that_repeats_a_timestep_costs_full_steps_that_are_counted():
    pipe = pixel(diffusers.PNDMScheduler())
    uncached = draw(pipe)
    assert torch.equal(cached(pipe, NOTHING)[0], uncached)
    calls = attention_calls(pipe.transformer)
    image, stats = cached(pipe, FAST)
    assert stats.fallbacks.total() > 0 and len(calls) == stats.blocks_run < stats.blocks_total
    assert image.isfinite().all()


@pytest.mark.parametrize("guidance", [4.0, 1.0])
def test_the_latent_pipeline_of_diffusers(guidance):
    autoencoder = AutoencoderKL(latent_channels=4, block_out_channels=(8,), norm_num_groups=4).eval()
    pipe = DiTPipeline(dit(channels=4, out_channels=8, classes=1000), autoencoder, DPMSolverMultistepScheduler())
    pipe.set_progress_bar_config(disable=True)
    uncached = draw(pipe, guidance_scale=guidance)
    assert torch.equal(cached(pipe, NOTHING, guidance_scale=guidance)[0], uncached)
    sample, stats = cached(pipe, FAST, guidance_scale=guidance)
    assert stats.blocks_run == FAST.plan_for(STEPS, BLOCKS).blocks_run() and not stats.fallbacks
    assert not torch.equal(sample, uncached)


@pytest.mark.parametrize("make, separate", [(sd3, False), (flux, True)])
def test_flow_matching_with_text(make, separate):
    pipe = Pipe(make(), FlowMatchEulerDiscreteScheduler())
    uncached = sample_flow(pipe, separate)
    enable_delta_cache(pipe, NOTHING)
    assert torch.equal(sample_flow(pipe, separate), uncached)
    disable_delta_cache(pipe)

    calls = attention_calls(pipe.transformer)
    enable_delta_cache(pipe, FAST)
    sample = sample_flow(pipe, separate)
    assert len(calls) == (1 + separate) * FAST.plan_for(STEPS, BLOCKS).blocks_run()
    assert not delta_cache_stats(pipe).fallbacks and not torch.equal(sample, uncached)
    assert torch.equal(sample_flow(pipe, separate), sample)


def test_skip_layer_guidance_is_a_call_of_its_own_and_does_not_disturb_the_others():
    def run(pipe, calls_at):
        pipe.scheduler.set_timesteps(STEPS)
        text, pooled, outputs = torch.ones(2, 3, 12), torch.ones(2, 10), {}
        with torch.no_grad():
            for step, t in enumerate(pipe.scheduler.timesteps):
                for skip in calls_at(step):
                    x = latents(step, 4)
                    outputs[step, skip] = pipe.transformer(
                        x, text, pooled, t.expand(2), skip_layers=[1, 2] if skip else None
                    ).sample
        return outputs

    alone = run(enable_delta_cache(Pipe(sd3()), PAPER), lambda step: (False,))
    uncached = run(Pipe(sd3()), lambda step: (False, True))
    pipe = enable_delta_cache(Pipe(sd3()), PAPER)
    calls = attention_calls(pipe.transformer)
    both = run(pipe, lambda step: (False, True) if 3 <= step < 7 else (False,))
    assert all(torch.equal(both[key], alone[key]) for key in alone)
    assert all(torch.equal(both[step, True], uncached[step, True]) for step in (3, 4, 6))
    assert not torch.equal(both[5, True], uncached[5, True])
    stats = delta_cache_stats(pipe)
    assert stats.fallbacks == {"no Δ was recorded yet": 1}
    assert len(calls) == stats.blocks_run and stats.blocks_total == STEPS * BLOCKS + 4 * (BLOCKS - 2)


def test_a_stream_that_ends_in_the_last_block_ends_there_when_it_is_skipped():
    pipe = enable_delta_cache(Pipe(sd3(), FlowMatchEulerDiscreteScheduler()), FAST)
    texts = []
    pipe.transformer.transformer_blocks[-1].register_forward_hook(lambda module, args, output: texts.append(output[0]))
    sample_flow(pipe)
    assert texts == [None] * STEPS and delta_cache_stats(pipe).reuse_calls == STEPS // 2


# Guidance in separate calls. The samples do not depend on the model here, so that single calls can be compared.


def test_separate_guidance_equals_fused_guidance():
    pipe = enable_delta_cache(Pipe(dit()), FAST)
    separate = guided(pipe, lambda step: (0, 1))
    assert not delta_cache_stats(pipe).fallbacks

    pipe = enable_delta_cache(Pipe(dit()), FAST)
    pipe.scheduler.set_timesteps(STEPS)
    with torch.no_grad():
        for step, t in enumerate(pipe.scheduler.timesteps):
            both = torch.cat([latents(step)] * 2)
            fused = pipe.transformer(both, t.expand(4), class_labels=torch.tensor([0, 1, 4, 4])).sample
            expected = torch.cat([separate[step, 0], separate[step, 1]])
            torch.testing.assert_close(fused, expected)


@pytest.mark.parametrize("call", [0, 1])
def test_a_call_that_a_guidance_interval_drops_does_not_disturb_the_other(call):
    both = guided(enable_delta_cache(Pipe(dit()), PAPER), lambda step: (0, 1))
    pipe = enable_delta_cache(Pipe(dit()), PAPER)
    alone = guided(pipe, lambda step: (call,) if step in (3, 5, 6, 7) else (0, 1))
    for key, output in alone.items():
        assert torch.equal(output, both[key]), key
    assert not delta_cache_stats(pipe).fallbacks


def test_a_call_that_returns_after_a_full_step_without_it_runs_in_full():
    pipe = enable_delta_cache(Pipe(dit()), PAPER)
    outputs = guided(pipe, lambda step: (0,) if step == 4 else (0, 1))
    uncached = guided(Pipe(dit()), lambda step: (0, 1))
    assert torch.equal(outputs[5, 1], uncached[5, 1]) and not torch.equal(outputs[5, 0], uncached[5, 0])
    assert delta_cache_stats(pipe).fallbacks == {"the Δ is out of date": 1}


def test_a_call_that_comes_in_late_runs_in_full_first():
    pipe = enable_delta_cache(Pipe(dit()), PAPER)
    outputs = guided(pipe, lambda step: (0,) if step < 3 else (1, 0))  # and it comes first
    uncached = guided(Pipe(dit()), lambda step: (0, 1))
    assert torch.equal(outputs[3, 1], uncached[3, 1])
    assert delta_cache_stats(pipe).fallbacks == {"no Δ was recorded yet": 1}
    regular = guided(enable_delta_cache(Pipe(dit()), PAPER), lambda step: (0, 1))
    assert all(torch.equal(outputs[step, 0], regular[step, 0]) for step in range(STEPS))


def test_another_prompt_in_mid_run_runs_in_full_first():
    prompts = [torch.tensor([0, 1]), torch.tensor([2, 3])]
    pipe = enable_delta_cache(Pipe(dit()), PAPER)
    outputs = guided(pipe, lambda step: (int(step > 2),), prompts)
    assert torch.equal(outputs[3, 1], guided(Pipe(dit()), lambda step: (1,), prompts)[3, 1])
    assert delta_cache_stats(pipe).fallbacks == {"no Δ was recorded yet": 1}


def test_branches_with_prompts_of_different_length():
    def run(pipe):
        pipe.scheduler.set_timesteps(STEPS)
        texts = [torch.ones(2, length, 12) for length in (3, 7)]
        pooled = torch.ones(2, 10)
        with torch.no_grad():
            return [
                pipe.transformer(latents(step, 4), text, pooled, t.expand(2)).sample
                for step, t in enumerate(pipe.scheduler.timesteps)
                for text in texts
            ]

    pipe = enable_delta_cache(Pipe(sd3()), PAPER)
    run(pipe)
    stats = delta_cache_stats(pipe)
    assert stats.blocks_run == 2 * PAPER.plan_for(STEPS, BLOCKS).blocks_run() and not stats.fallbacks


def test_a_loop_that_never_moves_on_is_right_and_its_memory_bounded():
    pipe = enable_delta_cache(Pipe(dit()), PAPER)
    pipe.scheduler.set_timesteps(STEPS)
    hook = pipe.transformer._diffusers_hook.get_hook("delta_cache_root")
    plain = dit()
    with torch.no_grad():
        for call in range(40):
            arguments = (latents(call), torch.full((2,), pipe.scheduler.timesteps[1]))
            labels = torch.tensor([0, 1])
            output = pipe.transformer(*arguments, class_labels=labels).sample
            assert torch.equal(output, plain(*arguments, class_labels=labels).sample)
    assert len(hook.caches.cache.branches) < 40


# Part of a run: image-to-image, inpainting


@pytest.mark.parametrize("begin", [True, False])
@pytest.mark.parametrize("name", ["DDIMScheduler", "DPMSolverMultistepScheduler", "EulerDiscreteScheduler"])
def test_a_run_that_enters_late_follows_the_plan_by_noise_level(name, begin):
    scheduler = getattr(diffusers, name)()
    pipe = enable_delta_cache(Pipe(dit(), scheduler), PAPER)
    plain = dit()
    calls = attention_calls(pipe.transformer)
    scheduler.set_timesteps(STEPS)
    if begin and name != "DDIMScheduler":
        scheduler.set_begin_index(3)
    ran = []
    sample, labels = latents(0), torch.tensor([0, 1])
    with torch.no_grad():
        for t in scheduler.timesteps[3:]:
            calls.clear()
            x = scheduler.scale_model_input(sample, t)
            output = pipe.transformer(x, t.expand(2), class_labels=labels).sample
            if not ran:
                assert torch.equal(output, plain(x, t.expand(2), class_labels=labels).sample)
            ran.append(len(calls))
            sample = scheduler.step(output, t, sample).prev_sample
    # step 3 reuses by plan, and is full as the first of the run
    assert ran == [BLOCKS, BLOCKS, BLOCKS - 3, BLOCKS, BLOCKS - 3]
    assert delta_cache_stats(pipe).fallbacks == {"no Δ was recorded yet": 1}


# Changes between runs and inside a run


def test_two_generations_in_a_row_are_equal():
    pipe = enable_delta_cache(pixel(), FAST)
    first = draw(pipe)
    draw(pipe, seed=1, class_labels=[3])
    assert torch.equal(draw(pipe), first)


def test_another_batch_size_or_number_of_steps_between_runs():
    pipe = enable_delta_cache(pixel(), FAST)
    for options in ({}, {"class_labels": [3]}, {"num_inference_steps": 5}, {"guidance_scale": 1.0}):
        assert torch.equal(draw(pipe, **options), cached(pixel(), FAST, **options)[0])
    assert not delta_cache_stats(pipe).fallbacks


@pytest.mark.parametrize("change", [lambda x: x[:1], lambda x: x[..., :4], lambda x: x.bfloat16()])
@pytest.mark.parametrize("inside", [True, False])
def test_another_batch_resolution_or_dtype(change, inside):
    """Inside a run the step runs in full; either way no Δ of before is used."""
    pipe, plain = enable_delta_cache(Pipe(sd3()), PAPER), sd3()
    pipe.scheduler.set_timesteps(STEPS)
    with torch.no_grad():
        for step, t in enumerate(pipe.scheduler.timesteps[:4]):
            arguments = [latents(step, 4), torch.ones(2, 3, 12), torch.ones(2, 10), t.expand(2).float()]
            if step == 3:
                arguments[0] = changed = change(arguments[0])
                arguments[1:] = [value[: len(changed)].to(changed.dtype) for value in arguments[1:]]
                pipe.transformer.to(changed.dtype), plain.to(changed.dtype)
                if not inside:
                    pipe.scheduler.set_timesteps(STEPS)
            output = pipe.transformer(*arguments).sample
    assert torch.equal(output, plain(*arguments).sample)
    assert delta_cache_stats(pipe).fallbacks == {"no Δ was recorded yet": 1}


def test_the_scheduler_may_be_swapped_while_the_cache_is_enabled():
    pipe = enable_delta_cache(pixel(), FAST)
    draw(pipe)
    pipe.scheduler = DDIMScheduler()
    assert torch.equal(draw(pipe), cached(pixel(DDIMScheduler()), FAST)[0])
    assert not delta_cache_stats(pipe).fallbacks


def test_another_pipeline_with_its_own_scheduler_is_right_and_its_full_steps_are_counted():
    pipe = enable_delta_cache(pixel(), FAST)
    draw(pipe)
    other = PixelDiTPipeline(pipe.transformer, DPMSolverMultistepScheduler())
    other.set_progress_bar_config(disable=True)
    assert torch.equal(draw(other), draw(pixel()))
    assert delta_cache_stats(pipe).fallbacks == {"the scheduler does not know the step": STEPS}


class Trouble(RuntimeError):
    pass


def test_a_run_after_one_that_failed_is_as_undisturbed():
    pipe = enable_delta_cache(pixel(), FAST)
    undisturbed = draw(pipe)
    for broken_call in (2, 11, 17):
        countdown = iter(range(broken_call))

        def fail(*_, countdown=countdown):
            if next(countdown, None) is None:
                raise Trouble

        handle = pipe.transformer.transformer_blocks[2].attn1.register_forward_pre_hook(fail)
        with pytest.raises(Trouble):
            while True:
                draw(pipe, seed=5)
        handle.remove()
        assert torch.equal(draw(pipe), undisturbed)


@pytest.mark.parametrize("gradients", [False, True])
def test_a_step_that_failed_may_be_made_again(gradients):
    pipe, plain = enable_delta_cache(Pipe(dit()), PAPER), dit()
    pipe.scheduler.set_timesteps(STEPS)

    def call(model, step):
        t = pipe.scheduler.timesteps[step].expand(2)
        return model(latents(step), t, class_labels=torch.tensor([0, 1])).sample

    def fail(*_):
        raise Trouble

    with torch.no_grad():
        call(pipe.transformer, 0)
        handle = pipe.transformer.proj_out_2.register_forward_pre_hook(fail)
        with pytest.raises(Trouble):
            call(pipe.transformer, 1)  # which reuses
        handle.remove()
    with torch.set_grad_enabled(gradients):
        assert torch.equal(call(pipe.transformer, 1), call(plain, 1))


@pytest.mark.parametrize("stop", [1, 4])
@pytest.mark.parametrize("bare", [False, True])
def test_a_run_after_one_that_was_interrupted_is_as_undisturbed(bare, stop):
    def outputs(pipe, first):
        """A run in which the samples depend on the model."""
        pipe.scheduler.set_timesteps(STEPS)
        sample, labels = first, torch.tensor([0, 1])
        for t in pipe.scheduler.timesteps:
            output = pipe.transformer(sample, t.expand(2), class_labels=labels).sample
            yield output
            sample = pipe.scheduler.step(output[:, :3], t, sample).prev_sample

    pipe = Pipe(dit(), DDIMScheduler())
    config = DeltaCacheConfig(schedule="paper", interval=2, cached_blocks=3, num_inference_steps=STEPS)
    enable_delta_cache(pipe.transformer if bare else pipe, config)
    with torch.no_grad():
        undisturbed = list(outputs(pipe, latents(0)))
        for _ in zip(range(stop), outputs(pipe, latents(1))):
            pass
        again = list(outputs(pipe, latents(0)))
    assert all(torch.equal(a, b) for a, b in zip(again, undisturbed, strict=True))


def test_the_deltas_of_a_run_that_broke_off_are_let_go_when_diffusers_resets_the_caches_of_a_model():
    expected = sample_flow(enable_delta_cache(Pipe(flux(), FlowMatchEulerDiscreteScheduler()), FAST), separate=True)
    pipe = enable_delta_cache(Pipe(flux(), FlowMatchEulerDiscreteScheduler()), FAST)
    countdown = iter(range(2))

    def fail(*_):
        if next(countdown, None) is None:
            raise Trouble

    step = pipe.scheduler.step
    pipe.scheduler.step = lambda *args: fail() or step(*args)
    with pytest.raises(Trouble):
        sample_flow(pipe, separate=True)
    del pipe.scheduler.step
    cache = pipe.transformer._diffusers_hook.get_hook("delta_cache_root").caches.cache
    assert cache.branches
    pipe.transformer._reset_stateful_cache()  # what pipelines of a CacheMixin model do at the end
    assert not cache.branches
    assert torch.equal(sample_flow(pipe, separate=True), expected)


# Threads, dtypes, gradients


def in_threads(*tasks):
    """Run each task in a thread of its own, all at once, and return what they return."""
    results, barrier = {}, threading.Barrier(len(tasks))

    def work(number):
        barrier.wait()
        results[number] = tasks[number]()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(tasks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [results[number] for number in range(len(tasks))]


@pytest.mark.parametrize("shared", [True, False])
def test_threads_do_not_mix_their_deltas(shared):
    expected = [sample_ddim(enable_delta_cache(dit(), BARE), seed) for seed in range(2)]
    assert not torch.equal(expected[0], sample_ddim(dit(), 0))
    models = [enable_delta_cache(dit(), BARE) for _ in range(2)]
    if shared:
        models[1] = models[0]
    results = in_threads(*(lambda i=i: [sample_ddim(models[i], i) for _ in range(3)] for i in range(2)))
    for drawn, right in zip(results, expected, strict=True):
        assert all(torch.equal(sample, right) for sample in drawn)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_exact_in_full_steps_and_finite_in_the_others(dtype):
    pipe, plain = enable_delta_cache(Pipe(dit().to(dtype)), PAPER), Pipe(dit().to(dtype))
    ours, theirs = (guided(each, lambda step: (0,)) for each in (pipe, plain))
    for step, call in ours:
        assert ours[step, call].dtype == dtype and ours[step, call].isfinite().all()
        assert torch.equal(ours[step, call], theirs[step, call]) == (step % 2 == 0)


def test_inference_mode_gives_the_same():
    expected = cached(pixel(), FAST)[0]
    with torch.inference_mode():
        assert torch.equal(cached(pixel(), FAST)[0], expected)


def test_with_gradients_the_cache_is_off():
    pipe, plain = enable_delta_cache(Pipe(dit()), PAPER), dit()
    pipe.scheduler.set_timesteps(STEPS)
    for step, t in enumerate(pipe.scheduler.timesteps[:3]):
        for model in (pipe.transformer, plain):
            model.zero_grad()
            model(latents(step), t.expand(2), class_labels=torch.tensor([0, 1])).sample.square().sum().backward()
        for weight, other in zip(pipe.transformer.parameters(), plain.parameters(), strict=True):
            assert weight.grad is other.grad is None or torch.equal(weight.grad, other.grad)
    assert delta_cache_stats(pipe).calls == 0


# ControlNet


def identical_steps(model, plan, **inputs):
    """Call the model at every step with the same inputs, and yield its outputs."""
    pipe = enable_delta_cache(Pipe(model, FlowMatchEulerDiscreteScheduler()), DeltaCacheConfig(plan=plan))
    pipe.scheduler.set_timesteps(plan.steps)
    first, nothing = pipe.scheduler.timesteps[0], torch.zeros(1)
    with torch.no_grad():
        for t in pipe.scheduler.timesteps:
            yield model(timestep=first.expand(1), **inputs).sample
            pipe.scheduler.step(nothing, t, nothing)
    stats = delta_cache_stats(pipe)
    assert stats.blocks_run == plan.blocks_run() and not stats.fallbacks


def controlled(name):
    generator = torch.Generator().manual_seed(1)
    image, residual = (torch.randn(1, 16, 16, generator=generator) for _ in range(2))
    text = torch.randn(1, 3, 12, generator=generator)
    inputs = {"encoder_hidden_states": text, "pooled_projections": torch.randn(1, 10, generator=generator)}
    if name == "SD3":
        return sd3(), inputs | {
            "hidden_states": image.reshape(1, 4, 8, 8),
            "block_controlnet_hidden_states": [residual, 2 * residual],
        }
    positions = {"img_ids": torch.zeros(16, 3), "txt_ids": torch.zeros(3, 3)}
    residuals = {"controlnet_block_samples": [residual], "controlnet_single_block_samples": [residual, 2 * residual]}
    return flux(), inputs | positions | residuals | {"hidden_states": image}


@pytest.mark.parametrize("name", ["SD3", "Flux"])
def test_residuals_of_a_controlnet_are_not_counted_twice(name):
    """With the same inputs at every step, a step that reuses gives what a full step gives."""
    plan = DeltaPlan.of(BLOCKS, [None, Reuse(0, 4), None, Reuse(1, 3), Reuse(1, 3), None, Reuse(0, 1), Reuse(0, 1)])
    model, inputs = controlled(name)
    full, *others = identical_steps(model, plan, **inputs)
    for output in others:
        torch.testing.assert_close(output, full, rtol=1e-4, atol=1e-5)
    control = [key for key in inputs if "control" in key]
    without, *_ = identical_steps(controlled(name)[0], plan, **{k: v for k, v in inputs.items() if k not in control})
    assert not torch.allclose(without, full, atol=0.01)


def test_residuals_that_are_added_in_place_cost_one_full_step_and_are_not_counted_twice():
    """As Chroma and Cosmos do; a forward hook stands for the model's own code between two blocks."""
    model, inputs = controlled("SD3")
    del inputs["block_controlnet_hidden_states"]
    pipe = enable_delta_cache(Pipe(model), PAPER)

    def add_in_place(module, args, output):
        output[1].add_(1.0)

    for block in model.transformer_blocks:  # torch's own hooks run after those of diffusers
        block.register_forward_hook(add_in_place)
    pipe.scheduler.set_timesteps(STEPS)
    plain = sd3()
    for block in plain.transformer_blocks:
        block.register_forward_hook(lambda module, args, output: (output[0], output[1] + 1.0))
    with torch.no_grad():
        for step, t in enumerate(pipe.scheduler.timesteps):
            output = model(timestep=t.expand(1), **inputs).sample
            expected = plain(timestep=t.expand(1), **inputs).sample
            if step in (0, 1, 2, 4, 6):
                assert torch.equal(output, expected)
            else:
                assert (output - expected).square().mean() < 0.1 * expected.square().mean()
    assert delta_cache_stats(pipe).fallbacks == {"no Δ was recorded yet": 1}


# Putting it on and taking it off


def forwards(model):
    """What every module's forward is, and what hangs on the module besides."""
    return {
        name: (vars(module).get("forward"), hasattr(module, "_diffusers_hook"), hasattr(module, "_old_forward"))
        for name, module in model.named_modules()
    }


@pytest.mark.parametrize("make", [dit, sd3, flux])
def test_disabling_leaves_no_trace(make):
    model = make()
    before, attributes = forwards(model), set(vars(model))
    enable_delta_cache(model, BARE)
    assert forwards(model) != before
    disable_delta_cache(model)
    assert forwards(model) == before and set(vars(model)) == attributes
    assert disable_delta_cache(model) is model  # nothing to do
    with pytest.raises(ValueError, match="no delta cache is enabled on"):
        delta_cache_stats(model)


def test_the_cache_keeps_neither_pipeline_nor_model_alive():
    pipe = enable_delta_cache(pixel(), FAST)
    draw(pipe)
    gone = [weakref.ref(pipe), weakref.ref(pipe.transformer)]
    del pipe
    gc.collect()
    assert [reference() for reference in gone] == [None, None]


def test_one_line_says_what_is_wrong_and_the_model_is_left_as_it_was():
    model = dit()
    before = forwards(model)
    plan = DeltaPlan.of(BLOCKS + 1, [None] * STEPS)
    for target, config, message in [
        (model, FAST, "num_inference_steps=None"),
        (Pipe(model), DeltaCacheConfig(plan=plan), "the plan is for 5 blocks and DiTTransformer2DModel has 4"),
        (model, DeltaCacheConfig(speedup=9.0, num_inference_steps=STEPS), "speedup=9.0 is not possible"),
        (
            UNet2DModel(
                block_out_channels=(8, 8),
                norm_num_groups=4,
                down_block_types=("DownBlock2D",) * 2,
                up_block_types=("UpBlock2D",) * 2,
            ),
            BARE,
            "'UNet2DModel' is unknown",
        ),
        (Pipe(None), FAST, "Pipe has no transformer"),
    ]:
        with pytest.raises(ValueError, match=message) as error:
            enable_delta_cache(target, config)
        assert "\n" not in str(error.value)
    assert forwards(model) == before


def test_a_plan_for_another_number_of_steps_runs_in_full_and_for_its_own_as_planned():
    pipe = enable_delta_cache(pixel(), DeltaCacheConfig(plan=DeltaPlan.of(BLOCKS, [None, Reuse(0, 2)])))
    for _ in range(2):
        assert torch.equal(draw(pipe), draw(pixel()))
    assert delta_cache_stats(pipe).reuse_calls == 0
    assert torch.equal(
        draw(pipe, num_inference_steps=2), cached(pixel(), pipe.transformer._cache_config, num_inference_steps=2)[0]
    )
    assert delta_cache_stats(pipe).reuse_calls == 1


def test_hooks_that_fail_to_install_are_rolled_back(monkeypatch):
    pipe = Pipe(dit(), transformer_2=dit())
    before = forwards(pipe.transformer), forwards(pipe.transformer_2)
    register = HookRegistry.register_hook
    countdown = iter(range(BLOCKS + 4))  # the third block of the second transformer

    def fail(*arguments):
        if next(countdown, None) is None:
            raise Trouble
        register(*arguments)

    monkeypatch.setattr(HookRegistry, "register_hook", fail)
    with pytest.raises(Trouble):
        enable_delta_cache(pipe)
    monkeypatch.undo()
    assert (forwards(pipe.transformer), forwards(pipe.transformer_2)) == before
    enable_delta_cache(pipe)


def test_enabling_again_is_harmless_and_another_config_replaces_the_first():
    pipe = enable_delta_cache(pixel(), FAST)
    draw(pipe)
    hooks = forwards(pipe.transformer)
    enable_delta_cache(pipe, DeltaCacheConfig(speedup=FAST.speedup))
    assert forwards(pipe.transformer) == hooks and delta_cache_stats(pipe).calls == STEPS
    enable_delta_cache(pipe, PAPER)
    assert pipe.transformer._cache_config == PAPER and delta_cache_stats(pipe).calls == 0
    assert torch.equal(draw(pipe), cached(pixel(), PAPER)[0])
    with pytest.raises(ValueError, match="the plan is for 5 blocks"):
        enable_delta_cache(pipe, DeltaPlan.of(BLOCKS + 1, [None] * STEPS))
    assert pipe.transformer._cache_config == PAPER and delta_cache_stats(pipe).calls == STEPS
    disable_delta_cache(pipe)
    assert torch.equal(draw(pipe), draw(pixel()))


def test_after_a_with_block_an_outer_cache_is_back():
    pipe = enable_delta_cache(pixel(), FAST)
    expected = draw(pipe)
    with delta_cache(pipe, PAPER):
        assert torch.equal(draw(pipe), cached(pixel(), PAPER)[0])
    assert torch.equal(draw(pipe), expected) and delta_cache_stats(pipe).calls == 2 * STEPS
    with delta_cache(pipe, FAST):
        draw(pipe)
    assert delta_cache_stats(pipe).calls == 3 * STEPS


def test_a_cache_of_another_kind_is_refused():
    pipe = enable_delta_cache(Pipe(flux()), FAST)
    with pytest.raises(ValueError, match=r"already been enabled with .*DeltaCacheConfig"):
        pipe.transformer.enable_cache(FirstBlockCacheConfig())  # by diffusers itself
    disable_delta_cache(pipe)

    pipe.transformer.enable_cache(FirstBlockCacheConfig())
    before = forwards(pipe.transformer)
    with pytest.raises(ValueError, match="already has a cache, FBC"):
        enable_delta_cache(pipe, FAST)
    assert forwards(pipe.transformer) == before
    pipe.transformer.disable_cache()
    enable_delta_cache(pipe, FAST)

    other = Pipe(flux())
    apply_first_block_cache(other.transformer, FirstBlockCacheConfig())  # without a trace in the model's attributes
    with pytest.raises(ValueError, match="already has a cache, FBC"):
        enable_delta_cache(other, FAST)


def test_two_transformers_have_a_cache_each():
    """As in Wan 2.2: one for high noise, one for low noise."""
    pipe = enable_delta_cache(Pipe(dit(), transformer_2=dit()), PAPER)
    calls = [attention_calls(pipe.transformer), attention_calls(pipe.transformer_2)]
    ran = []
    pipe.scheduler.set_timesteps(STEPS)
    with torch.no_grad():
        for step, t in enumerate(pipe.scheduler.timesteps):
            for each in calls:
                each.clear()
            model = pipe.transformer if step < 3 else pipe.transformer_2
            model(latents(step), t.expand(2), class_labels=torch.tensor([0, 1]))
            ran.append(tuple(len(each) for each in calls))
    full, reuse = BLOCKS, BLOCKS - 3
    assert ran[:3] == [(full, 0), (reuse, 0), (full, 0)]
    assert ran[3:] == [(0, full), (0, full), (0, reuse), (0, full), (0, reuse)]
    stats = delta_cache_stats(pipe)
    assert stats.calls == STEPS and stats.blocks_total == STEPS * BLOCKS
    assert stats.blocks_run == sum(sum(each) for each in ran) and stats.reuse_calls == 3
    assert stats.block_speedup == stats.blocks_total / stats.blocks_run
    disable_delta_cache(pipe)
    assert not any(hasattr(module, "_diffusers_hook") for module in pipe.transformer_2.modules())


# Together with other hooks


class Louder(ModelHook):
    """Another hook, which runs the inner forward and changes what it gives."""

    def new_forward(self, module, *args, **kwargs):
        return self.fn_ref.original_forward(*args, **kwargs) * 1.01


class Offset(ModelHook):
    """Another hook without a forward of its own."""

    def post_forward(self, module, output):
        return output + 0.5


@pytest.mark.parametrize("hook", [Louder, Offset])
def test_a_hook_that_came_after_ours_outlives_it(hook):
    def hooked(pipe):
        block = pipe.transformer.transformer_blocks[1]
        HookRegistry.check_if_exists_or_initialize(block).register_hook(hook(), "other")
        return pipe

    expected = draw(hooked(pixel()))
    assert not torch.equal(expected, draw(pixel()))
    pipe = hooked(enable_delta_cache(pixel(), NOTHING))
    assert torch.equal(draw(pipe), expected)
    disable_delta_cache(pipe)
    assert torch.equal(draw(pipe), expected)
    enable_delta_cache(pipe, FAST)  # above the other
    expected_fast = draw(pipe)
    assert not torch.equal(expected_fast, expected) and not delta_cache_stats(pipe).fallbacks
    disable_delta_cache(pipe)
    assert torch.equal(draw(pipe), expected)
    pipe.transformer.transformer_blocks[1]._diffusers_hook.remove_hook("other")
    assert torch.equal(draw(pipe), draw(pixel()))


class Skip(ModelHook):
    """What layer-skipping guidance does."""

    def new_forward(self, module, hidden_states, *args, **kwargs):
        return hidden_states


@pytest.mark.parametrize("skipped", [[0], [1, 2], [3]])
def test_blocks_that_another_hook_skips(skipped):
    """Δ is added by the first block of the range that is called at all."""

    def hooked(pipe):
        for number in skipped:
            registry = HookRegistry.check_if_exists_or_initialize(pipe.transformer.transformer_blocks[number])
            registry.register_hook(Skip(), "skip")
        return pipe

    config = DeltaCacheConfig(plan=DeltaPlan.of(BLOCKS, [None, Reuse(0, 4)] * (STEPS // 2)))
    outer, inner = hooked(enable_delta_cache(pixel(), config)), enable_delta_cache(hooked(pixel()), config)
    torch.testing.assert_close(draw(outer), draw(inner))
    assert not delta_cache_stats(outer).fallbacks


def bypass(model):
    for block in list(model.transformer_blocks)[1:3]:
        HookRegistry.check_if_exists_or_initialize(block).register_hook(Skip(), "other")


def unhook(model):
    """Remove a hook from below ours, by which diffusers 0.42 loses ours."""
    model.transformer_blocks[2]._diffusers_hook.remove_hook("other")


@pytest.mark.parametrize("change", [bypass, unhook])
def test_when_other_hooks_change_which_blocks_are_called_the_call_is_made_again_in_full(change):
    models = [dit(), dit()]
    if change is unhook:
        for model in models:
            HookRegistry.check_if_exists_or_initialize(model.transformer_blocks[2]).register_hook(Louder(), "other")
    plan = DeltaPlan.of(BLOCKS, [None, *[Reuse(0, 3)] * 3])
    pipe, plain = enable_delta_cache(Pipe(models[0]), DeltaCacheConfig(plan=plan)), models[1]
    pipe.scheduler.set_timesteps(plan.steps)
    labels = torch.tensor([0, 1])
    with torch.no_grad():
        for step, t in enumerate(pipe.scheduler.timesteps):
            if step == 1:
                change(models[0]), change(models[1])
            output = pipe.transformer(latents(step), t.expand(2), class_labels=labels).sample
            expected = plain(latents(step), t.expand(2), class_labels=labels).sample
            assert torch.equal(output, expected) == (step < 3)
    stats = delta_cache_stats(pipe)  # what the third step records, the fourth reuses
    assert stats.fallbacks == {"other hooks changed which blocks are called": 1, "no Δ was recorded yet": 1}
    assert stats.reuse_calls == 1


@pytest.mark.parametrize("first", ["ours", "accelerate"])
def test_offloading_by_accelerate_which_pipelines_renew_after_every_generation(first):
    expected, uncached = cached(pixel(), FAST)[0], draw(pixel())
    pipe = pixel()
    moved = []

    def offload():
        cpu_offload_with_hook(pipe.transformer, "cpu")
        move = pipe.transformer._hf_hook.pre_forward
        pipe.transformer._hf_hook.pre_forward = lambda *a, **k: moved.append(1) or move(*a, **k)

    if first == "accelerate":
        offload()
    enable_delta_cache(pipe, FAST)
    if first == "ours":
        offload()
    for _ in range(2):
        assert torch.equal(draw(pipe), expected)
        accelerate.hooks.remove_hook_from_module(pipe.transformer, recurse=True)
        offload()
    assert len(moved) == 2 * STEPS and not delta_cache_stats(pipe).fallbacks
    disable_delta_cache(pipe)
    assert torch.equal(draw(pipe), uncached) and len(moved) == 3 * STEPS
    accelerate.hooks.remove_hook_from_module(pipe.transformer, recurse=True)
    assert torch.equal(draw(pipe), uncached) and len(moved) == 3 * STEPS


# torch.compile


def compile_forwards(pipe, backend):
    for block in pipe.transformer.transformer_blocks:
        block.forward = torch.compile(block.forward, backend=backend, fullgraph=True)


def compile_blocks(pipe, backend):
    for block in pipe.transformer.transformer_blocks:
        block.compile(backend=backend)


def compile_whole(pipe, backend):
    pipe.transformer = torch.compile(pipe.transformer, backend=backend)


@pytest.mark.parametrize(
    "recipe, first",
    [(compile_forwards, True), (compile_blocks, False), (compile_whole, False)],
)
def test_compilation_happens_once_and_changes_nothing(recipe, first):
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()
    expected = cached(pixel(), FAST)[0]
    pipe = pixel()
    if first:
        recipe(pipe, counter)
    enable_delta_cache(pipe, FAST)
    if not first:
        recipe(pipe, counter)
    assert torch.equal(draw(pipe), expected)
    compiled = counter.frame_count
    assert 1 <= compiled <= (6 if torch.__version__ >= (2, 10) else 2 * BLOCKS + 2)  # older ones compile every block
    assert torch.equal(draw(pipe), expected) and torch.equal(draw(pipe), expected)
    draw(pipe, num_inference_steps=2 * STEPS)
    assert counter.frame_count == compiled and not delta_cache_stats(pipe).fallbacks
    disable_delta_cache(pipe)
    draw(pipe)


def test_one_graph_around_our_hooks_is_refused_with_what_to_do():
    torch._dynamo.reset()
    pipe = enable_delta_cache(Pipe(flux(), FlowMatchEulerDiscreteScheduler()), FAST)
    pipe.transformer.compile_repeated_blocks(fullgraph=True, backend="eager")
    with pytest.raises(RuntimeError, match=r"instead of compile_repeated_blocks\(fullgraph=True\)") as error:
        sample_flow(pipe)
    assert "\n" not in str(error.value)


# patch_diffusers


@pytest.fixture
def patched():
    patch_diffusers()
    yield
    unpatch_diffusers()


@pytest.mark.parametrize("make", [dit, sd3, flux])
def test_enable_cache_of_diffusers_takes_our_config(patched, make):
    model = make()
    patch_diffusers()  # again
    assert not model.is_cache_enabled
    model.disable_cache()  # nothing to do
    model.enable_cache(BARE)
    assert model.is_cache_enabled
    model.enable_cache(BARE)  # again
    with pytest.raises(ValueError, match=r"already been enabled|allowed: DeltaCacheConfig"):
        model.enable_cache(FirstBlockCacheConfig())
    assert delta_cache_stats(model).calls == 0
    model.disable_cache()
    assert not model.is_cache_enabled
    with pytest.raises(ValueError, match="no delta cache"):
        delta_cache_stats(model)


def test_enable_cache_gives_the_same_as_our_own_function(patched):
    expected = sample_ddim(enable_delta_cache(dit(), BARE), 0)
    model = dit()
    model.enable_cache(BARE)
    assert torch.equal(sample_ddim(model, 0), expected)


def test_the_caches_of_diffusers_still_work(patched):
    model = flux()
    model.enable_cache(FirstBlockCacheConfig())
    assert model.is_cache_enabled
    with pytest.raises(ValueError, match="already has a cache"):
        model.enable_cache(BARE)
    model.disable_cache()
    assert not model.is_cache_enabled
    with pytest.raises(ValueError, match="SD3Transformer2DModel has no FirstBlockCacheConfig; allowed: Delta"):
        sd3().enable_cache(FirstBlockCacheConfig())


def test_unpatching_undoes_exactly():
    classes = [diffusers.CacheMixin, DiTTransformer2DModel, SD3Transformer2DModel, FluxTransformer2DModel]
    before = [dict(vars(each)) for each in classes]
    patch_diffusers()
    assert [dict(vars(each)) for each in classes] != before
    unpatch_diffusers()
    unpatch_diffusers()
    assert [dict(vars(each)) for each in classes] == before
