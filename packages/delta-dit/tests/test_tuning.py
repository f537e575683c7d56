"""How foreign caches get their settings: within an allowance, near the wanted cost, on whichever steps are better."""

import pytest

from delta_dit.commands.annealed_mask import anneal
from delta_dit.commands.foreign import Dial, Setting
from delta_dit.commands.methods import Method, macs
from delta_dit.commands.module_caches import LONGEST, measured, skips_of
from delta_dit.commands.peers import PEERS
from delta_dit.commands.tuning import Ground, Outcome, Tuning, best, bisect
from delta_dit.moved_steps import Spacing

STEPS = 8


def outcome(cost, psnr):
    return Outcome(Method("x", STEPS), "", cost, psnr)


def test_bisect_finds_where_a_dial_reaches_the_cost():
    tried = []

    def attempt(setting):
        tried.append(8 / (1 + setting.knobs["x"] / 2))
        return tried[-1]

    dial = Dial(lambda x: Setting({"x": x}, lambda pipe, steps: None))
    bisect(dial, 5.0, attempt)
    assert tried[-1] == pytest.approx(5.0, abs=0.03)
    begun = len(tried)
    bisect(dial, 5.0, lambda setting: attempt(setting) if len(tried) < begun + 3 else None)
    assert len(tried) == begun + 3


def test_the_best_is_near_the_cost_and_else_the_nearest_that_saves():
    near, better, far = outcome(5.1, 30.0), outcome(4.9, 31.0), outcome(7.0, 40.0)
    assert best([near, better, far], 5.0, STEPS) is better
    assert best([far, outcome(8.0, 100.0)], 5.0, STEPS) is far
    with pytest.raises(ValueError, match="5 full steps"):
        best([], 5.0, STEPS)


@pytest.mark.parametrize("name", ["FirstBlockCache", "SmoothCache-like"])
def test_no_more_is_drawn_than_allowed(name, sampler):
    tuning = Tuning(sampler, STEPS, None, allowance=4, batch=4)
    found, spent = tuning.of_peer(name, PEERS[name], [Ground(STEPS)], 5.0)
    measuring = 8 if name == "SmoothCache-like" else 0  # it measures before anything is tried
    assert spent <= 4 + measuring and found.setting and found.cost < STEPS
    cost = STEPS * macs(found.method, sampler) / macs(Method("uncached", STEPS), sampler)
    assert found.cost == pytest.approx(cost, rel=0.3)  # of a cache that decides while it runs it depends on the samples


def test_the_better_steps_win_where_exact_images_are_to_be_met(sampler):
    def nothing(*wanted):
        return [Setting({"nothing": True}, lambda pipe, steps: None)]

    own, moved = Ground(STEPS), Ground(STEPS, Spacing.of(sampler.pipe.scheduler, 0.6))
    tuning = Tuning(sampler, STEPS, 32, allowance=40, batch=1)
    alone = [tuning.of_peer("nothing", nothing, [ground], STEPS)[0] for ground in (own, moved)]
    both, spent = tuning.of_peer("nothing", nothing, [own, moved], STEPS)
    assert both.psnr == max(found.psnr for found in alone) > min(found.psnr for found in alone)
    assert alone[1].setting == "8 moved steps, nothing True" and alone[1].method.moved is not None
    assert spent == 32 / STEPS + 2  # the reference, and one run on each


def test_a_mask_of_whole_steps_costs_what_was_wanted(sampler):
    tuning = Tuning(sampler, STEPS, None, allowance=16, batch=1)
    found, spent = tuning.of_mask("annealed-mask", [Ground(STEPS)], 5.0)
    assert spent <= 17 and set(found.setting) == {"F", "."} and len(found.setting) == STEPS
    cost = STEPS * macs(found.method, sampler) / macs(Method("uncached", STEPS), sampler)
    assert found.cost == pytest.approx(cost) and cost <= 5.0


def test_annealing_finds_the_best_of_few_masks():
    weights = [0, 5, 1, 4, 2, 3, 7, 6]
    tried = []

    def quality(mask):
        tried.append(mask)
        return -sum(weight for weight, reused in zip(weights, mask) if reused)

    mask, db = anneal(8, 3, quality, lambda: len(tried) / 30)
    assert [step for step in range(8) if mask[step]] == [2, 4, 5] and db == -6
    assert len(tried) == len(set(tried)) <= 31


def test_modules_are_reused_while_they_change_by_less_than_the_threshold():
    change = {(before, step): 0.1 * (step - before) for before in range(12) for step in range(before + 1, 12)}
    reused = {step for step, _ in skips_of({"a": change}, 12, 0.25)}
    assert reused == {1, 2, 4, 5, 7, 8, 10, 11}
    reused = {step for step, _ in skips_of({"a": change}, 12, 100)}
    assert reused == {*range(1, 1 + LONGEST), *range(2 + LONGEST, 12 - 1), 11} - {10}


def test_every_attention_and_mlp_is_measured(sampler):
    changes = measured(sampler, STEPS)
    kinds = ("attn1", "ff")
    assert sorted(changes) == sorted(f"transformer_blocks.{block}.{kind}" for block in range(4) for kind in kinds)
    pairs = {(before, step) for step in range(STEPS) for before in range(max(0, step - LONGEST), step)}
    assert all(set(change) == pairs and min(change.values()) > 0 for change in changes.values())
