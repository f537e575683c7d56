"""Training from the command line's function down: what it saves, and that a kill changes nothing."""

import hashlib
import json

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import save_file

from frugal_shared.errors import UsageError
from partial_finetune.commands import fitting as loop
from partial_finetune.commands.models import find_delta, open_base, open_tuned
from partial_finetune.commands.options import SelectConfig
from partial_finetune.commands.select import main as run_selection
from partial_finetune.commands.train import main as train
from partial_finetune.deltas import open_delta


def digest(config):
    """Hash of the tuned tensors of a run."""
    return hashlib.sha256((config.output_dir / "delta" / "delta.safetensors").read_bytes()).hexdigest()


def results(config):
    return json.loads((config.output_dir / "results.json").read_text())


def interrupt(monkeypatch, steps):
    """Let training die after so many steps, whichever training it is."""
    step, left = loop.Training._step, [steps]

    def dying(self, *arguments):
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        return step(self, *arguments)

    monkeypatch.setattr(loop.Training, "_step", dying)


def test_a_delta_holds_what_was_tuned_and_opens_as_the_tuned_model(config):
    train(config(strategy="attn[4:]"))
    delta = find_delta(config().output_dir)
    assert delta.expression == "attn[4:]"
    tuned = {name for name in delta.names if name.startswith("blocks")}
    assert tuned == {f"blocks.{b}.attn.{part}" for b in (4, 5) for part in ("qkv.weight", "qkv.bias", "proj.weight", "proj.bias")}  # fmt: skip # noqa: E501
    model, base = open_tuned(delta).model, open_base(delta).model
    assert torch.equal(model.blocks[3].attn.qkv.weight, base.blocks[3].attn.qkv.weight)
    assert not torch.equal(model.blocks[4].attn.qkv.weight, base.blocks[4].attn.qkv.weight)
    found = results(config())
    assert found["tuned_backbone_parameters"] == 2 * (64 * 192 + 192 + 64 * 64 + 64) + 2 * 64  # and the last norm
    assert 0 <= found["val_accuracy"] <= 1 and found["steps"] == 8


RECIPES = {
    "plain": {},
    "ema": {"ema": 0.9, "layer_decay": 0.7},
    "mixup": {"mixup": 0.8, "cutmix": 1.0, "label_smoothing": 0.1, "auto_augment": "rand-m5-inc1"},
    "drop-path and bf16": {"drop_path": 0.3, "dtype": "bf16"},
}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_a_training_that_was_killed_ends_with_the_same_bytes(config, monkeypatch, recipe):
    whole, torn = config("whole", strategy="last_2", **recipe), config("torn", strategy="last_2", **recipe)
    train(whole)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt(patch, 5)  # one step after a checkpoint
        train(torn)
    train(config("torn", strategy="last_2", resume=True, **recipe))
    assert digest(torn) == digest(whole)


BY_ANGLE = {"strategy": "angle", "top_k": 1, "select_epochs": 1, "select_repeats": 1, "epochs": 1}


@pytest.fixture(scope="module")
def whole(configs, tmp_path_factory):
    """Options of a training by the angle that nobody interrupted: 4 steps full, 3 × 4 of the race, 4 of the choice."""
    AcceleratorState._reset_state(reset_partial_state=True)  # of a test before
    options = configs(tmp_path_factory.mktemp("selection"), "whole", **BY_ANGLE)
    train(options)
    return options


@pytest.mark.parametrize("steps", [3, 9, 15])
def test_a_selection_that_was_killed_chooses_the_same_and_ends_with_the_same_bytes(config, whole, monkeypatch, steps):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt(patch, steps)
        train(config("torn", **BY_ANGLE))
    train(config("torn", resume=True, **BY_ANGLE))
    assert digest(config("torn")) == digest(whole)
    folders = (whole.output_dir, config("torn").output_dir)
    chosen = [json.loads((folder / "selection/selection.json").read_text()) for folder in folders]
    assert chosen[0] == chosen[1]
    assert set(chosen[0]["race"]) == {"largest", "smallest", "random"}


def test_the_result_does_not_depend_on_the_number_of_workers(config):
    for name, workers in (("none", 0), ("two", 2)):
        train(config(name, strategy="attn.proj", workers=workers))
    assert digest(config("none")) == digest(config("two"))


def test_the_seed_decides(config):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(config(name, strategy="last_2", seed=seed))
    assert digest(config("a")) == digest(config("b")) != digest(config("c"))


def test_selection_alone_writes_the_expression_and_leaves_no_weights(config):
    run_selection(config(kind=SelectConfig, top_k=2, direction="largest", select_epochs=1))
    found = json.loads((config().output_dir / "selection.json").read_text())
    assert found["direction"] == "largest"
    assert found["expression"].count(",") == 2 and -1 <= found["stability"] <= 1
    assert not list(config().output_dir.glob("*/delta"))


def test_a_random_head_is_possible(config):
    train(config(strategy="linear", fit_head=False))
    assert results(config())["linear_accuracy"] is None
    assert len(open_delta(config().output_dir / "delta").initial_head) == 2


BAD = {
    "an unknown model": ({"model": "vit_enormous", "weights": None}, "model='vit_enormous' is unknown"),
    "a size that does not fit": ({"image_size": 33}, "image_size=33"),
    "an unknown data set": ({"data": "no-such-folder"}, "no-such-folder"),
    "a strategy that does not parse": ({"strategy": "attn[0:"}, "column"),
    "a strategy that selects nothing": ({"strategy": "attn - attn"}, "selects nothing"),
    "a kind that the model lacks": ({"strategy": "depthwise"}, "depthwise"),
}


@pytest.mark.parametrize(("changed", "words"), BAD.values(), ids=BAD)
def test_what_cannot_be_trained_is_refused_in_one_line_and_leaves_nothing(config, changed, words):
    with pytest.raises(ValueError, match=words.replace("[", r"\[")) as error:
        train(config(**changed))
    assert "\n" not in str(error.value)
    assert not config().output_dir.exists()


def test_weights_of_another_model_are_refused(config, tmp_path):
    foreign = tmp_path / "foreign.safetensors"
    save_file({"weight": torch.zeros(3)}, foreign)
    with pytest.raises(ValueError, match="do not fit model='test_vit'"):
        train(config(weights=foreign))


@pytest.mark.parametrize(
    "changed",
    [{"epochs": 0}, {"ema": 1.0}, {"layer_decay": 0.0}, {"mixup": -1.0}, {"crop_scale": 0.0}, {"val_share": 1.0},
     {"samples": 0}, {"top_k": 0}, {"drop_path": 1.0}],
)  # fmt: skip
def test_an_impossible_option_is_refused_by_name(config, changed):
    [(name, value)] = changed.items()
    with pytest.raises(UsageError, match=f"{name}={value}"):
        config(**changed)
