"""eval, angles, soup, merge, sweep and bench on tiny models."""

import csv
import json
from pathlib import Path

import pytest
import timm
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from partial_finetune.commands import bench as benchmark
from partial_finetune.commands import conditions
from partial_finetune.commands import demo as showing
from partial_finetune.commands import fitting as loop
from partial_finetune.commands.angles import main as show_angles
from partial_finetune.commands.eval import main as evaluate
from partial_finetune.commands.merge import main as merge_file
from partial_finetune.commands.models import open_tuned
from partial_finetune.commands.options import (
    AnglesConfig,
    BenchConfig,
    DemoConfig,
    EvalConfig,
    MergeConfig,
    SelectionConfig,
    SoupConfig,
    SweepConfig,
)
from partial_finetune.commands.soup import main as soup
from partial_finetune.commands.sweep import main as sweep
from partial_finetune.commands.sweep_report import paired_difference, summarise, verdict
from partial_finetune.commands.train import main as train
from partial_finetune.data.images import open_data
from partial_finetune.deltas import open_delta

PARTS = ("attn", "ffn", "last_half")


@pytest.fixture(scope="module")
def tuned(configs, tmp_path_factory):
    """Run folders of three models with different tuned parts, which nobody writes into."""
    root = tmp_path_factory.mktemp("tuned")
    AcceleratorState._reset_state(reset_partial_state=True)  # of a test before
    for part in PARTS:
        train(configs(root, part, strategy=part, epochs=1))
    return tuple(root / part for part in PARTS)


def rows(config):
    return json.loads((config.output_dir / "rows.json").read_text())


def test_eval_judges_clean_and_corrupted_images_in_one_table(tuned, tmp_path):
    options = {"corruptions": ("contrast", "pixelate"), "severities": (1, 5), "json": tmp_path / "rows.json"}
    config = EvalConfig(deltas=tuned, output_dir=tmp_path / "eval", cpu=True, **options)
    evaluate(config)
    found = rows(config)
    assert [row["name"] for row in found[:5]] == ["clean", "contrast", "contrast", "pixelate", "pixelate"]
    assert len(found) == 5 * len(PARTS)
    assert all(row["accuracy_low"] <= row["accuracy"] <= row["accuracy_high"] and row["images"] == 12 for row in found)
    assert json.loads((tmp_path / "rows.json").read_text()) == found
    lines = list(csv.DictReader((config.output_dir / "rows.csv").open()))
    assert [float(line["accuracy"]) for line in lines] == [row["accuracy"] for row in found]
    assert "Clopper" in (config.output_dir / "report.html").read_text()


def test_eval_gives_the_accuracy_of_the_model_itself(tuned, tmp_path, folder):
    config = EvalConfig(deltas=tuned[:1], output_dir=tmp_path / "eval", cpu=True, corruptions=("none",))
    evaluate(config)
    base = open_tuned(open_delta(tuned[0] / "delta"))
    images = open_data(str(folder)).test
    transform = base.eval_transform()
    right = [base.model(transform(image)[None]).argmax().item() == label for image, label in images]
    assert rows(config)[0]["accuracy"] == sum(right) / len(right)


def test_eval_computes_in_the_dtype_that_was_asked_for_with_weights_in_fp32(tuned, tmp_path, monkeypatch):
    options = {"deltas": tuned[:1], "cpu": True, "corruptions": ("none",), "limit": 3}
    predict, found = conditions.predict_images, []

    def seen(network, *arguments):
        logits, labels = predict(network, *arguments)
        found.append((logits, next(network.model.parameters()).dtype))
        return logits, labels

    monkeypatch.setattr(conditions, "predict_images", seen)
    for dtype in ("fp32", "bf16"):
        AcceleratorState._reset_state(reset_partial_state=True)
        evaluate(EvalConfig(output_dir=tmp_path / dtype, dtype=dtype, **options))
    (full, kept), (half, also) = found
    assert kept == also == torch.float32
    assert torch.equal(half, half.bfloat16().float()) and not torch.equal(full, full.bfloat16().float())
    torch.testing.assert_close(half, full, atol=0.05, rtol=0.05)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"deltas": ()}, "deltas=.* is empty"),
        ({"corruptions": ("rain",)}, "corruptions='rain' is unknown; allowed: gaussian_noise"),
        ({"shifts": ("imagenet-x:nowhere",)}, "imagenet-x"),
        ({"data": "digits"}, "other classes"),
        ({"severities": (6,)}, "severities=6"),
    ],
)
def test_what_cannot_be_judged_is_refused_in_one_line(tuned, tmp_path, changed, words):
    options = {"deltas": tuned, "corruptions": ("none",)} | changed
    with pytest.raises(ValueError, match=words) as error:
        evaluate(EvalConfig(output_dir=tmp_path / "eval", cpu=True, **options))
    assert "\n" not in str(error.value)


def test_angles_are_those_of_what_was_tuned(tuned, tmp_path):
    config = AnglesConfig(deltas=tuned[:2], output_dir=tmp_path / "angles", cpu=True)
    show_angles(config)
    found = rows(config)
    assert {row["unit"] for row in found} == {f"{kind}[{block}]" for kind in ("attn", "ffn") for block in range(6)}
    assert all(0 < row["angle"] < 1 for row in found)
    assert (
        "<svg" in (config.output_dir / "report.html").read_text()
        or "data:image" in (config.output_dir / "report.html").read_text()
    )


@pytest.mark.parametrize("kind", ["uniform", "greedy", "union", "per-part-mean"])
def test_a_soup_is_a_delta_like_any_other(tuned, tmp_path, kind):
    config = SoupConfig(deltas=tuned, kind=kind, output_dir=tmp_path / kind, cpu=True)
    soup(config)
    found = open_delta(config.output_dir / "delta")
    assert found.info["soup"] == kind
    results = json.loads((config.output_dir / "results.json").read_text())
    assert set(results["ingredients"]) <= {str(path) for path in tuned}
    evaluate(EvalConfig(deltas=(config.output_dir,), output_dir=tmp_path / "eval", cpu=True, corruptions=("none",)))
    if kind == "greedy":
        alone = [json.loads((path / "results.json").read_text())["val_accuracy"] for path in tuned]
        assert results["val_accuracy"] >= max(alone)


def test_wise_ft_lies_between_the_pretrained_and_the_tuned_model(tuned, tmp_path):
    for alpha in (0.0, 1.0):
        soup(SoupConfig(deltas=tuned[:1], kind="wise-ft", alpha=alpha, output_dir=tmp_path / f"{alpha}", cpu=True))
    one = open_delta(tuned[0] / "delta")
    start, end = (open_delta(tmp_path / f"{alpha}" / "delta") for alpha in (0.0, 1.0))
    assert set(start.names) == set(one.head)
    assert all(torch.equal(start.tensor(name), one.initial_head[name]) for name in one.head)
    assert all(torch.equal(end.tensor(name), one.tensor(name)) for name in end.names)


def test_ingredients_of_another_start_are_refused(config, tuned, tmp_path):
    train(config("other", strategy="attn", epochs=1, fit_head=False))
    with pytest.raises(ValueError, match="another initial head"):
        soup(SoupConfig(deltas=(*tuned, config("other").output_dir), output_dir=tmp_path / "soup", cpu=True))
    assert not (tmp_path / "soup").exists()


@pytest.mark.parametrize("command", ["eval", "merge"])
def test_a_folder_that_holds_no_delta_is_refused(tmp_path, command):
    with pytest.raises(ValueError, match="deltas='nowhere' is not a folder"):
        if command == "eval":
            evaluate(EvalConfig(deltas=(Path("nowhere"),), output_dir=tmp_path / "eval"))
        else:
            merge_file(MergeConfig(deltas=(Path("nowhere"),), output=tmp_path / "merged"))
    assert not list(tmp_path.iterdir())


def test_a_merged_file_is_a_plain_timm_state_dict(tuned, tmp_path):
    merge_file(MergeConfig(deltas=tuned[:1], output=tmp_path / "merged.safetensors"))
    model = timm.create_model("test_vit", img_size=32, num_classes=3)
    model.load_state_dict(load_file(tmp_path / "merged.safetensors"))
    expected = open_tuned(open_delta(tuned[0] / "delta")).model
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(model.eval()(images), expected(images))


def test_a_merged_file_may_be_in_half_precision(tuned, tmp_path):
    for dtype in ("fp32", "bf16"):
        merge_file(MergeConfig(deltas=tuned[:1], output=tmp_path / dtype, dtype=dtype))
    full, half = load_file(tmp_path / "fp32"), load_file(tmp_path / "bf16")
    assert {value.dtype for value in half.values()} == {torch.bfloat16}
    assert all(torch.equal(half[name], value.bfloat16()) for name, value in full.items())


STRATEGIES = ("full", "first_half", "last_half", "angle", "random_1")


@pytest.fixture
def sweep_config(config):
    def options(name="sweep", **changed):
        given = {"strategies": STRATEGIES, "seeds": 2, "learning_rates": (1e-4, 1e-3), "epochs": 1, "top_k": 1}
        given |= {"select_repeats": 1, "direction": "largest", "limit": 6, "corruptions": ("contrast",)}
        return config(name, kind=SweepConfig, **(given | changed))

    return options


def test_a_sweep_trains_judges_and_says_what_it_found(sweep_config):
    config = sweep_config()
    sweep(config)
    found = {row["strategy"]: row for row in rows(config)}
    soups = {"soup: uniform", "soup: greedy", "soup: per-part mean", "soup: union of halves", "full + WiSE-FT"}
    assert set(found) == {*STRATEGIES, *soups}
    assert all(row["seeds"] == 2 and 0 <= row["accuracy"] <= 1 for row in found.values())
    assert found["full"]["accuracy_minus_full"] == 0
    assert found["angle"]["learning_rate"] in config.learning_rates
    cells = list((config.output_dir / "cells").glob("*/*/seed-0/fit.json"))
    assert len(cells) == len(STRATEGIES) * len(config.learning_rates)
    assert len(list((config.output_dir / "cells").glob("*/*/seed-1/fit.json"))) == len(STRATEGIES)
    assert "as many random layers" in (config.output_dir / "report.html").read_text()


def test_a_sweep_that_was_killed_goes_on_and_ends_the_same(sweep_config, monkeypatch):
    options = {"strategies": ("full", "attn"), "learning_rates": (1e-3,)}
    sweep(sweep_config("whole", **options))
    step, left = loop.Training._step, [11]

    def dying(self, *arguments):
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        return step(self, *arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop.Training, "_step", dying)
        sweep(sweep_config("torn", **options))
    sweep(sweep_config("torn", resume=True, **options))
    whole, torn = (rows(sweep_config(name)) for name in ("whole", "torn"))
    assert [(row["strategy"], row["accuracy"], row["shifted_accuracy"]) for row in whole] == [
        (row["strategy"], row["accuracy"], row["shifted_accuracy"]) for row in torn
    ]


def judged(**accuracies):
    return [
        {"strategy": name, "seed": seed, "val_accuracy": 0.5, "shifted_accuracy": 0.5, "accuracy": accuracy}
        | {"tuned_parameters": len(name), "learning_rate": 1.0}
        for name, found in accuracies.items()
        for seed, accuracy in enumerate(found)
    ]


def test_differences_are_paired_by_seed():
    found = judged(full=[0.1, 0.5, 0.9], attn=[0.2, 0.6, 1.0])
    assert paired_difference(found, "attn", "full") == pytest.approx((0.1, 0))
    row = next(row for row in summarise(found) if row["strategy"] == "attn")
    assert (row["accuracy_minus_full"], row["accuracy_minus_full_ci"]) == pytest.approx((0.1, 0))
    assert paired_difference(found, "attn", "angle") is None


def test_what_another_row_beats_with_fewer_parameters_is_not_on_the_front():
    front = {row["strategy"]: row["pareto"] for row in summarise(judged(full=[0.5], attn=[0.6], ab=[0.4], large=[0.9]))}
    assert front == {"full": False, "attn": True, "ab": True, "large": True}


@pytest.mark.parametrize(
    ("mean", "ci", "said"), [(0.1, 0.05, "better"), (-0.1, 0.05, "worse"), (0.1, 0.2, "not told apart")]
)
def test_a_difference_counts_if_its_interval_excludes_nothing(mean, ci, said):
    assert verdict(mean, ci) == said


def test_bench_puts_the_ideal_beside_what_was_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "peak_bytes", lambda name, strategy, *_: len(strategy))  # a process for each: slow
    config = BenchConfig(output_dir=tmp_path / "bench", models=("test_vit",), batch_size=2, repeats=1, cpu=True)
    benchmark.main(config)
    found = {row["strategy"]: row for row in rows(config)}
    assert set(found) >= {"attn", "ffn", "first_half", "last_half", "attn_first", "attn_last", "ffn_first", "ffn_last"}
    assert found["last_half"]["ideal_ratio"] < found["first_half"]["ideal_ratio"] < 1
    assert found["last_half"]["activation_bytes"] < found["last_half"]["full_activation_bytes"]
    assert "step_ratio" in found["lora (peft)"] or "peft" in found["lora (peft)"]["why"]


def test_bench_steps_compute_in_the_dtype_that_was_asked_for():
    full, half = (
        benchmark.step_of("test_vit", "attn", BenchConfig(batch_size=1, dtype=dtype), torch.device("cpu"))
        for dtype in ("fp32", "bf16")
    )
    assert half.activation_bytes() < full.activation_bytes()
    half()
    assert {value.dtype for value in half.model.parameters()} == {torch.float32}


def test_peak_memory_is_that_of_a_process_of_its_own():
    config = BenchConfig(batch_size=64, cpu=True)
    full = benchmark.peak_bytes("test_vit", "full", config, torch.device("cpu"))
    assert full is None or 20 * 2**20 < full < 4 * 2**30  # None: this system does not tell


@pytest.mark.multiprocess
def test_two_processes_tune_the_same_and_freeze_the_same_bytes(laboratory, config, weights, folder, tmp_path):
    train(config("one", strategy="last_half", crop_scale=1.0))
    options = ["--model", "test_vit", "--weights", str(weights), "--image-size", "32", "--data", str(folder)]
    options += ["--epochs", "2", "--batch-size", "8", "--learning-rate", "1e-3", "--strategy", "last_half"]
    options += ["--crop-scale", "1", "--cpu", "--num-processes", "2", "--output-dir", str(tmp_path / "two")]
    call = {"call": "partial_finetune.commands.cli:main", "args": [["train", *options]]}
    answer = laboratory.ask(["partial_finetune"], tmp_path / "two", **call, world=2)
    assert answer.codes == [0, 0], answer.errors
    one, two = (open_delta(tmp_path / name / "delta") for name in ("one", "two"))
    assert one.names == two.names and one.base == two.base  # nothing else changed in either
    for name in one.names:
        torch.testing.assert_close(two.tensor(name), one.tensor(name), rtol=1e-3, atol=1e-5)


def test_the_demo_shows_six_models_and_the_angles_and_says_what_it_does(config, tmp_path, monkeypatch, capsys):
    recipe = config("demo", kind=SelectionConfig, epochs=1, select_epochs=1, top_k=1, direction="largest")
    monkeypatch.setattr(showing, "recipe_of", lambda _: recipe)
    monkeypatch.setattr(showing, "scratch", lambda task, seed: task)  # DINOv2 without its weights is not tiny
    demo_config = DemoConfig(output_dir=tmp_path / "demo", cpu=True)
    showing.main(demo_config)
    found = rows(demo_config)
    assert [row["strategy"] for row in found] == ["linear", "full", "attn", "ffn", "angle", "from scratch"]
    by_name = {row["strategy"]: row for row in found}
    assert by_name["linear"]["tuned_parameters"] < by_name["angle"]["tuned_parameters"]
    assert by_name["angle"]["tuned_parameters"] < by_name["full"]["tuned_parameters"]
    assert by_name["linear"]["activation_bytes"] < by_name["full"]["activation_bytes"] / 10
    assert by_name["angle"]["tuned"] in (demo_config.output_dir / "report.html").read_text()
    *steps, address = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in steps] == ["fine-tuning", *["tuning"] * 6]
    assert address == (demo_config.output_dir / "report.html").as_uri()
