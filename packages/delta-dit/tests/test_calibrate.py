"""The sketches know the error of any reuse; recording changes nothing; the calibration survives its file."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DiTTransformer2DModel, DPMSolverMultistepScheduler

from delta_dit.adapters import blocks_of
from delta_dit.commands.calibrate import FILE, Calibration, measure, recording, sketch
from delta_dit.commands.models import Sampler, open_gates
from delta_dit.commands.options import CalibrateConfig
from delta_dit.delta_plan import Reuse
from delta_dit.embedded.pixel import PixelDiTPipeline
from delta_dit.planner import Candidates, ErrorModel, Trial
from frugal_shared.errors import UsageError
from frugal_shared.run import Run
from frugal_shared.tensors import pack_tensors

STEPS, BLOCKS = 5, 3


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


def measured(tmp_path: Path, **options) -> Calibration:
    config = CalibrateConfig(
        output_dir=tmp_path / "run", steps=STEPS, samples=4, batch_size=options.pop("batch_size", 4), **options
    )
    with Run(config, "delta-dit") as run:
        return measure(tiny(), run, config)


def test_sketch_keeps_norms_and_products_on_average() -> None:
    random = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 64, 37, 96, generator=random)
    x[:, :, 5] *= 30  # a loud channel, as real models have
    y = y + 0.5 * x
    exact, sketched = (x * y).sum((1, 2)), (sketch(x) * sketch(y)).sum(1)
    assert sketched.mean().item() == pytest.approx(exact.mean().item(), rel=0.1)
    assert torch.equal(sketch(x), sketch(x))
    torch.testing.assert_close(sketch(x) + sketch(y), sketch(x + y), rtol=1e-4, atol=1e-2)
    assert not torch.equal(sketch(x), sketch(x, stream=1))


def test_recording_changes_no_image_and_leaves_no_hook() -> None:
    sampler = tiny()
    plain = sampler.draw(0, range(4))
    with recording(sampler) as recorder:
        assert torch.equal(sampler.draw(0, range(4)), plain)
        assert recorder.take(4).shape[:3] == (4, STEPS, BLOCKS)
    modules = [sampler.pipe.transformer, *(block.module for block in blocks_of(sampler.pipe.transformer))]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in modules)


def test_sketched_error_of_a_range_is_its_true_error(tmp_path: Path) -> None:
    sampler, calls = tiny(), []
    blocks = sampler.pipe.transformer.transformer_blocks
    blocks[1].register_forward_pre_hook(lambda _, args: calls.append(args[0].clone()))
    blocks[2].register_forward_hook(lambda _, args, out: calls.append(out.clone()))
    sampler.draw(1000, range(4))
    delta = [out - start for start, out in zip(calls[::2], calls[1::2], strict=True)]  # of blocks 1 and 2, per step
    model = ErrorModel(measured(tmp_path))
    model._planes[:] = 0  # weights of 1
    for held, step in [(0, 1), (0, 4), (2, 3)]:
        true = 2 * (delta[step] - delta[held]).flatten(1).square().sum(1).mean().item()  # two branches per sample
        assert model.held((1, 3))[held, step] == pytest.approx(true, rel=0.25)
    line = delta[2] + 2 * (delta[2] - delta[1])
    true = 2 * (delta[4] - line).flatten(1).square().sum(1).mean().item()
    assert model.extrapolated((1, 3))[1, 2, 4] == pytest.approx(true, rel=0.25)


def test_samples_do_not_depend_on_their_batch(tmp_path: Path) -> None:
    whole, halves = measured(tmp_path / "a"), measured(tmp_path / "b", batch_size=2)
    np.testing.assert_allclose(halves.sketches, whole.sketches, rtol=1e-3, atol=1e-3)
    assert halves.levels == whole.levels and halves.about == whole.about


def test_prediction_of_one_reuse_is_its_trial(tmp_path: Path) -> None:
    found = measured(tmp_path)
    trial = Trial(replace(found, about=found.about | {"seed": found.about["seed"] - 1}), 1, tiny())
    for step in range(1, STEPS):
        once = tuple(Reuse(0, BLOCKS) if i == step else None for i in range(STEPS))
        assert trial(once) == pytest.approx(-10 * np.log10(found.harm[step, 0]), abs=0.01)


def test_candidates_on_a_trial_are_never_worse_than_any_of_them(tmp_path: Path) -> None:
    found = measured(tmp_path)
    candidates, trial = Candidates(ErrorModel(found)), Trial(found, 4, tiny())
    best = candidates.best(6, trial)
    assert trial(best) == max(trial(plan) for plan in candidates.at(6))
    assert trial((None,) * STEPS) == 100


def test_file_round_trip(tmp_path: Path) -> None:
    found = measured(tmp_path)
    found.save(tmp_path)
    again = Calibration.load(tmp_path)
    np.testing.assert_array_equal(again.sketches, found.sketches)
    np.testing.assert_array_equal(again.harm, found.harm)
    assert (again.probes, again.levels, again.power, again.about) == (
        found.probes, found.levels, found.power, found.about,
    )  # fmt: skip


@pytest.mark.parametrize("spoil", ["missing", "torn", "schema", "foreign"])
def test_bad_file_is_one_line(tmp_path: Path, spoil: str) -> None:
    if spoil == "torn":
        (tmp_path / FILE).write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00{}")
    if spoil == "schema":
        (tmp_path / FILE).write_bytes(pack_tensors({"x": torch.zeros(1)}, {"schema": "99", "facts": "{}"}))
    if spoil == "foreign":
        notes = {"schema": "1", "facts": json.dumps({"probes": [], "levels": []})}
        (tmp_path / FILE).write_bytes(pack_tensors({"x": torch.zeros(1)}, notes))
    with pytest.raises(UsageError, match=r"calibration='.*'.* allowed: ") as caught:
        Calibration.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_other_schedulers_are_recorded_too() -> None:
    sampler = tiny(DDIMScheduler(prediction_type="sample", clip_sample=False))
    with recording(sampler) as recorder:
        sampler.draw(0, range(2), guidance=1.0)
        assert recorder.take(2).shape[:3] == (2, STEPS, BLOCKS)
