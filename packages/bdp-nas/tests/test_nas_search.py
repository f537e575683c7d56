"""Searches: the same after a kill and on two processes, with costs that add up, and refused in one line."""

import dataclasses
import json
import math

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from PIL import Image

from bdp_nas.commands import search
from bdp_nas.commands.bilevel import Search, make_searcher
from bdp_nas.commands.cli import main
from bdp_nas.commands.data import open_data
from bdp_nas.commands.folders import read_found, read_options
from bdp_nas.commands.options import SearchConfig
from bdp_nas.commands.search import run_search
from bdp_nas.pruner import LEVELS
from bdp_nas.spaces import get_space
from frugal_shared.errors import RunError, UsageError
from frugal_shared.run import Run

TINY = {"channels": 4, "cells": 1, "epochs": 6, "samples": 160, "cpu": True}
TIMES = ("seconds", "costs")


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def tiny(**options):
    return SearchConfig(**(TINY | options))


def started(**options):
    config = tiny(**options)
    return Search(Accelerator(cpu=True), config, open_data(config, config.seed).train, config.seed)


def finished(**options):
    each = started(**options)
    while each.done < each.config.epochs:
        each.advance()
    return each


def timeless(found):
    return {name: value for name, value in dataclasses.asdict(found).items() if name not in TIMES}


def in_folder(folder, **options):
    """Search in a run folder, as the command does; return what was found."""
    config = tiny(output_dir=folder, **options)
    search.main(config)
    return read_found(folder)


@pytest.mark.parametrize("searcher", ["darts", "pc-darts", "random"])
@pytest.mark.parametrize("pruning", ["bdp", "infobatch"])
def test_a_search_that_is_killed_in_any_step_finds_the_same(tmp_path, monkeypatch, searcher, pruning):
    options = {"searcher": searcher, "pruning": pruning}
    options |= {"searcher_options": ("samples=3",)} if searcher == "random" else {}
    whole = in_folder(tmp_path / "whole", **options)
    step, run_step = 0, Search.run_step

    def killed(self, *arguments):
        nonlocal step
        step += 1
        if step in (2, 9):
            raise KeyboardInterrupt
        run_step(self, *arguments)

    monkeypatch.setattr(Search, "run_step", killed)
    for resume in (False, True):
        with pytest.raises(KeyboardInterrupt):
            in_folder(tmp_path / "killed", resume=resume, **options)
    assert timeless(in_folder(tmp_path / "killed", resume=True, **options)) == timeless(whole)
    weights = [(tmp_path / name / "supernet.safetensors").read_bytes() for name in ("whole", "killed")]
    assert weights[0] == weights[1]
    logged = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "killed")]
    assert logged[0] == logged[1]


def test_keeping_all_is_bit_for_bit_no_pruning():
    kept, none = finished(keep_final=1.0), finished(pruning="none")
    for left, right in zip(kept.supernet.state_dict().values(), none.supernet.state_dict().values(), strict=True):
        assert torch.equal(left, right)
    assert timeless(kept.conclude()) == timeless(none.conclude())


def test_costs_are_as_planned_and_add_up():
    each = finished(epochs=10)
    found = each.conclude()
    batches = sum(epoch["kept"]["weights"] for epoch in found.history)
    assert found.samples["weights"] == found.samples["architecture"]
    assert 0 <= batches - found.samples["weights"] < 8 * 10  # what is left of a multiple of 8 waits
    assert found.samples["weights"] / (10 * 80) == pytest.approx(each.planned_cost(), abs=0.1)
    assert each.planned_cost() < 0.5
    assert found.forward == found.backward == sum(cost["forward"] for cost in found.costs.values())
    per_sample = found.costs["weights"]["flops"] / found.samples["weights"]
    assert found.flops == pytest.approx(per_sample * sum(found.samples.values()))
    assert found.costs["pruning"]["seconds"] < found.seconds


def test_the_record_tells_every_epoch():
    found = finished().conclude()
    assert [epoch["epoch"] for epoch in found.history] == [1, 2, 3, 4, 5, 6]
    for epoch in found.history:
        assert torch.tensor(epoch["mixture"]["cell"]).sum(1).allclose(torch.ones(6))
        for level in LEVELS:
            assert sum(epoch["classes"][level]) == epoch["kept"][level]
            assert min(epoch["classes"][level]) >= 1
        assert 0 <= epoch["val_accuracy"] <= 1
    assert found.history[-1]["genotype"] == found.genotype
    assert {level: len(rows) for level, rows in found.kept.items()} == {"weights": 16, "architecture": 16}
    assert not set(found.kept["weights"]) & set(found.kept["architecture"])


@pytest.mark.parametrize("level", LEVELS)
def test_one_level_alone_can_be_pruned(level):
    found = finished(levels=level).conclude()
    assert {name: len(rows) for name, rows in found.kept.items()} == {
        name: 16 if name == level else 80 for name in LEVELS
    }


def test_a_level_that_rests_costs_nothing_and_is_pruned_later():
    found = finished(searcher="pc-darts", epochs=10).conclude()
    seen = [epoch["val_loss"] is not None for epoch in found.history]
    assert seen == [False] * 3 + [True] * 7
    kept = [epoch["kept"]["architecture"] for epoch in found.history]
    assert kept[:5] == [80] * 5
    assert kept[-1] == 16
    assert found.samples["architecture"] < found.samples["weights"]


def test_random_pruning_costs_as_much_and_keeps_others():
    bdp, drawn = finished().conclude(), finished(pruning="random").conclude()
    assert bdp.samples == drawn.samples
    assert bdp.kept != drawn.kept


def test_infobatch_weighs_the_losses_of_what_stays():
    each = started(pruning="infobatch")
    each.advance()
    rows = each.pruner.kept["weights"]
    weights, labels = each.pruner.sample_weights(rows), each.images.labels[rows]
    assert set(weights.tolist()) == {1.0, 2.0}
    images, targets = each.weighted(rows, (torch.zeros(len(rows)), labels))
    logits = torch.randn(len(rows), 10)
    expected = (weights * F.cross_entropy(logits, labels, reduction="none")).mean()
    assert F.cross_entropy(logits, targets).item() == pytest.approx(expected.item(), rel=1e-5)
    assert len(images) == len(rows)
    assert math.isnan(each.planned_cost())


@pytest.mark.parametrize("space", ["darts", "mobilenet", "macro"])
def test_every_space_is_searched(space):
    cells = 3 if space == "darts" else 1
    # on some CPUs (AMD EPYC) the oneDNN of torch 2.15 corrupts the heap in the backward pass of so small a supernet
    with torch.backends.mkldnn.flags(enabled=space != "macro"):
        found = finished(space=space, cells=cells, epochs=1, samples=40, searcher="darts-2").conclude()
    assert get_space(space).operations(found.genotype)
    assert found.forward == 4 + 1  # 20 samples of each level make one batch of 16


def test_a_searcher_has_its_own_options():
    config = tiny(searcher="beta-darts", searcher_options=("strength=3", "learning_rate=1e-2"))
    made = make_searcher(config, seed=0)
    assert (made.strength, made.learning_rate) == (3.0, 0.01)
    assert make_searcher(tiny(searcher="random", searcher_options=("samples=2",)), seed=7).seed == 7
    for wrong in ("strength", "strength=x", "nothing=1", "criterion=1"):
        with pytest.raises(UsageError, match=r"is not possible; allowed: .*strength=<float>"):
            make_searcher(tiny(searcher="beta-darts", searcher_options=(wrong,)), seed=0)


def test_a_collapse_is_told(tmp_path, capsys):
    found = in_folder(tmp_path / "run", epochs=1, skip_limit=0.0, samples=40, searcher_options=("learning_rate=1e-9",))
    skips = found.genotype.count("skip_connect")
    assert found.collapsed == (skips > 0)
    assert ("collapsed:" in capsys.readouterr().err) == found.collapsed


def test_a_folder_that_is_done_is_read_back(tmp_path, monkeypatch):
    first = in_folder(tmp_path / "run")
    monkeypatch.setattr(Search, "advance", None)
    config = tiny(output_dir=tmp_path / "run", resume=True)
    with Run(config, "bdp-nas") as run:
        assert run_search(run, config, run.folder, 0) == first
    assert read_options(tmp_path / "run").samples == 160
    assert not (tmp_path / "run" / "checkpoints").exists()
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["samples/weights"] == first.samples["weights"]


def test_a_checkpoint_of_another_space_is_refused(tmp_path):
    first = started()
    first.advance()
    first.save(tmp_path)
    with pytest.raises(UsageError, match="space='macro' cannot go on from a checkpoint of 'nasbench201'"):
        started(space="macro").restore(tmp_path)
    with pytest.raises(UsageError, match="seed=1 cannot go on"):
        started(seed=1).restore(tmp_path)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("--keep-final 0.001", "level 'weights': keep=0.001 leaves 0 of 80 samples; allowed: at least 10"),
        ("--samples 60 --keep-final 0.2 --tau inf --min-per-class 3", "leaves 6 of 30 samples; allowed: at least 30"),
        ("--samples 10", "level 'weights': class 1 has 0 samples; allowed: some at both levels"),
        ("--min-per-class 30", "level 'weights': class 0 has 8 samples; allowed: at least 30"),
        ("--samples 80 --keep-final 0.1 --data textured-digits --epochs 3", "samples; allowed: at least 40"),
        ("--searcher pc-darts --channels 6", "partial=4"),
        ("--searcher pc-darts --space macro", "partial=4 is not defined in the space macro; allowed: 1"),
        ("--space nothing", "space='nothing' is unknown; allowed: nasbench201, darts, mobilenet, macro"),
        ("--warm-up 0.6", "warm_up=0.6, keep_end=0.5 is not possible; allowed: 0 ≤ warm_up < keep_end ≤ 1"),
        ("--window 1", "window=1 is not possible; score='abs_delta' allows 2 or more"),
        ("--data nothing", "data='nothing' is unknown"),
        ("--table nothing.npz", "table 'nothing.npz' is no file; allowed: an .npz or .json table"),
        ("--searcher-options strength=1", "searcher_options='strength=1' is not possible"),
    ],
)
def test_a_wrong_request_is_refused_in_one_line_and_leaves_nothing(tmp_path, capsys, options, told):
    common = ["--cpu", "--samples", "160", "--channels", "4", "--cells", "1", "--epochs", "6"]
    code = main(["search", "--output-dir", str(tmp_path / "run"), *common, *options.split()])
    lines = [line for line in capsys.readouterr().err.splitlines() if line]
    assert (code, len(lines)) == (2, 1), lines
    assert told in lines[0]
    assert not list(tmp_path.iterdir())


def test_a_keep_ratio_that_leaves_no_batch_is_refused(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for number in range(12):
            Image.new("L", (8, 8), number).save(tmp_path / name / f"{number}.png")
    with pytest.raises(ValueError, match=r"keep=0.4 leaves 3 samples, less than one batch; allowed: more"):
        started(data=str(tmp_path), samples=None, keep_final=0.4)


def test_a_folder_without_a_search_is_refused(tmp_path):
    for read in (read_found, read_options):
        with pytest.raises(RunError, match="allowed: the run folder of a search that is done"):
            read(tmp_path)
    (tmp_path / "found.json").write_text("[1]")
    with pytest.raises(RunError, match=r"found\.json in .* holds no object"):
        read_found(tmp_path)
