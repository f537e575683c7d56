"""What was measured before an interruption is not measured again, and makes no difference."""

from functools import cache

import numpy as np
import pytest
import torch
from diffusers import DiTTransformer2DModel, DPMSolverMultistepScheduler

from delta_dit import Trial
from delta_dit.commands.cli import main
from delta_dit.commands.models import Sampler, open_gates
from delta_dit.embedded.pixel import PixelDiTPipeline
from delta_dit.planning.calibration import measure
from delta_dit.planning.draws import Draws

STEPS, BLOCKS = 4, 2


def tiny(name="tiny", **options):
    torch.manual_seed(0)
    sizes = {"num_attention_heads": 1, "attention_head_dim": 8, "sample_size": 4, "patch_size": 2, "in_channels": 3}
    transformer = DiTTransformer2DModel(**sizes, num_layers=BLOCKS, num_embeds_ada_norm=4)
    open_gates(transformer)
    kept = {"prediction_type": "sample", "beta_schedule": "squaredcos_cap_v2", "lambda_min_clipped": -5.1}
    pipe = PixelDiTPipeline(transformer.eval(), DPMSolverMultistepScheduler(**kept))
    pipe.set_progress_bar_config(disable=True)
    return Sampler(name, pipe, [0, 1, 2, 3], "class_labels", steps=STEPS, guidance=1.5)


class Interrupted(Draws):
    """Draws that end after so many, like a process."""

    def __init__(self, notes, seed, ends_after=10**6):
        sampler = tiny()
        self.drawn = 0

        def draw(batch, steps):
            self.drawn += 1
            if self.drawn > ends_after:
                raise KeyboardInterrupt
            return sampler.draw(seed, batch, steps=steps)

        super().__init__(sampler.pipe, draw, [range(2)], notes=notes)


def calibrated(draws):
    return measure(draws, draws.first([range(1)]), STEPS, about={"seed": 0})


@cache
def found():
    return calibrated(Interrupted(None, 0))


def planned(draws):
    return found().plan(speedup=1.4, trial=Trial.of(draws), evaluations=8)


def total(job, seed, *, every=None):
    """Do a job, interrupted after each ``every`` draws; return what came of it and how often it drew in all."""
    notes, drawn = (None, 0) if every is None else ({}, 0)
    while True:
        draws = Interrupted(notes, seed, every or 10**6)
        try:
            return job(draws), drawn + draws.drawn
        except KeyboardInterrupt:
            drawn += draws.drawn - 1


def test_an_interrupted_calibration_goes_on_inside():
    whole, drawn = total(calibrated, 0)
    again, redrawn = total(calibrated, 0, every=4)
    np.testing.assert_array_equal(again.sketches, whole.sketches)
    np.testing.assert_array_equal(again.harm, whole.harm)
    assert (again.about, again.convergence, again.power) == (whole.about, whole.convergence, whole.power)
    assert again.levels == whole.levels and again.block_share == whole.block_share
    assert drawn < redrawn <= drawn + drawn / 2  # what the probes begin with is drawn anew each time


def test_interrupted_trials_go_on_and_find_the_same_plan():
    whole, drawn = total(planned, 1)
    again, redrawn = total(planned, 1, every=3)
    assert again == whole and redrawn == drawn
    assert again.provenance == whole.provenance  # its cost, too


def test_notes_of_other_samples_are_not_taken():
    notes = {}
    draws = Interrupted(notes, 0)
    assert [len(each.images(2)) for each in (draws, draws.first([range(1)]), draws)] == [2, 1, 2]
    assert draws.drawn == len(notes) == 2


def test_a_run_does_not_go_on_with_another_calibration(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr("delta_dit.commands.models.load_sampler", tiny)
    about = {"model": "tiny", "guidance": 1.5, "seed": 0, "class_labels": [0, 1]}
    for seed in (0, 1):
        draws = Interrupted(None, seed)
        measure(draws, draws.first([range(1)]), STEPS, about=about).save(tmp_path / f"{seed}.safetensors")
    path = tmp_path / "calibration.safetensors"
    arguments = [
        "plan",
        "--calibration",
        str(path),
        "--samples",
        "2",
        "--evaluations",
        "2",
        "--speedup",
        "1.3",
        "--cpu",
    ]
    arguments += ["--output-dir", str(tmp_path / "run"), "--json", str(tmp_path / "plan.json")]
    (tmp_path / "0.safetensors").rename(path)
    assert main(arguments) == 0
    assert (tmp_path / "run" / "plan.json").exists() and (tmp_path / "plan.json").exists()
    assert main([*arguments, "--resume"]) == 0
    (tmp_path / "1.safetensors").rename(path)
    assert main([*arguments, "--resume"]) == 2
    assert "the calibration has changed" in capfd.readouterr().err


BAD = [
    (["--output-dir", "run"], "output_dir='run' is for what --refine tries; allowed: with --calibration"),
    (["--num-processes", "2"], "num_processes=2 is for what --refine tries; allowed: with --calibration"),
    (["--calibration", "c", "--no-refine", "--output-dir", "run"], "output_dir='run' is for what --refine tries"),
    (["--calibration", "c", "--resume"], "resume=True needs a run folder; allowed: with --output-dir"),
    (["--calibration", "c", "--overwrite"], "overwrite=True needs a run folder; allowed: with --output-dir"),
    (["--calibration", "c", "--batch-size", "0"], "batch_size=0 is not possible; allowed: above 0"),
]


@pytest.mark.parametrize(("arguments", "told"), BAD)
def test_a_folder_is_for_trials(arguments, told, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert main(["plan", *arguments]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert told in line and list(tmp_path.iterdir()) == []
