"""What the cache cannot do costs full steps that are counted and explained, and never an image."""

import copy
import warnings

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from diffusers.hooks import (
    FirstBlockCacheConfig,
    PyramidAttentionBroadcastConfig,
    apply_first_block_cache,
    apply_pyramid_attention_broadcast,
)
from tiny_diffusers import (
    BARE,
    BLOCKS,
    FAST,
    PAPER,
    PROMPTS,
    STEPS,
    Pipe,
    cached,
    dit,
    draw,
    flux,
    guided,
    latents,
    pixel,
    sample_flow,
    sd3,
)

from delta_dit import (
    DeltaCacheConfig,
    DeltaPlan,
    delta_cache,
    delta_cache_stats,
    delta_cache_summary,
    enable_delta_cache,
)
from delta_dit.delta_plan import Reuse
from delta_dit.schedules import generic

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

ALL = DeltaCacheConfig(plan=DeltaPlan.of(BLOCKS, [None, Reuse(0, BLOCKS)] * (STEPS // 2)))
LINEAR = DeltaCacheConfig(plan=DeltaPlan.of(BLOCKS, [None, None, *[Reuse(0, 4, 1), None] * 2, Reuse(0, 4, 1), None]))


def told(work):
    """Return what was warned of, by line."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        work()
    return [str(warning.message) for warning in caught if "delta cache" in str(warning.message)]


def deltas(model):
    """Return the Δs that a transformer's cache holds in this thread."""
    cache = model._diffusers_hook.get_hook("delta_cache_root").caches.cache
    return [delta for branch in cache.branches for record in branch.records.values() for delta in record.deltas]


# No plan


@pytest.mark.parametrize(
    "config, steps, reason",
    [
        (FAST, 1, "no plan: speedup=2.0 is not possible"),
        (DeltaCacheConfig(speedup=2.5), 2, "no plan: speedup=2.5 is not possible"),
        (DeltaCacheConfig(plan=generic(5, BLOCKS, 1.6)), STEPS, "no plan: the plan is for 5 steps"),
        (DeltaCacheConfig(schedule="paper", early_steps=7), 6, "no plan: early_steps=7 is not possible"),
    ],
)
def test_a_number_of_steps_without_a_plan_runs_in_full(config, steps, reason):
    pipe = enable_delta_cache(pixel(), config)
    messages = told(lambda: draw(pipe, num_inference_steps=steps))
    assert torch.equal(draw(pipe, num_inference_steps=steps), draw(pixel(), num_inference_steps=steps))
    [(found, count)] = delta_cache_stats(pipe).fallbacks.items()
    assert found.startswith(reason) and count == 2 * steps
    assert len(messages) == 1 and reason in messages[0] and "\n" not in messages[0]


def test_after_a_warm_up_of_one_step_the_run_is_as_planned():
    pipe = enable_delta_cache(pixel(), FAST)
    draw(pipe, num_inference_steps=1)
    assert torch.equal(draw(pipe), cached(pixel(), FAST)[0])
    assert delta_cache_stats(pipe).reuse_calls == STEPS // 2


# A cost is a promise


def test_rising_timesteps_are_noise_levels_upside_down():
    plan = DeltaPlan(BLOCKS, FAST.plan_for(STEPS, BLOCKS).actions, tuple(1 - i / STEPS for i in range(STEPS)))
    for steps in (STEPS, 2 * STEPS):
        scheduler = FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
        pipe = enable_delta_cache(Pipe(sd3(), scheduler), DeltaCacheConfig(plan=plan))
        scheduler.set_timesteps(steps)
        assert scheduler.timesteps[0] < scheduler.timesteps[-1]
        sample, text, pooled = latents(0, 4), torch.ones(2, 3, 12), torch.ones(2, 10)
        with torch.no_grad():
            for t in scheduler.timesteps:
                output = pipe.transformer(sample, text, pooled, t.expand(2)).sample
                sample = scheduler.step(output, t, sample).prev_sample
        stats = delta_cache_stats(pipe)
        assert stats.block_speedup == 2 and not stats.fallbacks


@pytest.mark.parametrize("mu", [0.5, 0.9, 1.15, 1.6])
def test_dynamic_shifting_does_not_change_the_cost(mu):
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    scheduler.set_timesteps(20, mu=0.7)
    levels = tuple(float(t) / 1000 for t in scheduler.timesteps)
    for speedup in (1.33, 1.6, 2.0, 2.5):
        plan = DeltaPlan(BLOCKS, generic(20, BLOCKS, speedup).actions, levels)
        scheduler.set_timesteps(20, mu=mu)
        carried = plan.resample([float(t) / 1000 for t in scheduler.timesteps])
        assert carried.blocks_run() == plan.blocks_run()


# Whose steps?


def another(pipe, scheduler):
    """A pipeline of the same transformer, with a scheduler of its own."""
    other = copy.copy(pipe)
    other.scheduler = scheduler
    return other


@pytest.mark.parametrize("make", [DPMSolverMultistepScheduler, EulerDiscreteScheduler])
@pytest.mark.parametrize("before", ["nothing", "a run", "a part of one"])
def test_a_scheduler_that_does_not_move_is_a_reason(make, before):
    pipe = enable_delta_cache(pixel(make()), FAST)
    if before == "a run":
        draw(pipe)
    if before == "a part of one":
        pipe.scheduler.set_timesteps(STEPS)
        pipe.scheduler.step(torch.zeros(1), pipe.scheduler.timesteps[0], torch.zeros(1))
    other = another(pipe, make())
    messages = told(lambda: draw(other))
    assert torch.equal(draw(other), draw(pixel(make())))
    assert delta_cache_stats(pipe).fallbacks["the scheduler does not know the step"] >= STEPS
    assert len(messages) == 1 and "enable the cache on that pipeline" in messages[0]


def test_enabling_on_the_other_pipeline_follows_its_scheduler():
    pipe = enable_delta_cache(pixel(), FAST)
    other = another(pipe, DPMSolverMultistepScheduler())
    enable_delta_cache(other, FAST)
    expected = cached(pixel(), FAST)[0]
    assert torch.equal(draw(other), expected)
    enable_delta_cache(pipe, FAST)
    assert torch.equal(draw(pipe), expected)
    with delta_cache(other, FAST):
        assert torch.equal(draw(other), expected)
    assert torch.equal(draw(pipe), expected)
    stats = delta_cache_stats(pipe)
    assert stats.reuse_calls == 2 * STEPS and not stats.fallbacks


def test_requests_that_take_turns_without_names_are_a_reason():
    model = enable_delta_cache(dit(), BARE)
    messages = told(lambda: take_turns(model))
    stats = delta_cache_stats(model)
    assert stats.reuse_calls == 0 and stats.fallbacks["no step of the run was one that reuses"] > STEPS
    assert len(messages) == 1 and "delta_cache_request" in messages[0]


def take_turns(model):
    first, second = DDIMScheduler(), DDIMScheduler()
    first.set_timesteps(STEPS), second.set_timesteps(STEPS + 1)
    with torch.no_grad():
        for pair in zip(first.timesteps, second.timesteps):
            for t in pair:
                model(latents(int(t)), t.expand(2), class_labels=PROMPTS[0])


def test_a_run_that_begins_behind_the_reuse_steps_is_told_once():
    plan = DeltaPlan.of(BLOCKS, [None, Reuse(0, 4), *[None] * (STEPS - 2)])
    pipe = enable_delta_cache(Pipe(dit()), DeltaCacheConfig(plan=plan))

    def late():
        pipe.scheduler.set_timesteps(STEPS)
        with torch.no_grad():
            for t in pipe.scheduler.timesteps[3:]:
                pipe.transformer(latents(0), t.expand(2), class_labels=PROMPTS[0])

    assert len(told(late)) == 1 and told(late) == []


@pytest.mark.parametrize("config", [FAST, PAPER, DeltaCacheConfig(speedup=1.0)])
def test_a_run_as_planned_is_not_worth_a_word(config):
    pipe = enable_delta_cache(pixel(), config)
    assert told(lambda: (draw(pipe), draw(pipe))) == []


# Which call of a step?


def tiles(pipe, order_at, rebuilt=False):
    """Denoise two pictures by the same prompt, in a call each."""
    pipe.scheduler = DDIMScheduler(clip_sample=False)
    pipe.scheduler.set_timesteps(STEPS)
    samples, labels = [latents(0), latents(1)], PROMPTS[0]
    with torch.no_grad():
        for step, t in enumerate(pipe.scheduler.timesteps):
            for tile in order_at(step):
                condition = labels.clone() if rebuilt else labels
                output = pipe.transformer(samples[tile], t.expand(2), class_labels=condition).sample[:, :3]
                samples[tile] = pipe.scheduler.step(output, t, samples[tile]).prev_sample
    return torch.stack(samples)


@pytest.mark.parametrize("rebuilt", [False, True])
def test_calls_alike_but_for_their_pictures_keep_their_deltas_in_any_order(rebuilt):
    uncached = tiles(Pipe(dit()), lambda step: (0, 1))
    straight = tiles(enable_delta_cache(Pipe(dit()), ALL), lambda step: (0, 1))
    pipe = enable_delta_cache(Pipe(dit()), ALL)
    turned = tiles(pipe, lambda step: (0, 1) if step % 2 else (1, 0), rebuilt)
    assert torch.equal(turned, straight) and not torch.equal(turned, uncached)
    assert delta_cache_stats(pipe).reuse_calls == STEPS and not delta_cache_stats(pipe).fallbacks


def test_calls_that_nothing_tells_apart_run_in_full():
    def run(pipe):
        pipe.scheduler.set_timesteps(STEPS)
        with torch.no_grad():
            return [
                pipe.transformer(latents(10 * step + call), t.expand(2), class_labels=PROMPTS[0]).sample
                for step, t in enumerate(pipe.scheduler.timesteps)
                for call in (0, 1)
            ]

    pipe = enable_delta_cache(Pipe(dit()), ALL)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(run(pipe), run(Pipe(dit())), strict=True))
    assert delta_cache_stats(pipe).fallbacks == {"the calls of a step cannot be told apart": STEPS}


def test_conditions_made_anew_at_every_step_are_told_apart_by_value():
    prompts = [torch.tensor([0, 1]), torch.tensor([2, 3])]
    expected = guided(enable_delta_cache(Pipe(dit()), ALL), lambda step: (0, 1), prompts)

    class Rebuilt(list):
        def __getitem__(self, index):
            return super().__getitem__(index).clone()

    pipe = enable_delta_cache(Pipe(dit()), ALL)
    turned = guided(pipe, lambda step: (0, 1) if step % 2 else (1, 0), Rebuilt(prompts))
    assert all(torch.equal(turned[key], expected[key]) for key in expected)
    assert not delta_cache_stats(pipe).fallbacks


def test_the_name_of_a_cache_context_is_the_branch():
    def run(pipe, name_of):
        """Two calls per step that nothing but their names tells apart, in turns."""
        pipe.scheduler.set_timesteps(STEPS)
        inputs = {"encoder_hidden_states": torch.ones(2, 3, 12), "pooled_projections": torch.ones(2, 10)}
        positions = {"img_ids": torch.zeros(16, 3), "txt_ids": torch.zeros(3, 3)}
        with torch.no_grad():
            for step, t in enumerate(pipe.scheduler.timesteps):
                for call in (0, 1) if step % 2 else (1, 0):
                    noise = torch.Generator().manual_seed(2 * step + call)
                    with pipe.transformer.cache_context(name_of(call)):
                        x = torch.randn(2, 16, 16, generator=noise)
                        pipe.transformer(x, timestep=t.expand(2), **inputs, **positions)
                pipe.scheduler.step(torch.zeros(1), t, torch.zeros(1))
        return delta_cache_stats(pipe)

    def pipe():
        return enable_delta_cache(Pipe(flux(), FlowMatchEulerDiscreteScheduler()), ALL)

    named = run(pipe(), lambda call: ("cond", "uncond")[call])
    assert named.reuse_calls == STEPS and not named.fallbacks
    alike = run(pipe(), lambda call: "call")
    assert alike.fallbacks == {"the calls of a step cannot be told apart": STEPS}


# Memory


@pytest.mark.parametrize("config, most", [(ALL, 1), (LINEAR, 2)])
def test_a_delta_is_let_go_after_its_last_use(config, most):
    """Of separate guidance each call has its own."""
    pipe = enable_delta_cache(Pipe(dit()), config)
    pipe.scheduler.set_timesteps(STEPS)
    held = []
    with torch.no_grad():
        for step, t in enumerate(pipe.scheduler.timesteps):
            for labels in PROMPTS:
                pipe.transformer(latents(step), t.expand(2), class_labels=labels)
            held.append(len(deltas(pipe.transformer)))
    assert max(held) == 2 * most and held[-1] == 0
    if most == 1:
        assert held == [2, 0] * (STEPS // 2)
    stats = delta_cache_stats(pipe)
    assert stats.delta_bytes == 2 * most * 2 * 16 * 16 * 4  # (2, 16 tokens, 16 channels) in fp32


def test_nothing_is_held_after_a_generation():
    pipe = enable_delta_cache(pixel(), FAST)
    draw(pipe)
    cache = pipe.transformer._diffusers_hook.get_hook("delta_cache_root").caches.cache
    assert deltas(pipe.transformer) == [] and not any(branch.kept for branch in cache.branches)
    assert delta_cache_stats(pipe).delta_bytes > 0


def test_a_call_that_is_dropped_does_not_hold_its_deltas():
    pipe = enable_delta_cache(Pipe(dit()), ALL)
    held = []  # before each step

    def calls_at(step):
        held.append(len(deltas(pipe.transformer)))
        return (0, 1) if step < 3 else (0,)

    guided(pipe, calls_at)
    assert held == [0, 2, 0, 2, 1, 1, 0, 1]  # at step 4 nobody has come yet


# Other caches


def first_block(model):
    apply_first_block_cache(model, FirstBlockCacheConfig())


def pyramid(model):
    config = PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_block_identifiers=("transformer_blocks",),
        current_timestep_callback=lambda: 500,
    )
    apply_pyramid_attention_broadcast(model, config)


@pytest.mark.parametrize("apply, name", [(first_block, "FBCHeadBlockHook"), (pyramid, "PyramidAttentionBroadcastHook")])
def test_another_cache_put_on_after_ours_is_told_and_has_the_field(apply, name):
    def run():
        pipe.transformer._diffusers_hook.invalidate_child_registries_cache()
        with pipe.transformer.cache_context("call"):
            sample_flow(pipe, separate=True)

    pipe = enable_delta_cache(Pipe(flux(), FlowMatchEulerDiscreteScheduler()), FAST)
    run()
    reused = delta_cache_stats(pipe).reuse_calls
    apply(pipe.transformer)
    messages = told(run)
    assert len(messages) == 1 and name in messages[0] and "put on after" in messages[0]
    stats = delta_cache_stats(pipe)
    assert reused == STEPS and stats.reuse_calls == reused and stats.fallbacks.total() == 2 * STEPS


def test_cache_dit_after_ours_is_told():
    cache_dit = pytest.importorskip("cache_dit")
    pipe = enable_delta_cache(pixel(), FAST)
    config = cache_dit.DBCacheConfig(Fn_compute_blocks=1, num_inference_steps=STEPS)
    cache_dit.enable_cache(pipe.transformer, cache_config=config)
    messages = told(lambda: draw(pipe))
    assert len(messages) == 1 and "another cache" in messages[0]
    assert "reuses nothing: another cache, cache-dit" in str(delta_cache_summary(pipe))
    assert delta_cache_stats(pipe).fallbacks.total() > 0
