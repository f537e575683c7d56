"""A server's own loop on a bare transformer: requests take turns, and each is as if it were alone."""

import threading

import pytest
import torch
from diffusers import DDIMScheduler
from tiny_diffusers import BLOCKS, PROMPTS, dit, latents

from delta_dit import (
    DeltaCacheConfig,
    DeltaPlan,
    delta_cache_request,
    delta_cache_stats,
    enable_delta_cache,
    end_delta_cache_request,
)
from delta_dit.caches import Caches
from delta_dit.schedules import generic

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

SERVED = DeltaCacheConfig(speedup=2.0, num_inference_steps=8)


class Request:
    """A picture in the making."""

    def __init__(self, name, steps, seed):
        self.name, self.steps, self.step = name, steps, 0
        self.scheduler = DDIMScheduler(clip_sample=False)
        self.scheduler.set_timesteps(steps)
        self.sample = latents(seed)

    @property
    def done(self):
        return self.step == self.steps

    def advance(self, model, **hint):
        t = self.scheduler.timesteps[self.step]
        with torch.no_grad(), delta_cache_request(model, self.name, **hint):
            cond, uncond = (model(self.sample, t.expand(2), class_labels=labels).sample[:, :3] for labels in PROMPTS)
        self.sample = self.scheduler.step(2 * cond - uncond, t, self.sample).prev_sample
        self.step += 1


def by_steps(request):
    return {"steps": request.steps, "step": request.step}


def by_counting(request):
    return {"steps": request.steps}


def by_sigmas(request):
    return {"sigmas": [1 - i / request.steps for i in range(request.steps)] + [0.0], "step": request.step}


def serve(model, requests, hint):
    """Give each request a step in turn."""
    while any(not request.done for request in requests):
        for request in requests:
            if not request.done:
                request.advance(model, **hint(request))
    return [request.sample for request in requests]


@pytest.mark.parametrize("hint", [by_steps, by_counting, by_sigmas])
def test_requests_that_take_turns_are_as_if_alone(hint):
    sizes = [("a", 8, 0), ("b", 8, 1), ("c", 5, 2)]  # two side by side, one with other steps
    alone = [serve(enable_delta_cache(dit(), SERVED), [Request(*size)], hint)[0] for size in sizes]
    model = enable_delta_cache(dit(), SERVED)
    together = serve(model, [Request(*size) for size in sizes], hint)
    assert all(torch.equal(ours, right) for ours, right in zip(together, alone, strict=True))
    stats = delta_cache_stats(model)
    planned = sum(2 * generic(steps, BLOCKS, 2.0).blocks_run() for _, steps, _ in sizes)
    assert stats.blocks_run == planned and not stats.fallbacks
    uncached = serve_plain(dit(), Request("a", 8, 0))
    assert not torch.equal(together[0], uncached)


def serve_plain(model, request):
    while not request.done:
        t = request.scheduler.timesteps[request.step]
        with torch.no_grad():
            cond, uncond = (model(request.sample, t.expand(2), class_labels=each).sample[:, :3] for each in PROMPTS)
        request.sample = request.scheduler.step(2 * cond - uncond, t, request.sample).prev_sample
        request.step += 1
    return request.sample


def test_a_request_may_change_threads():
    alone = serve(enable_delta_cache(dit(), SERVED), [Request("a", 8, 0)], by_steps)[0]
    model, request = enable_delta_cache(dit(), SERVED), Request("a", 8, 0)
    while not request.done:
        thread = threading.Thread(target=request.advance, args=(model,), kwargs=by_steps(request))
        thread.start()
        thread.join()
    assert torch.equal(request.sample, alone) and not delta_cache_stats(model).fallbacks


def test_a_plan_is_carried_over_to_the_sigmas_of_the_request():
    levels = tuple(1 - i / 8 for i in range(8))
    plan = DeltaPlan(BLOCKS, generic(8, BLOCKS, 2.0).actions, levels)
    model = enable_delta_cache(dit(), DeltaCacheConfig(plan=plan, num_inference_steps=8))
    serve(model, [Request("long", 16, 0)], by_sigmas)
    assert delta_cache_stats(model).block_speedup == 2 and not delta_cache_stats(model).fallbacks
    serve(model, [Request("unknown", 16, 0)], by_steps)  # without noise levels there is no plan for 16 steps
    assert delta_cache_stats(model).fallbacks.total() == 2 * 16


def served_by(model) -> Caches:
    return model._diffusers_hook.get_hook("delta_cache_root").caches


def test_requests_are_forgotten_when_they_are_done_or_ended():
    model = enable_delta_cache(dit(), SERVED)
    done, dropped = Request("done", 8, 0), Request("dropped", 8, 1)
    for _ in range(8):
        done.advance(model, **by_steps(done))
    for _ in range(3):
        dropped.advance(model, **by_steps(dropped))
    assert list(served_by(model)._requests) == ["dropped"]
    end_delta_cache_request(model, "dropped")
    end_delta_cache_request(model, "never heard of")
    assert not served_by(model)._requests
    assert delta_cache_stats(model).calls == 2 * (8 + 3)


@pytest.mark.parametrize(
    "hint, message",
    [
        ({}, "steps=None and sigmas=None; allowed: one of them"),
        ({"steps": 4, "sigmas": [1.0]}, "allowed: one of them"),
        ({"steps": 0}, "of 0 steps is not possible"),
        ({"steps": 4, "step": 4}, "step=4 of 4 steps is not possible"),
        ({"sigmas": [14.6, 3.0]}, "are no noise levels; allowed: from 0 to 1"),
    ],
)
def test_a_wrong_hint_is_told_in_one_line(hint, message):
    with pytest.raises(ValueError, match=message), delta_cache_request(enable_delta_cache(dit(), SERVED), "a", **hint):
        pass


def test_without_a_cache_there_are_no_requests():
    with pytest.raises(ValueError, match="no delta cache is enabled"), delta_cache_request(dit(), "a", steps=4):
        pass
