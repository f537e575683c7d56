"""The other caches on the same model: what they keep, what they cost, that nothing of them stays behind."""

import numpy as np
import pytest
import torch

from delta_dit.adapters import blocks_of
from delta_dit.commands.feature_cache import features_of
from delta_dit.commands.foreign import Dial
from delta_dit.commands.frechet import frechet_distance
from delta_dit.commands.methods import Method, counted, last_sample, macs
from delta_dit.commands.peers import PEERS
from delta_dit.config import DeltaCacheConfig
from delta_dit.delta_plan import DeltaPlan, Reuse

STEPS = 8


def drawn(sampler, method, seed=0):
    with method.on(sampler):
        return sampler.draw(seed, range(2), steps=method.steps)


def some_setting(sampler, name):
    option = PEERS[name](sampler, STEPS, 1.6)[0]
    return option.setting(0.5) if isinstance(option, Dial) else option


@pytest.mark.parametrize("name", PEERS)
def test_a_foreign_cache_saves_forgets_and_leaves_nothing_behind(name, sampler):
    if name.startswith("DBCache"):
        pytest.importorskip("cache_dit")
    before = drawn(sampler, Method("uncached", STEPS))
    method = Method(name, STEPS, attach=some_setting(sampler, name).attach)
    assert macs(method, sampler) < 0.95 * macs(Method("uncached", STEPS), sampler)
    with method.on(sampler):
        sampler.draw(1, range(2), steps=STEPS)  # another generation, whose state must be gone
        second = sampler.draw(0, range(2), steps=STEPS)
    first = drawn(sampler, method)
    assert torch.equal(first, second)
    assert not torch.equal(first, before)
    assert torch.equal(drawn(sampler, Method("uncached", STEPS)), before)


@pytest.mark.parametrize("name", ["FirstBlockCache", "MagCache", "DBCache", "SmoothCache-like", "InvarDiff-like"])
def test_a_dial_at_its_low_end_is_the_uncached_model(name, sampler):
    if name.startswith("DBCache"):
        pytest.importorskip("cache_dit")
    dial = PEERS[name](sampler, STEPS, 1.6)[0]
    assert isinstance(dial, Dial)
    closed = drawn(sampler, Method(name, STEPS, attach=dial.setting(1e-9).attach))
    torch.testing.assert_close(closed, drawn(sampler, Method("uncached", STEPS)), atol=1e-5, rtol=0)


def test_the_naive_cache_gives_the_same_output_whatever_went_into_the_range(sampler):
    """With all blocks in the range, a reuse step repeats the last full step's tokens; Δ-DiT's depend on the input."""
    config = DeltaCacheConfig(schedule="front", interval=2, cached_blocks=4)
    outputs = {}
    for name, method in {
        "naive": Method("naive", STEPS, attach=features_of(config.plan_for(STEPS, 4))),
        "delta": Method("delta", STEPS, config),
    }.items():
        seen = outputs[name] = []
        with method.on(sampler):
            model = sampler.pipe.transformer
            hook = model.norm_out.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0].clone()))
            sampler.draw(0, range(2), steps=STEPS)
            hook.remove()
    assert torch.equal(outputs["naive"][2], outputs["naive"][3])
    assert not torch.equal(outputs["delta"][2], outputs["delta"][3])


def test_features_are_forecast_as_deltas_are(sampler):
    """a·o_s + b·o_p of the outputs that the last two full steps gave; held in the first reuse, with one alone."""
    reuses = [None, None, Reuse(0, 4, order=1, weights=(1.25, -0.5)), *[None] * (STEPS - 3)]
    method = Method("features", STEPS, attach=features_of(DeltaPlan.of(4, reuses)))
    seen = []
    with method.on(sampler):
        model = sampler.pipe.transformer
        model.norm_out.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
        sampler.draw(0, range(2), steps=STEPS)
    torch.testing.assert_close(seen[2], 1.25 * seen[1] - 0.5 * seen[0])


def test_the_naive_cache_costs_what_delta_costs(sampler):
    config = DeltaCacheConfig(schedule="paper", interval=2, cached_blocks=3)
    naive = Method("naive", STEPS, attach=features_of(config.plan_for(STEPS, 4)))
    assert macs(naive, sampler) == macs(Method("delta", STEPS, config), sampler)
    assert macs(naive, sampler) < macs(Method("uncached", STEPS), sampler)


def test_the_copy_shares_the_weights_and_goes_away_after_an_error(sampler):
    model = sampler.pipe.transformer

    def attach(pipe, steps):
        assert pipe.transformer is not model
        assert pipe.transformer.pos_embed.proj.weight is model.pos_embed.proj.weight
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"), Method("bad", STEPS, attach=attach).on(sampler):
        pass
    assert sampler.pipe.transformer is model
    assert len(blocks_of(model)) == 4


def test_macs_are_per_sample(sampler):
    one, images = counted(Method("uncached", STEPS), sampler, 0, range(1))
    three, more = counted(Method("uncached", STEPS), sampler, 0, range(3))
    assert one == three and len(images) == 1 and len(more) == 3
    assert counted(Method("fewer", STEPS // 2), sampler, 0, range(1))[0] == one / 2


def test_last_sample_is_what_the_images_are_made_of(sampler):
    with last_sample(sampler.pipe.scheduler) as last:
        images = sampler.draw(0, range(2), steps=STEPS)
    assert torch.equal((last[0] / 2 + 0.5).clamp(0, 1), images)
    assert "step" not in vars(sampler.pipe.scheduler)


def test_frechet_distance_of_gaussians_in_closed_form():
    """Of N(0, 1) and N(m, s²) in each of D independent dimensions it is D·(m² + (s − 1)²)."""
    random = np.random.default_rng(0)
    standard, other = random.standard_normal((40_000, 3)), 2 + 1.5 * random.standard_normal((40_000, 3))
    assert frechet_distance(other, standard) == pytest.approx(3 * (4 + 0.25), rel=0.02)
    assert frechet_distance(standard, standard) == pytest.approx(0, abs=1e-6)
