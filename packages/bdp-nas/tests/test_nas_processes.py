"""Two processes search as one does, bit for bit, and train one network."""

import json
import os
import subprocess
import sys

import pytest
import torch

from bdp_nas.configs import SearchConfig
from bdp_nas.processes import divide
from bdp_nas.search import read_found, search

OPTIONS = {"channels": 4, "cells": 1, "epochs": 6, "samples": 160}


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def on_two(command, *arguments):
    words = [word for name, value in OPTIONS.items() for word in (f"--{name}", str(value))]
    argv = [sys.executable, "-m", "bdp_nas", command, *arguments, "--cpu", "--num-processes", "2", *words]
    subprocess.run(argv, check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


def test_two_processes_keep_the_samples_that_one_keeps(tmp_path):
    search(SearchConfig(output_dir=tmp_path / "one", cpu=True, **OPTIONS))
    on_two("search", "--output-dir", str(tmp_path / "two"))
    one, two = read_found(tmp_path / "one"), read_found(tmp_path / "two")
    assert (one.genotype, one.kept, one.samples) == (two.genotype, two.kept, two.samples)
    assert [epoch["mixture"] for epoch in one.history] == [epoch["mixture"] for epoch in two.history]
    assert [epoch["loss"] for epoch in one.history] == pytest.approx([epoch["loss"] for epoch in two.history])


def test_two_processes_train_one_network(tmp_path):
    cell = "|nor_conv_3x3~0|+|nor_conv_3x3~0|none~1|+|skip_connect~0|none~1|nor_conv_1x1~2|"
    on_two("retrain", cell, "--output-dir", str(tmp_path / "run"))
    facts = json.loads((tmp_path / "run" / "retrain.json").read_text())
    assert facts["samples"] == 6 * 160
    assert facts["accuracy"] > 0.15


def test_a_divided_model_has_batch_norms_for_each_part():
    norm = torch.nn.BatchNorm2d(3)
    images = torch.randn(8, 3, 4, 4)
    halves = torch.cat([torch.nn.BatchNorm2d(3)(half) for half in images.chunk(2)])
    divide(norm, 2)
    assert torch.equal(norm(images), halves)
