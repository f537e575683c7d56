"""Retraining: it learns, resumes with the same bytes, counts what remains, and refuses in one line."""

import json
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator

from bdp_nas.blueprint import Blueprint
from bdp_nas.commands import retrain
from bdp_nas.commands.cli import main
from bdp_nas.commands.data import open_data
from bdp_nas.commands.folders import genotype_of, read_blueprint
from bdp_nas.commands.options import RetrainConfig, TaskConfig
from bdp_nas.commands.retrain import Training, accuracy, run_retrain
from bdp_nas.spaces import get_space
from bdp_nas.spaces.nasbench201 import parameter_count
from bdp_nas.spaces.space import Size
from frugal_shared.errors import RunError, UsageError
from frugal_shared.run import Run

CELL = "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_1x1~1|+|skip_connect~0|avg_pool_3x3~1|nor_conv_3x3~2|"
TINY = {"channels": 4, "cells": 1, "epochs": 3, "samples": 200, "cpu": True}


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def tiny(**options):
    return RetrainConfig(**(TINY | {"genotype": CELL} | options))


def facts_of(folder):
    return json.loads((folder / "retrain.json").read_text())


def timeless(facts):
    return {name: value for name, value in facts.items() if name != "seconds"}


def test_a_network_learns_and_what_came_out_is_told(tmp_path):
    retrain.main(tiny(output_dir=tmp_path / "run", epochs=12, samples=None, learning_rate=0.1))
    facts = facts_of(tmp_path / "run")
    assert facts["accuracy"] > 0.8
    assert facts["val_accuracy"] > 0.8
    assert facts["parameters"] == parameter_count(CELL, Size(10, 4, 1, 1))
    assert facts["samples"] == 12 * 984  # what is left of a multiple of 8 waits
    assert (facts["genotype"], facts["space"], facts["epochs"]) == (CELL, "nasbench201", 12)
    assert json.loads((tmp_path / "run" / "results.json").read_text())["accuracy"] == facts["accuracy"]
    assert Blueprint.read(tmp_path / "run").genotype == genotype_of(str(tmp_path / "run")) == CELL


def test_the_folder_of_a_search_names_its_space_too(tmp_path):
    images = open_data(tiny()).train
    Blueprint.of(images, "macro", "01", 4, 1).write(tmp_path)
    with pytest.raises(ValueError, match="genotype '01' has 2 blocks; allowed: 3"):
        retrain.main(tiny(genotype=str(tmp_path), output_dir=tmp_path / "run"))


def test_a_training_that_is_killed_ends_with_the_same_bytes(tmp_path, monkeypatch):
    options = {"drop_path": 0.3, "label_smoothing": 0.1}
    retrain.main(tiny(output_dir=tmp_path / "whole", **options))
    count, step = 0, Training.step

    def killed(self, *arguments):
        nonlocal count
        count += 1
        if count == 7:
            raise KeyboardInterrupt
        return step(self, *arguments)

    monkeypatch.setattr(Training, "step", killed)
    with pytest.raises(KeyboardInterrupt):
        retrain.main(tiny(output_dir=tmp_path / "killed", **options))
    retrain.main(tiny(output_dir=tmp_path / "killed", resume=True, **options))
    for name in ("network.safetensors", "metrics.jsonl"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()
    assert timeless(facts_of(tmp_path / "whole")) == timeless(facts_of(tmp_path / "killed"))


def test_a_folder_that_is_done_is_read_back(tmp_path, monkeypatch):
    config = tiny(output_dir=tmp_path / "run", epochs=1)
    with Run(config, "bdp-nas") as run:
        first = run_retrain(run, config, CELL, tmp_path / "run" / "cell", seed=4)
        monkeypatch.setattr(Training, "advance", None)
        assert run_retrain(run, config, CELL, tmp_path / "run" / "cell", seed=4) == first
    assert first["seed"] == 4


def test_the_auxiliary_classifier_helps_to_train_and_is_thrown_away(tmp_path):
    torch.manual_seed(0)
    genotype = get_space("darts").supernet(Size(10, 4, 3, 1)).genotype()
    options = {"space": "darts", "cells": 3, "auxiliary": 0.4, "epochs": 1, "image_size": 32, "samples": 64}
    retrain.main(tiny(output_dir=tmp_path / "run", genotype=genotype, **options))
    network = get_space("darts").network(genotype, Size(10, 4, 3, 1))
    assert facts_of(tmp_path / "run")["parameters"] == sum(value.numel() for value in network.parameters())


def test_accuracy_counts_every_image_once():
    images = open_data(TaskConfig(data="digits")).test

    class Right(torch.nn.Module):
        def forward(self, batch):
            place = Right.place
            Right.place += len(batch)
            return torch.nn.functional.one_hot(images.labels[place : place + len(batch)], 10).float()

    Right.place = 0
    blueprint = Blueprint.of(images, "nasbench201", CELL, 4, 1)
    assert accuracy(Right(), blueprint, images, Accelerator(cpu=True)) == 1.0
    assert Right.place == len(images)
    assert (
        accuracy(
            Right(),
            blueprint,
            replace(images, pixels=images.pixels[:0], labels=images.labels[:0]),
            Accelerator(cpu=True),
        )
        is None
    )


def test_a_checkpoint_of_another_genotype_is_refused(tmp_path):
    images = open_data(tiny()).train
    blueprints = [
        Blueprint.of(images, "nasbench201", CELL.replace("avg_pool_3x3", name), 4, 1)
        for name in ("none", "skip_connect")
    ]
    first, second = (Training(Accelerator(cpu=True), tiny(), blueprint, images, 0) for blueprint in blueprints)
    first.advance()
    first.save(tmp_path)
    with pytest.raises(UsageError, match="cannot go on from that of"):
        second.restore(tmp_path)


@pytest.mark.parametrize(
    ("argv", "told", "code"),
    [
        (["|none~0|"], "has other edges; allowed: |op~0|+|op~0|op~1|+|op~0|op~1|op~2|", 2),
        (["rubbish"], "cell 'rubbish' does not parse; allowed: nodes as |operation~source|, joined by +", 2),
        ([CELL.replace("avg_pool_3x3", "max_pool_3x3")], "operation 'max_pool_3x3' is unknown; allowed: none", 2),
        (["0120", "--space", "macro"], "genotype '0120' has 4 blocks; allowed:", 2),
        ([CELL, "--auxiliary", "0.4"], "auxiliary=True is not defined in the space nasbench201; allowed: False", 2),
        ([CELL, "--drop-path", "1"], "drop_path=1.0 is out of range; allowed: 0 to 0.99", 2),
        ([CELL, "--epochs", "0"], "epochs=0 is not possible; allowed: above 0", 2),
        (["."], "has no genotype.json; allowed: the run folder of a search or a retraining that is done", 1),
    ],
)
def test_a_wrong_request_is_refused_in_one_line_and_leaves_nothing(tmp_path, capsys, monkeypatch, argv, told, code):
    monkeypatch.chdir(tmp_path)
    assert main(["retrain", *argv, "--cpu", "--cells", "1", "--output-dir", "run"]) == code
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert told in lines[0]
    assert not list(tmp_path.iterdir())


def test_a_genotype_that_is_too_long_for_a_file_is_a_genotype():
    assert genotype_of("|" * 5000) == "|" * 5000


def test_a_blueprint_of_something_else_is_refused(tmp_path):
    for text in ("[]", "{", '{"space": "macro"}'):
        (tmp_path / "genotype.json").write_text(text)
        with pytest.raises(RunError, match=r"genotype\.json.*; allowed"):
            read_blueprint(tmp_path)
