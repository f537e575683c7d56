"""The comparison, run as a user runs it, on a few small pictures."""

import json

import pytest
import torch

from delta_dit.commands import options as configs
from delta_dit.commands import peers
from delta_dit.commands.cli import main
from delta_dit.commands.frechet import REAL_SEED, real_images
from delta_dit.delta_plan import DeltaPlan, Reuse
from delta_dit.embedded.judge import load_judge
from frugal_shared.datasets import TexturedDigits

QUICK = ["--steps", "4", "--samples", "2", "--batch-size", "2", "--repeats", "1", "--tuning", "2", "--cpu"]
KEYS = {"method", "cost_steps", "mac_speedup", "worst_psnr_db", "wall_speedup", "psnr_db", "ssim", "latent_rel_l1"}
KEYS |= {"outline_accuracy", "texture_accuracy", "frechet_distance"}


def rows_of(path):
    return {row["method"]: row for row in json.loads(path.read_text())}


def test_bench_compares_at_the_same_cost_and_says_why_it_cannot(tmp_path):
    pytest.importorskip("torchmetrics")
    out = tmp_path / "rows.json"
    methods = ["fewer-steps", "naive-feature-cache", "generic", "calibrated", "FirstBlockCache"]
    arguments = [*QUICK, "--speedup", "1.3", "--seeds", "2", "--json", str(out), "--methods", *methods]
    assert main(["bench", "--output-dir", str(tmp_path / "run"), *arguments]) == 0
    rows = rows_of(out)
    assert list(rows) == ["uncached", *methods]
    assert all(row.keys() >= KEYS for row in rows.values())
    assert rows["uncached"]["mac_speedup"] == 1 and rows["uncached"]["psnr_db"] is None
    assert rows["generic"]["mac_speedup"] == pytest.approx(1.3, rel=0.05)
    assert rows["generic"]["psnr_db"] > rows["naive-feature-cache"]["psnr_db"]
    assert rows["generic"]["psnr_db_ci"] > 0  # two seeds
    assert rows["calibrated"]["psnr_db"] is None and "demo-" in rows["calibrated"]["why"]  # none is shipped for 1.3
    assert (tmp_path / "run" / "report.html").exists()
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["generic_psnr_db"] == rows["generic"]["psnr_db"]


def test_bench_compares_with_the_exact_images_at_a_budget(tmp_path):
    pytest.importorskip("torchmetrics")
    out, plan = tmp_path / "rows.json", tmp_path / "plan.json"
    spaced = {"timesteps": (995.0, 900.0, 600.0, 200.0), "provenance": {"even_in_lambda": 0.5, "generations": 34.0}}
    DeltaPlan.of(12, [None, None, Reuse(0, 12), None], **spaced).save(plan)
    arguments = ["--target", "exact", "--budget", "3", "--reference-steps", "16", "--plan", str(plan)]
    arguments += ["--methods", "fewer-steps", "moved-steps", "generic", "calibrated", "--json", str(out)]
    assert main(["bench", *QUICK, *arguments, "--output-dir", str(tmp_path / "run")]) == 0
    rows = rows_of(out)
    assert list(rows) == ["uncached", "exact", "fewer-steps", "moved-steps", "generic", "calibrated"]
    exact = rows.pop("exact")
    assert exact["cost_steps"] == 16 and exact["psnr_exact_db"] is None and exact["frechet_distance"] > 0
    assert all(row["psnr_exact_db"] > 10 and row["worst_psnr_db"] <= row["psnr_exact_db"] for row in rows.values())
    assert rows["fewer-steps"]["behind_db"] == pytest.approx(
        rows["calibrated"]["psnr_exact_db"] - rows["fewer-steps"]["psnr_exact_db"]
    )
    assert rows["uncached"]["cost_steps"] == 4 and rows["uncached"]["psnr_db"] is None
    assert rows["moved-steps"]["cost_steps"] == rows["fewer-steps"]["cost_steps"] == 3
    assert rows["moved-steps"]["psnr_exact_db"] != rows["fewer-steps"]["psnr_exact_db"]
    assert 3 < rows["calibrated"]["cost_steps"] < 3.1 and rows["calibrated"]["tuning_generations"] == 34


def test_several_costs_make_a_curve(tmp_path):
    pytest.importorskip("torchmetrics")
    arguments = ["--budget", "2", "3", "--methods", "fewer-steps", "generic-held-features", "annealed-mask"]
    assert main(["bench", *QUICK, *arguments, "--output-dir", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [(row["method"], row["budget"]) for row in rows[:4]] == [
        ("uncached", None),
        ("fewer-steps", 2),
        ("annealed-mask", 2),
        ("generic-held-features", 2),
    ]
    assert [row["why"] for row in rows] == [None] * 7
    assert rows[1]["cost_steps"] == 2 and rows[4]["cost_steps"] == 3
    assert rows[4]["psnr_at_budget_db"] == rows[4]["psnr_db"]
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["fewer-steps_2_psnr_db"] == rows[1]["psnr_db"]


def test_speedup_one_is_the_uncached_picture(tmp_path):
    """So that its wall_speedup is the overhead of an enabled cache that never reuses."""
    pytest.importorskip("torchmetrics")
    arguments = ["bench", *QUICK, "--speedup", "1", "--methods", "generic", "--output-dir", str(tmp_path)]
    assert main(arguments) == 0
    row = rows_of(tmp_path / "rows.json")["generic"]
    assert row["mac_speedup"] == 1 and row["psnr_db"] == 100 and row["latent_rel_l1"] == 0


def test_a_resumed_bench_keeps_its_rows(tmp_path, monkeypatch):
    pytest.importorskip("torchmetrics")
    arguments = ["bench", *QUICK, "--methods", "fewer-steps", "generic", "--output-dir", str(tmp_path)]
    from delta_dit.commands.bench import Contest

    own = Contest.own

    def killed(self, name, cost):
        if name == "generic":
            raise KeyboardInterrupt
        return own(self, name, cost)

    monkeypatch.setattr(Contest, "own", killed)
    assert main(arguments) == 130
    monkeypatch.setattr(Contest, "own", lambda self, *what: own(self, *what) if what[0] == "generic" else 1 / 0)
    assert main([*arguments, "--resume"]) == 0
    assert list(rows_of(tmp_path / "rows.json")) == ["uncached", "fewer-steps", "generic"]


def test_every_foreign_cache_is_a_choice():
    assert tuple(peers.PEERS) == configs.PEERS


def test_real_images_have_the_labels_asked_for():
    labels = torch.tensor([3, 3, 39, 0, 17, 17, 17])
    images = real_images(labels)
    assert images.shape == (7, 3, 32, 32)
    pool, pooled = TexturedDigits("train", REAL_SEED).batch(0, 500)
    found = [int(pooled[(pool == image).flatten(1).all(1)][0]) for image in images]
    assert sorted(found) == sorted(labels.tolist())
    outline, _ = load_judge().reads(images, torch.tensor(found))
    assert outline.float().mean() > 0.5


BAD = [
    (["--speedup", "0.5"], 2, "0.5"),
    (["--speedup", "9", "--steps", "4"], 2, "9"),
    (["--plan", "no-such-plan.json"], 1, "no-such-plan.json"),
    (["--methods", "magic"], 2, "magic"),
    (["--samples", "0"], 2, "samples=0"),
    (["--model", "no-such-model"], 1, "no-such-model"),
    (["--labels", "77"], 2, "77"),
    (["--budget", "0.5"], 2, "budget=0.5"),
    (["--budget", "21"], 2, "budget=21"),
    (["--target", "best"], 2, "best"),
    (["--budget", "8", "12", "--plan", "a.json"], 2, "1 plans for 2 costs"),
    (["--tuning", "0"], 2, "tuning=0"),
]


@pytest.mark.parametrize(("arguments", "code", "named"), BAD, ids=[row[2] for row in BAD])
def test_bad_input_is_one_line(arguments, code, named, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(["bench", *arguments, "--output-dir", str(tmp_path / "run")]) == code
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1 and named in lines[0]
    assert not (tmp_path / "run").exists()
