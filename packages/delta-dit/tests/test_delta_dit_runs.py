"""The commands, run as a user runs them: resume, what comes out, and what they say when they cannot."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from delta_dit.commands import exact_pictures
from delta_dit.commands.cli import main
from delta_dit.commands.models import load_sampler
from delta_dit.commands.pictures import to_bytes
from delta_dit.embedded.judge import load_judge
from delta_dit.embedded.pixel import embedded_folder
from delta_dit.schedules import paper
from frugal_shared.errors import RunError

TINY = ["--steps", "4", "--blocks", "2", "--heads", "1", "--batch-size", "8", "--save-every", "2", "--cpu"]
FEW = ["--count", "5", "--batch-size", "2", "--steps", "4", "--cpu"]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_train_demo_resumed_gives_the_same_bytes(tmp_path):
    whole, halved = tmp_path / "whole", tmp_path / "halved"
    assert main(["train-demo", "--output-dir", str(whole), *TINY]) == 0
    shutil.copytree(whole, halved)
    shutil.rmtree(halved / "pipeline")
    shutil.rmtree(halved / "checkpoints" / "step-00000004")
    assert main(["train-demo", "--output-dir", str(halved), *TINY, "--resume"]) == 0
    assert files(whole / "pipeline") == files(halved / "pipeline")


def test_generate_resumed_gives_the_same_bytes(tmp_path):
    assert main(["generate", "--output-dir", str(tmp_path / "run"), *FEW]) == 0
    before = files(tmp_path / "run" / "images")
    assert len(before) == 5
    (tmp_path / "run" / "images" / "000003.png").unlink()
    assert main(["generate", "--output-dir", str(tmp_path / "run"), *FEW, "--resume"]) == 0
    assert files(tmp_path / "run" / "images") == before


def test_speedup_one_draws_what_no_cache_draws(tmp_path):
    assert main(["generate", "--output-dir", str(tmp_path), "--speedup", "1", *FEW]) == 0
    uncached = to_bytes(load_sampler("demo").draw(0, range(2), steps=4)).permute(0, 2, 3, 1).numpy()
    for index in range(2):
        with Image.open(tmp_path / "images" / f"{index:06d}.png") as image:
            assert np.array_equal(np.asarray(image), uncached[index])


def test_demo_writes_the_results_that_the_gallery_reads_and_says_what_it_does(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(exact_pictures, "EXACT_STEPS", 25)
    arguments = ["demo", "--samples", "4", "--batch-size", "4", "--steps", "5", "--repeats", "1", "--cpu"]
    assert main([*arguments, "--output-dir", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["mac_speedup"] > 1.3 and results["wall_speedup"] > 0
    assert {"psnr_db", "outline_accuracy", "texture_accuracy", "paper_psnr_db", "fewer_steps_psnr_db"} <= results.keys()
    assert (tmp_path / "report.html").exists() and (tmp_path / "report.json").exists()
    *steps, address = capsys.readouterr().out.splitlines()
    assert "uncached (1 of 4)" in steps[0] and len(steps) == 5
    assert results["planned_psnr_exact_db"] > results["uncached_psnr_exact_db"] > 10
    assert (tmp_path / "exact.png").stat().st_size > 10_000
    assert address == (tmp_path / "report.html").as_uri()


BAD = [
    (["generate", "--model", "no-such-model"], 1, "no-such-model"),
    (["generate", "--model", "demo", "--random-weights"], 2, "demo"),
    (["generate", "--labels", "40"], 2, "40"),
    (["generate", "--speedup", "0.5"], 2, "0.5"),
    (["generate", "--speedup", "9", "--steps", "4"], 2, "9"),
    (["generate", "--schedule", "best"], 2, "best"),
    (["generate", "--count", "0"], 2, "count=0"),
    (["generate", "--plan", "no-such-plan.json"], 1, "no-such-plan.json"),
    (["generate", "--prompts", "no-such-prompts.txt"], 2, "no-such-prompts.txt"),
    (["generate", "--output-dir", "/dev/null/run"], 1, "/dev/null"),
    (["generate", "--num-processes", "2"], 2, "num_processes=2"),
    (["generate", "--num-processes", "0"], 2, "num_processes=0"),
    (["demo", "--speedup", "21"], 2, "21"),
    (["train-demo", "--learning-rate", "-1"], 2, "-1"),
]


@pytest.mark.parametrize(("arguments", "code", "named"), BAD, ids=[" ".join(row[0][:3]) for row in BAD])
def test_bad_input_is_one_line(arguments, code, named, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if "--output-dir" not in arguments:
        arguments = [*arguments, "--output-dir", "run"]
    assert main([*arguments]) == code
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1 and named in lines[0]
    assert list(tmp_path.iterdir()) == []


def test_a_plan_for_another_model_is_refused(tmp_path, capfd):
    paper(4, 7, 2, 3).save(tmp_path / "plan.json")
    (tmp_path / "torn.json").write_text('{"schema": 1, "blo')
    for name, told in (("plan.json", "7 blocks"), ("torn.json", "torn.json")):
        arguments = ["generate", "--plan", str(tmp_path / name), "--output-dir", str(tmp_path / "run"), *FEW]
        assert main(arguments) == 2
        assert told in capfd.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_folder_that_holds_a_run_is_left_alone(tmp_path, capfd):
    assert main(["generate", "--output-dir", str(tmp_path), *FEW]) == 0
    before = files(tmp_path)
    assert main(["generate", "--output-dir", str(tmp_path), *FEW]) == 2
    assert "already holds a run" in capfd.readouterr().err
    assert main(["generate", "--output-dir", str(tmp_path), *FEW, "--seed", "1", "--resume"]) == 2
    assert "seed=1" in capfd.readouterr().err
    assert files(tmp_path) == before


def test_the_product_of_train_demo_is_a_model_like_any_other(tmp_path):
    pipeline = tmp_path / "pipeline"
    shutil.copytree(embedded_folder(), pipeline)
    assert main(["generate", "--model", "demo", "--output-dir", str(tmp_path / "a"), *FEW]) == 0
    assert main(["generate", "--model", str(pipeline), "--output-dir", str(tmp_path / "b"), *FEW]) == 0
    assert files(tmp_path / "a" / "images") == files(tmp_path / "b" / "images")


def test_torn_weights_are_told_as_such_and_nothing_is_left(tmp_path, capfd):
    pipeline = tmp_path / "pipeline"
    shutil.copytree(embedded_folder(), pipeline)
    (weights,) = pipeline.glob("transformer/*.safetensors")
    weights.write_bytes(weights.read_bytes()[:100_000])
    for command in (["generate", *FEW, "--model"], ["train-demo-lcm", "--steps", "1", "--cpu", "--teacher"]):
        assert main([*command, str(pipeline), "--output-dir", str(tmp_path / "run")]) == 1
        (line,) = capfd.readouterr().err.splitlines()
        assert str(pipeline) in line and weights.name in line
    assert not (tmp_path / "run").exists()


def test_damaged_weights_of_the_judge_are_named(tmp_path, monkeypatch):
    (tmp_path / "judge.safetensors").write_bytes(b"torn")
    monkeypatch.setattr("delta_dit.embedded.judge.embedded_folder", lambda name: tmp_path)
    with pytest.raises(RunError, match=r"judge\.safetensors"):
        load_judge()
