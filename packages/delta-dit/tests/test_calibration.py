"""The sketches know the error of any reuse; recording changes nothing; the calibration survives its file."""

import json
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DiTTransformer2DModel, DPMSolverMultistepScheduler, HeunDiscreteScheduler
from safetensors.torch import save_file

from delta_dit import (
    Calibration,
    Trial,
    calibrate,
    delta_cache,
    delta_cache_stats,
    disable_delta_cache,
    enable_delta_cache,
)
from delta_dit.adapters import blocks_of
from delta_dit.commands.cli import main
from delta_dit.commands.models import Sampler, open_gates
from delta_dit.delta_plan import DeltaPlan, Reuse
from delta_dit.embedded.dit import build_dit
from delta_dit.embedded.pixel import PixelDiTPipeline
from delta_dit.moved_steps import Spacing
from delta_dit.planning.calibration import ENTRY, REFERENCE, SCHEMA, generations, measure, probe_count
from delta_dit.planning.convergence import Convergence
from delta_dit.planning.draws import Draws, drawn_from
from delta_dit.planning.error_model import ErrorModel
from delta_dit.planning.fidelity import psnr
from delta_dit.planning.recorder import SKETCH_SIZE, TOKENS, recording, sketch
from delta_dit.planning.trial import first_that_differs

STEPS, BLOCKS, SEED = 5, 3, 1000
ABOUT = {"model": "tiny", "steps": STEPS, "guidance": 1.5, "seed": SEED, "class_labels": [0, 1, 2, 3]}


def tiny(scheduler=None) -> Sampler:
    """Return a sampler of a random model: 3 blocks, 8×8 pixels, 4 classes."""
    torch.manual_seed(0)
    transformer = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=3, num_layers=BLOCKS, sample_size=8, patch_size=2,
        num_embeds_ada_norm=4,
    )  # fmt: skip
    open_gates(transformer)
    kept = {"prediction_type": "sample", "beta_schedule": "squaredcos_cap_v2"}
    scheduler = scheduler or DPMSolverMultistepScheduler(lambda_min_clipped=-5.1, **kept)
    pipe = PixelDiTPipeline(transformer.eval(), scheduler)
    pipe.set_progress_bar_config(disable=True)
    return Sampler("tiny", pipe, [0, 1, 2, 3], "class_labels", steps=STEPS, guidance=1.5)


@cache
def measured(batch_size: int = 4) -> Calibration:
    sampler = tiny()
    batches = [range(start, start + batch_size) for start in range(0, 4, batch_size)]
    draws = drawing(sampler, SEED, batches)
    return measure(draws, draws.first([range(1)]), STEPS, about=ABOUT)


def drawing(sampler: Sampler, seed: int, batches: list[range]) -> Draws:
    return Draws(sampler.pipe, lambda batch, steps: sampler.draw(seed, batch, steps=steps), batches)


def trial_of(seed: int, samples: int, **options) -> Trial:
    return Trial.of(drawing(tiny(), seed, [range(samples)]), **options)


def hooks(pipe) -> list:
    modules = [pipe.transformer, *(block.module for block in blocks_of(pipe.transformer))]
    return [hook for module in modules for hook in (*module._forward_hooks, *module._forward_pre_hooks)]


def test_sketch_keeps_norms_and_products_of_tokens_on_average() -> None:
    random = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 64, 37, 96, generator=random)
    x[..., 5] *= 30  # a loud channel, as real models have
    y = y + 0.5 * x
    exact, sketched = (x * y).sum(2).mean(), (sketch(x) * sketch(y)).sum(2)
    assert sketched.shape == (64, TOKENS)
    assert sketched.mean().item() == pytest.approx(exact.item(), rel=0.1)
    assert torch.equal(sketch(x), sketch(x))
    torch.testing.assert_close(sketch(x) + sketch(y), sketch(x + y), rtol=1e-4, atol=1e-2)
    few = sketch(x[:, :3])  # some tokens twice
    assert few.shape == (64, TOKENS, SKETCH_SIZE)


def test_recording_changes_no_image_and_leaves_no_hook() -> None:
    sampler = tiny()
    plain = sampler.draw(0, range(4))
    with recording(sampler.pipe) as recorder:
        assert torch.equal(sampler.draw(0, range(4)), plain)
        assert recorder.take(4).shape == (4, STEPS, 1 + BLOCKS, 2 * TOKENS, SKETCH_SIZE)
    assert hooks(sampler.pipe) == []


def test_sketched_error_of_a_range_is_its_true_error_across_the_state() -> None:
    sampler, calls = tiny(), []
    blocks = sampler.pipe.transformer.transformer_blocks
    blocks[1].register_forward_pre_hook(lambda _, args: calls.append(args[0].clone()))
    blocks[2].register_forward_hook(lambda _, args, out: calls.append(out.clone()))
    sampler.draw(SEED, range(4))
    states = calls[1::2]
    delta = [out - start for start, out in zip(calls[::2], states, strict=True)]  # of blocks 1 and 2, per step

    def seen(error: torch.Tensor, step: int) -> float:
        direction = torch.nn.functional.normalize(states[step], dim=-1)
        across = error - direction * (direction * error).sum(-1, keepdim=True)
        return (across / states[step].norm(dim=-1, keepdim=True)).square().sum(-1).mean().item()

    found = measured()
    model = ErrorModel(found.sketches, found.probes, found.harm)
    model._planes[:] = 0  # weights of 1
    for held, step in [(0, 1), (0, 4), (2, 3)]:
        assert model.error((1, 3), "held")[held, step] == pytest.approx(seen(delta[held] - delta[step], step), rel=0.25)
    line = delta[2] + 2 * (delta[2] - delta[1])
    assert model.error((1, 3), "linear")[1, 2, 4] == pytest.approx(seen(line - delta[4], 4), rel=0.25)


def test_samples_do_not_depend_on_their_batch() -> None:
    whole, halves = measured(), measured(batch_size=2)
    np.testing.assert_allclose(halves.sketches, whole.sketches, rtol=1e-3, atol=1e-3)
    assert halves.levels == whole.levels and halves.about == whole.about


def test_prediction_of_one_reuse_is_its_trial() -> None:
    found = measured()
    trial = trial_of(SEED, samples=1)
    for step in range(1, STEPS):
        once = tuple(Reuse(0, BLOCKS) if i == step else None for i in range(STEPS))
        assert trial(once).mean() == pytest.approx(-10 * np.log10(found.harm[step, 0]), abs=0.01)


def test_a_run_from_its_middle_has_the_bits_of_the_whole() -> None:
    draws = drawing(tiny(), SEED, [range(2), range(2, 3)])
    early, late = Reuse(0, 3), Reuse(0, 2, 1)
    other = draws.plan(BLOCKS, (None, None, early, None, None))
    plan = draws.plan(BLOCKS, (None, None, early, None, late))
    whole, _ = draws.planned(plan, STEPS)
    first = first_that_differs(plan, other)
    begun = draws.evaluations
    continued, _ = draws.planned(plan, STEPS, draws.planned(other, STEPS)[1], first)
    assert first == 1 and torch.equal(continued, whole)
    assert draws.evaluations - begun == pytest.approx(3 * (5 - 1) + 3 * (5 - first - 1 - 2 / 3))
    assert hooks(draws.pipe) == [] and not hasattr(draws.pipe.transformer, "_diffusers_hook")


def test_a_trial_draws_each_plan_once_and_finds_what_a_fresh_one_finds() -> None:
    trial, plans = trial_of(SEED + 1, samples=2), [(None, *rest) for rest in product((None, Reuse(0, 2)), repeat=4)]
    for plan in [*plans, *plans]:
        assert torch.equal(trial(plan), trial_of(SEED + 1, samples=2)(plan)) if plan in plans[::5] else True
        trial(plan)
    assert len(trial.known) == len(plans) and trial.samples == 2
    assert trial((None,) * STEPS).tolist() == [100, 100]


def test_a_trial_forgets_what_it_tried_with_steps_that_lie_elsewhere() -> None:
    trial, plan = trial_of(7, samples=2), (None,) * 4
    own = trial(plan, exact=30)
    spacing = Spacing.of(trial.draws.pipe.scheduler, 0.8)
    trial.space(spacing)
    assert not torch.equal(trial(plan, exact=30), own)
    assert torch.equal(trial(plan, spacing.values(4), exact=30), trial(plan, exact=30))
    trial.space(None)
    assert torch.equal(trial(plan, exact=30), own)


def test_the_exact_images_are_those_of_many_steps() -> None:
    sampler = tiny()
    trial = Trial.of(drawing(sampler, 7, [range(2)]))
    exact, plain = sampler.draw(7, range(2), steps=30), sampler.draw(7, range(2), steps=4)
    assert torch.equal(trial((None,) * 4, exact=30), psnr(plain, exact))


def test_a_plan_has_the_cost_asked_for_and_tells_how_good_it_is() -> None:
    found = measured()
    trial = trial_of(SEED + 1, samples=2)
    predicted, tried = found.plan(speedup=1.6), found.plan(speedup=1.6, trial=trial, evaluations=9)
    for plan in (predicted, tried):
        assert plan.blocks_run() == STEPS * BLOCKS - 6 and plan.levels == found.levels
        assert plan.provenance["model"] == "tiny"
    assert "psnr_db" not in predicted.provenance
    told = tried.provenance
    assert told["psnr_db"] == max(trial(reuses).mean() for reuses, *_ in trial.known)
    assert (told["psnr_samples"], told["plans_tried"]) == (2, len(trial.known)) and len(trial.known) <= 9
    assert told["generations"] > predicted.provenance["generations"]


@pytest.mark.parametrize("objective", ["worst", "median"])
def test_the_objective_decides_between_plans_that_were_tried(objective: str) -> None:
    trial = trial_of(SEED + 1, samples=3)
    told = measured().plan(speedup=1.6, objective=objective, trial=trial, evaluations=12).provenance
    figures = [getattr(db, {"worst": "min", "median": "median"}[objective])() for db in trial.known.values()]
    assert told["psnr_db"] == max(figures) and told["objective"] == objective


def test_a_budget_is_planned_on_the_model_with_steps_of_its_own() -> None:
    sampler = tiny()
    draws = drawing(sampler, SEED, [range(2)])
    draws.spacing = Spacing.of(sampler.pipe.scheduler, 0.5)
    found = replace(measure(draws, draws.first([range(1)]), STEPS, about=ABOUT), convergence=Convergence(1.0, 1.0))
    trial = Trial.of(drawing(sampler, SEED + 1, [range(2)]), reference_steps=40)
    plan = found.plan(budget=4, trial=trial, evaluations=12)
    assert plan.cost_steps(found.block_share) <= 4 and plan.timesteps is not None and len(trial.known) <= 12
    told = plan.provenance
    assert (told["target"], told["reference_steps"], told["even_in_lambda"]) == ("exact", 40, 0.5)
    own = type(sampler.pipe.scheduler).set_timesteps
    assert sampler.pipe.scheduler.set_timesteps.__func__ is own  # it is as it was
    again = tiny()
    enable_delta_cache(again.pipe, plan)
    images, exact = again.draw(SEED + 1, range(2), steps=plan.steps), sampler.draw(SEED + 1, range(2), steps=40)
    assert again.pipe.scheduler.timesteps.tolist() == list(plan.timesteps)
    assert psnr(images, exact).mean() == pytest.approx(told["psnr_db"], abs=1e-3)
    disable_delta_cache(again.pipe)
    assert again.pipe.scheduler.set_timesteps.__func__ is own


def test_steps_are_moved_where_that_helps() -> None:
    sampler = tiny()
    found = calibrate(sampler.pipe, [{"class_labels": [0, 1]}], steps=STEPS, move_steps=True)
    draws = drawn_from(sampler.pipe, [{"class_labels": [0, 1]}])
    exact, own = draws.images(REFERENCE * STEPS), draws.images(STEPS)
    draws.spacing = found.spacing
    assert found.spacing is not None
    assert psnr(draws.images(STEPS), exact).mean() >= psnr(own, exact).mean()


def test_what_it_costs_is_told_before_and_after() -> None:
    found = calibrate(tiny().pipe, [{"class_labels": [i % 4]} for i in range(8)], steps=28)
    assert found.about["generations"] <= 40
    assert found.about["generations"] == pytest.approx(generations(8, 28), rel=0.05)


def test_a_plan_that_is_good_enough_is_no_slower_than_it_must_be() -> None:
    found = measured()
    trial = trial_of(SEED + 1, samples=2)
    wanted = trial(found.plan(speedup=1.6).reuses).mean().item()
    plan = found.plan(min_psnr=wanted, trial=trial, evaluations=10)
    assert plan.blocks_run() <= STEPS * BLOCKS - 6 and trial(plan.reuses).mean() >= wanted
    assert found.plan(min_psnr=1e9).full_steps == STEPS
    error = 10 ** (-30 / 20) / found.power**0.5  # 30 dB, as a share of the images
    assert found.plan(max_error=error).reuses == found.plan(min_psnr=30).reuses


@pytest.mark.parametrize("given", [{}, {"speedup": 2.0, "min_psnr": 30.0}])
def test_a_plan_is_asked_for_by_one_number(given) -> None:
    with pytest.raises(ValueError, match="allowed: one of them"):
        measured().plan(**given)


def test_calibrate_a_pipeline_from_python_and_plan_with_it() -> None:
    pipe, steps = tiny().pipe, 3

    def draw(**options):
        noise = torch.Generator().manual_seed(7)
        return pipe([0, 3], num_inference_steps=steps, generator=noise, output_type="pt", **options).images

    plain, runs = draw(), []
    found = calibrate(
        pipe,
        [{"class_labels": [0, 3], "guidance_scale": 1.5}, {"class_labels": [1, 2], "guidance_scale": 1.5}],
        steps=steps,
        progress=lambda probes: runs.extend(probes) or probes,
    )
    assert found.sketches.shape[:3] == (4, steps, 1 + BLOCKS)
    assert len(runs) == np.isfinite(found.harm).sum() == 3 * (steps - 1)
    assert found.about["transformer"] == "DiTTransformer2DModel" and found.about["calls"] == 2
    assert hooks(pipe) == [] and torch.equal(draw(), plain)
    again = calibrate(pipe, [{"class_labels": [0, 3], "guidance_scale": 1.5}], steps=steps)
    np.testing.assert_array_equal(again.sketches, found.sketches[:2])  # the first call draws the same noise
    plan = found.plan(speedup=1.6)
    enable_delta_cache(pipe, plan)
    assert not torch.equal(draw(), plain)
    assert delta_cache_stats(pipe).block_speedup == pytest.approx(plan.mac_speedup())


def test_what_is_measured_is_without_the_cache_that_is_on() -> None:
    cached, plain = tiny().pipe, tiny().pipe
    enable_delta_cache(cached, DeltaPlan.of(BLOCKS, [None, Reuse(0, 3)]))
    found, wanted = (calibrate(pipe, [{"class_labels": [0]}], steps=2) for pipe in (cached, plain))
    np.testing.assert_array_equal(found.sketches, wanted.sketches)
    np.testing.assert_array_equal(found.harm, wanted.harm)
    assert found.convergence == wanted.convergence
    cached([0], num_inference_steps=2)
    assert delta_cache_stats(cached).reuse_calls == 1  # it is back


def test_prompts_are_inputs() -> None:
    class Asked(PixelDiTPipeline):
        def __call__(self, prompt, **options):
            return super().__call__([len(prompt)], **options)

    sampler = tiny()
    asked = Asked(sampler.pipe.transformer, sampler.pipe.scheduler)
    asked.set_progress_bar_config(disable=True)
    found = calibrate(asked, prompts=["a", "the"], steps=2)
    same = calibrate(sampler.pipe, [{"class_labels": [1]}, {"class_labels": [3]}], steps=2)
    np.testing.assert_array_equal(found.sketches, same.sketches)


def uneven(sampler: Sampler):
    """Return a pipeline with a second transformer of another depth."""
    sampler.pipe.transformer_2 = build_dit(blocks=BLOCKS + 1, heads=1)
    return sampler.pipe


BAD_CALLS = {
    "nothing to draw": (lambda sampler: calibrate(sampler.pipe, []), "inputs="),
    "neither": (lambda sampler: calibrate(sampler.pipe), "inputs=None and prompts=None"),
    "one step": (lambda sampler: calibrate(sampler.pipe, [{"class_labels": [0]}], steps=1), "steps=1"),
    "no pipeline": (lambda sampler: calibrate(sampler.pipe.transformer, [{}]), "no scheduler"),
    "no transformer": (lambda sampler: calibrate(object(), [{}]), "object has no transformer"),
    "uneven": (lambda sampler: calibrate(uneven(sampler), [{}]), "transformers of 3 and 4 blocks"),
    "no inputs": (lambda sampler: calibrate(sampler.pipe, [{}]), "needs class_labels"),
    "prompts": (lambda sampler: calibrate(sampler.pipe, prompts=["a cat"]), "takes no prompt"),
    "one prompt": (lambda sampler: calibrate(sampler.pipe, prompts="a cat"), "prompts='a cat' is one text"),
    "one mapping": (lambda sampler: calibrate(sampler.pipe, {"class_labels": [0]}), "inputs is one mapping"),
}


@pytest.mark.parametrize("case", BAD_CALLS)
def test_what_cannot_be_calibrated_is_told_and_left_as_it_was(case) -> None:
    call, named = BAD_CALLS[case]
    sampler = tiny()
    with pytest.raises(ValueError, match=f"{named}.*; allowed: "):
        call(sampler)
    assert hooks(sampler.pipe) == []


def test_an_error_in_mid_run_leaves_no_hook_and_no_cache() -> None:
    sampler, drawn = tiny(), []

    def draw(batch, steps):
        drawn.append(batch)
        if len(drawn) > 2:
            raise KeyboardInterrupt
        return sampler.draw(SEED, batch)

    with pytest.raises(KeyboardInterrupt):
        draws = Draws(sampler.pipe, draw, [range(1)])
        measure(draws, draws.first([range(1)]), STEPS, about={})
    assert hooks(sampler.pipe) == [] and not hasattr(sampler.pipe.transformer, "_diffusers_hook")


def test_the_cache_is_on_in_its_block_alone() -> None:
    sampler = tiny()
    plain = sampler.draw(0, range(1))
    with delta_cache(sampler.pipe, DeltaPlan.of(BLOCKS, [None, Reuse(0, 3), None, Reuse(0, 3), None])) as pipe:
        assert pipe is sampler.pipe and not torch.equal(sampler.draw(0, range(1)), plain)
    assert torch.equal(sampler.draw(0, range(1)), plain)


def test_a_quarter_of_the_samples_is_probed() -> None:
    assert [probe_count(samples) for samples in (1, 4, 5, 32)] == [1, 1, 2, 8]


def test_file_round_trip(tmp_path: Path) -> None:
    found = measured()
    found.save(tmp_path / "new" / "c.safetensors")
    again = Calibration.load(tmp_path / "new" / "c.safetensors")
    np.testing.assert_array_equal(again.sketches, found.sketches)
    np.testing.assert_array_equal(again.harm, found.harm)
    assert replace(again, sketches=found.sketches, harm=found.harm) == found
    found.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "new" / "c.safetensors").read_bytes()


@pytest.mark.parametrize("spoil", ["missing", "folder", "torn", "schema", "foreign"])
def test_bad_file_is_one_line(tmp_path: Path, spoil: str) -> None:
    path = tmp_path / "c.safetensors"
    if spoil == "folder":
        path.mkdir()
    if spoil == "torn":
        path.write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00{}")
    if spoil == "schema":
        save_file({"x": torch.zeros(1)}, path, {ENTRY: json.dumps({"schema": 99})})
    if spoil == "foreign":
        save_file({"x": torch.zeros(1)}, path, {ENTRY: json.dumps({"schema": SCHEMA, "facts": {"probes": []}})})
    with pytest.raises(ValueError, match=r"calibration='.*'.* allowed: ") as caught:
        Calibration.load(path)
    assert "\n" not in str(caught.value)


def test_other_schedulers_are_recorded_too() -> None:
    sampler = tiny(DDIMScheduler(prediction_type="sample", clip_sample=False))
    with recording(sampler.pipe) as recorder:
        sampler.draw(0, range(2), guidance=1.0)
        assert recorder.take(2).shape[:3] == (2, STEPS, 1 + BLOCKS)


def test_a_solver_of_two_calls_a_step_is_planned_for_all_its_calls() -> None:
    pipe, inputs = tiny(HeunDiscreteScheduler(prediction_type="sample")).pipe, [{"class_labels": [0]}]
    found = calibrate(pipe, inputs, steps=3)
    trial = Trial(pipe, inputs)
    plan = found.plan(speedup=1.3, trial=trial, evaluations=2)
    assert plan.steps == 5 and trial(plan.reuses).mean() < 100
    with delta_cache(pipe, plan):
        pipe([0], num_inference_steps=3)
        stats = delta_cache_stats(pipe)
    assert stats.blocks_run == plan.blocks_run() and not stats.fallbacks


def test_the_command_plans_with_a_calibration_of_its_own_and_of_python(tmp_path, monkeypatch, capfd) -> None:
    loaded = []
    monkeypatch.setattr(
        "delta_dit.commands.models.load_sampler", lambda name, **options: loaded.append((name, options)) or tiny()
    )
    found = measured()
    found.save(tmp_path / "run" / "calibration.safetensors")
    arguments = [
        "plan",
        "--speedup",
        "1.6",
        "--samples",
        "3",
        "--batch-size",
        "2",
        "--evaluations",
        "2",
        "--device",
        "cpu",
    ]
    arguments += ["--dtype", "fp32", "--json", str(tmp_path / "plan.json"), "--calibration"]
    assert main([*arguments, str(tmp_path / "run")]) == 0
    assert loaded == [("tiny", {"dtype": "fp32"})]
    plan = DeltaPlan.load(tmp_path / "plan.json")
    assert plan.blocks_run() == STEPS * BLOCKS - 6
    assert (plan.provenance["psnr_samples"], plan.provenance["psnr_seed"]) == (3, SEED + 1)

    calibrate(tiny().pipe, [{"class_labels": [0]}], steps=STEPS).save(tmp_path / "python.safetensors")
    assert main([*arguments, str(tmp_path / "python.safetensors")]) == 2
    assert "--no-refine" in capfd.readouterr().err
    assert main([*arguments, str(tmp_path / "python.safetensors"), "--no-refine"]) == 0
    assert main([*arguments, str(tmp_path / "run"), "--device", "cuda:7"]) == 2
    assert "cuda:7" in capfd.readouterr().err
