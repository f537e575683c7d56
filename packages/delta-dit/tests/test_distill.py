"""Consistency distillation, and the model that it made."""

import shutil
from pathlib import Path

import pytest
import torch

from delta_dit.commands.cli import main
from delta_dit.commands.models import load_sampler
from delta_dit.commands.options import TrainDemoLcmConfig
from delta_dit.embedded.dit import build_dit, noise_schedule
from delta_dit.embedded.judge import load_judge
from delta_dit.embedded.lcm import consistency, consistency_scheduler, ddim
from delta_dit.embedded.pixel import PixelDiTPipeline

TINY = ["--steps", "4", "--batch-size", "4", "--save-every", "2", "--cpu"]


@pytest.fixture
def model():
    model = build_dit(blocks=2, heads=1)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)  # the gates of a fresh model are closed
    return model


@pytest.fixture
def teacher(model, tmp_path) -> Path:
    PixelDiTPipeline(model.half(), noise_schedule()).save_pretrained(tmp_path / "teacher", variant="fp16")
    return tmp_path / "teacher"


def test_where_there_is_no_noise_the_student_returns_what_it_is_given(model):
    x, labels = torch.randn(3, 3, 32, 32), torch.tensor([0, 5, 39])
    at_zero = consistency(model, consistency_scheduler(), x, torch.zeros(3, dtype=torch.long), labels)
    torch.testing.assert_close(at_zero, x, rtol=0, atol=0)
    # and far from there it is the network's own answer, as LCMScheduler has it too
    t = torch.tensor([279, 519, 999])
    far = consistency(model, consistency_scheduler(), x, t, labels)
    torch.testing.assert_close(far, model(x, timestep=t, class_labels=labels).sample, rtol=1e-4, atol=1e-4)


def test_with_the_true_image_a_ddim_step_keeps_the_noise():
    scheduler = consistency_scheduler()
    x0, noise = torch.randn(2, 3, 32, 32), torch.randn(2, 3, 32, 32)
    t, s = torch.tensor([519, 79]), torch.tensor([479, 39])
    moved = ddim(scheduler, x0, scheduler.add_noise(x0, noise, t), t, s)
    torch.testing.assert_close(moved, scheduler.add_noise(x0, noise, s), rtol=1e-4, atol=1e-4)


def test_every_step_of_the_sampler_was_trained():
    scheduler = consistency_scheduler()
    for steps in (1, 2, 4):
        scheduler.set_timesteps(steps)
        assert all((int(t) + 1) % 40 == 0 for t in scheduler.timesteps)  # 25 intervals of 40


def test_train_demo_lcm_resumed_gives_the_same_bytes(teacher, tmp_path):
    whole, halved = tmp_path / "whole", tmp_path / "halved"
    arguments = ["train-demo-lcm", "--teacher", str(teacher), *TINY]
    assert main([*arguments, "--output-dir", str(whole)]) == 0
    shutil.copytree(whole, halved)
    shutil.rmtree(halved / "pipeline")
    shutil.rmtree(halved / "checkpoints" / "step-00000004")
    assert main([*arguments, "--output-dir", str(halved), "--resume"]) == 0
    weights = Path("pipeline", "transformer", "diffusion_pytorch_model.fp16.safetensors")
    assert (whole / weights).read_bytes() == (halved / weights).read_bytes()
    before = teacher / "transformer" / weights.name
    assert (whole / weights).read_bytes() != before.read_bytes()


def test_a_teacher_that_is_not_there_is_one_line(tmp_path, capfd):
    arguments = ["train-demo-lcm", "--teacher", str(tmp_path / "nowhere"), "--output-dir", str(tmp_path / "run")]
    assert main([*arguments, *TINY]) == 1
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1 and "nowhere" in lines[0]
    assert not (tmp_path / "run").exists()


def test_the_shipped_model_draws_readable_digits_in_4_steps():
    sampler = load_sampler("demo-lcm")
    assert (sampler.steps, sampler.guidance) == (4, 1.0)
    outline, texture = load_judge().reads(sampler.draw(3, range(80)), sampler.labels(range(80)))
    assert outline.double().mean() >= 0.9
    assert texture.double().mean() >= 0.9


def test_a_sample_of_the_shipped_model_does_not_depend_on_its_batch():
    """The sampler adds noise at every step, and must take it from the sample's own generator."""
    sampler = load_sampler("demo-lcm")
    together = sampler.draw(3, range(4))
    torch.testing.assert_close(sampler.draw(3, range(2, 3)), together[2:3], rtol=1e-4, atol=1e-4)


def test_guidance_is_checked():
    with pytest.raises(Exception, match="guidance"):
        TrainDemoLcmConfig(guidance=0)
