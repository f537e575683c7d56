"""An ablation compares seed by seed, says what its intervals say, and goes on where it was."""

import csv
import json
import math

import pytest
import torch

from bdp_nas.commands import ablate, ablate_report
from bdp_nas.commands.options import VARIANTS, AblateConfig
from bdp_nas.table import COLUMNS
from frugal_shared.errors import UsageError

KEYS = {"searcher", "pruning", "seed", "samples", "seconds", "retrained_accuracy", "genotype"}


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def rows_of(accuracies, searcher="darts", cost=100):
    """Return rows from kind of pruning → accuracies by seed."""
    return [
        {
            "searcher": searcher,
            "pruning": pruning,
            "seed": seed,
            "samples": cost if pruning == "none" else 0.4 * cost,
            "seconds": cost if pruning == "none" else 0.5 * cost,
            "retrained_accuracy": accuracy,
            "collapsed": False,
            "dead": False,
        }
        for pruning, each in accuracies.items()
        for seed, accuracy in enumerate(each)
    ]


def tiny(folder, **options):
    defaults = {"searchers": ("darts",), "variants": ("none", "bdp"), "seeds": 1, "cpu": True, "samples": 160}
    return AblateConfig(output_dir=folder, **(defaults | {"epochs": 4, "retrain_epochs": 1} | options))


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ablate")
    torch.set_num_threads(1)
    config = tiny(folder / "run", json=folder / "own.json", seeds=2)
    ablate.main(config)
    return config


def test_rows_have_the_keys_that_were_agreed_on(done):
    rows = json.loads(done.json.read_text())
    assert rows == json.loads((done.output_dir / "rows.json").read_text())
    assert [(row["seed"], row["pruning"]) for row in rows] == [(0, "none"), (0, "bdp"), (1, "none"), (1, "bdp")]
    assert all(row.keys() >= KEYS for row in rows)
    assert all(0 <= row["retrained_accuracy"] <= 1 and row["genotype"].count("~") == 6 for row in rows)
    with (done.output_dir / "rows.csv").open() as file:
        assert [row["genotype"] for row in csv.DictReader(file)] == [row["genotype"] for row in rows]


def test_the_report_and_the_results_are_there(done):
    assert "darts with BDP" in (done.output_dir / "report.html").read_text()
    results = json.loads((done.output_dir / "results.json").read_text())
    assert results.keys() == {f"darts/{kind}/{key}" for kind in ("none", "bdp") for key in ("accuracy", "samples")}


def test_a_cell_that_is_done_is_not_searched_again(done, monkeypatch):
    monkeypatch.setattr("bdp_nas.commands.search.Search", None)
    ablate.main(ablate.replace(done, resume=True))


def test_a_cell_that_is_missing_is_filled_with_the_same_row(done):
    before = json.loads(done.json.read_text())
    (done.output_dir / "cells/darts/bdp/seed-1/found.json").unlink()
    ablate.main(ablate.replace(done, resume=True))
    after = json.loads(done.json.read_text())
    assert [row | {"seconds": 0} for row in before] == [row | {"seconds": 0} for row in after]


def test_with_a_table_rows_have_its_accuracies(tmp_path, monkeypatch):
    class Known:
        space = "nasbench201"

        def query(self, genotype):
            return {name: type("Standing", (), {"test": 90.0}) for name in COLUMNS}

    monkeypatch.setattr(ablate.Table, "load", lambda path: Known())
    config = tiny(tmp_path / "run", table=tmp_path / "table.npz", variants=("bdp",))
    ablate.main(config)
    [row] = json.loads((config.output_dir / "rows.json").read_text())
    assert [row[name] for name in COLUMNS] == [90.0, 90.0, 90.0]


def test_a_table_of_another_space_is_refused_before_anything_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(ablate.Table, "load", lambda path: type("Other", (), {"space": "macro"}))
    with pytest.raises(UsageError, match="is of the space 'macro'; allowed: 'nasbench201'"):
        ablate.main(tiny(tmp_path / "run", table=tmp_path / "table.npz"))
    assert not (tmp_path / "run").exists()


def test_every_kind_of_pruning_has_its_options():
    assert tuple(ablate.OF_VARIANT) == VARIANTS


def test_ratios_and_differences_are_paired_by_seed():
    rows = rows_of({"none": [0.9, 0.8, 0.7], "random": [0.9, 0.9, 0.9], "bdp": [0.91, 0.81, 0.71]})
    bdp = next(row for row in ablate_report.summarise(rows) if row["pruning"] == "bdp")
    assert bdp["minus_none"] == pytest.approx(0.01) and bdp["minus_none_ci"] == pytest.approx(0, abs=1e-9)
    assert bdp["samples_ratio"] == pytest.approx(0.4) and bdp["seconds_ratio"] == pytest.approx(0.5)
    assert bdp["minus_random_ci"] > 0.1


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ((0.02, 0.01), "better"),
        ((-0.02, 0.01), "worse"),
        ((-0.01, 0.02), "not told apart"),
        ((0.1, math.nan), "nothing"),
    ],
)
def test_a_verdict_is_what_the_interval_says(found, said):
    assert said in ablate_report.verdict(found)


def test_the_report_says_if_random_pruning_does_as_well():
    equal = rows_of({"none": [0.9, 0.8, 0.7], "random": [0.9, 0.8, 0.7], "bdp": [0.9, 0.8, 0.7]})
    better = rows_of({"none": [0.9, 0.8, 0.7], "random": [0.9, 0.8, 0.7], "bdp": [0.95, 0.85, 0.75]})
    for rows, said in ((equal, True), (better, False)):
        text = " ".join(ablate_report.answers(ablate_report.summarise(rows), rows))
        assert ("random pruning saves as well" in text) == said
        assert "0.40× the samples and 0.50× the seconds" in text and "(within" in text


def test_a_kind_that_saves_too_little_is_told():
    rows = rows_of({"none": [0.9, 0.8], "bdp": [0.9, 0.8]})
    rows = [row | {"seconds": 100} for row in rows]
    assert "NOT within" in " ".join(ablate_report.answers(ablate_report.summarise(rows), rows))


def test_one_dead_cell_does_not_hide_how_the_others_went():
    rows = rows_of({"none": [0.9, 0.8, 0.1], "random": [0.9, 0.8, 0.7], "bdp": [0.89, 0.8, 0.7]})
    text = " ".join(ablate_report.answers(ablate_report.summarise(rows), rows))
    assert "not told apart; higher in 1, equal in 1 and lower in 1 pairs" in text


def test_the_command_makes_the_same_ablation_again(tmp_path):
    config = tiny(tmp_path)
    said = ablate_report.command(config).split()
    assert said[said.index("--variants") + 1 :][:2] == ["none", "bdp"]
    assert said[said.index("--samples") + 1] == "160" and "--data" not in said
