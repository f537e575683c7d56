"""Two processes search as one does, bit for bit, and train one network."""

import json

import pytest
import torch

from bdp_nas.commands import search
from bdp_nas.commands.folders import read_found
from bdp_nas.commands.options import SearchConfig
from bdp_nas.processes import divide

TINY = {"channels": 4, "cells": 1, "epochs": 6, "samples": 160, "cpu": True}
WORKER = f"""
import pathlib
from bdp_nas.commands import retrain, search
from bdp_nas.commands.options import RetrainConfig, SearchConfig
from frugal_shared.launch import leave_group

root, tiny = pathlib.Path(folder), {TINY}
cell = "|nor_conv_3x3~0|+|nor_conv_3x3~0|none~1|+|skip_connect~0|none~1|nor_conv_1x1~2|"
search.main(SearchConfig(output_dir=root / "two", **tiny))
longer = tiny | {{"epochs": 20, "learning_rate": 0.1}}
retrain.main(RetrainConfig(genotype=cell, output_dir=root / "retrain", **longer))
leave_group()
"""


@pytest.fixture(scope="module")
def folder(laboratory, tmp_path_factory):
    """What two processes made."""
    root = tmp_path_factory.mktemp("processes")
    answer = laboratory.ask(["bdp_nas"], root, call="builtins:exec", args=[WORKER, {"folder": str(root)}], world=2)
    assert answer.codes == [0, 0], answer.errors
    return root


def test_two_processes_keep_the_samples_that_one_keeps(folder):
    torch.set_num_threads(1)
    search.main(SearchConfig(output_dir=folder / "one", **TINY))
    one, two = read_found(folder / "one"), read_found(folder / "two")
    assert (one.genotype, one.kept, one.samples) == (two.genotype, two.kept, two.samples)
    assert [epoch["mixture"] for epoch in one.history] == [epoch["mixture"] for epoch in two.history]
    assert [epoch["loss"] for epoch in one.history] == pytest.approx([epoch["loss"] for epoch in two.history])


def test_two_processes_train_one_network(folder):
    facts = json.loads((folder / "retrain" / "retrain.json").read_text())
    assert facts["samples"] == 20 * 160
    assert facts["loss"] < 1.8  # of chance: 2.3


def test_a_divided_model_has_batch_norms_for_each_part():
    norm = torch.nn.BatchNorm2d(3)
    images = torch.randn(8, 3, 4, 4)
    halves = torch.cat([torch.nn.BatchNorm2d(3)(half) for half in images.chunk(2)])
    divide(norm, 2)
    assert torch.equal(norm(images), halves)
