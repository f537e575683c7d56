"""The commands on pipelines of videos: frames are written, latents are compared."""

import json

import numpy as np
import pytest
import tiny_pipelines
import torch
from PIL import Image

from delta_dit import DeltaPlan
from delta_dit.commands.cli import main
from delta_dit.commands.models import Sampler
from delta_dit.commands.pictures import to_bytes
from delta_dit.planning.calibration import Calibration

SIZE = ["--height", "32", "--width", "32", "--frames", "5", "--cpu"]


def wan(name, **options):
    """Return a sampler of a tiny Wan, for which one text stands for every prompt."""
    pipe, inputs = tiny_pipelines.wan_with_decoder()
    texts = {key: inputs[key] for key in ("prompt_embeds", "negative_prompt_embeds")}
    extra = lambda count: {key: text.expand(count, -1, -1) for key, text in texts.items()}  # noqa: E731
    return Sampler(name, pipe, ["a cat"], "prompt", steps=3, guidance=3.0, extra=extra)


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    for command in ("generate", "calibrate", "analyze", "bench", "models"):
        monkeypatch.setattr(f"delta_dit.commands.{command}.load_sampler", wan)


def test_generate_writes_frames_and_goes_on_where_one_is_missing(tmp_path):
    arguments = ["generate", "--model", "wan", "--count", "3", "--batch-size", "2", "--speedup", "1.2"]
    arguments += [*SIZE, "--output-dir", str(tmp_path)]
    assert main(arguments) == 0
    files = sorted((tmp_path / "images").rglob("*.png"))
    assert [str(path.relative_to(tmp_path / "images")) for path in files] == [
        f"00000{sample}/000{frame}.png" for sample in range(3) for frame in range(5)
    ]
    before = {path: path.read_bytes() for path in [*files, tmp_path / "grid.png", tmp_path / "results.json"]}
    assert json.loads(before[tmp_path / "results.json"])["images"] == 3
    for path in files[10:]:
        path.unlink()
    files[10].parent.rmdir()
    assert main([*arguments, "--resume"]) == 0
    assert {path: path.read_bytes() for path in before} == before


def test_frames_are_those_of_the_pipeline(tmp_path):
    assert (
        main(["generate", "--model", "wan", "--count", "1", "--speedup", "1", *SIZE, "--output-dir", str(tmp_path)])
        == 0
    )
    sampler = wan("wan")
    sampler.size = {"height": 32, "width": 32, "num_frames": 5}
    (video,) = to_bytes(sampler.draw(0, range(1)))
    assert video.shape == (5, 3, 32, 32)
    for number, frame in enumerate(video):
        with Image.open(tmp_path / "images" / "000000" / f"{number:04d}.png") as image:
            assert torch.equal(torch.from_numpy(np.array(image)), frame.permute(1, 2, 0))


def test_calibrate_and_plan_compare_latents(tmp_path):
    run, plan = tmp_path / "run", tmp_path / "plan.json"
    given = ["calibrate", "--model", "wan", "--steps", "3", "--samples", "2", *SIZE, "--output-dir", str(run)]
    assert main(given) == 0
    found = Calibration.load(run / "calibration.safetensors")
    assert found.sketches.shape[:3] == (2, 3, 1 + tiny_pipelines.BLOCKS)
    assert found.about["size"] == {"height": 32, "width": 32, "num_frames": 5}
    given = ["plan", "--calibration", str(run), "--speedup", "1.3", "--samples", "2", "--evaluations", "2", "--cpu"]
    assert main([*given, "--json", str(plan)]) == 0
    assert DeltaPlan.load(plan).provenance["psnr_samples"] == 2
    given = ["generate", "--model", "wan", "--count", "1", "--plan", str(plan), *SIZE]
    assert main([*given, "--output-dir", str(tmp_path / "fast")]) == 0


@pytest.mark.parametrize("command", ["bench", "analyze"])
def test_what_looks_at_images_says_so(command, tmp_path, capfd):
    assert main([command, "--model", "wan", "--cpu", "--output-dir", str(tmp_path / "run")]) == 2
    assert f"model='wan' draws videos, and {command} compares images; allowed: " in capfd.readouterr().err
    assert not (tmp_path / "run").exists()
