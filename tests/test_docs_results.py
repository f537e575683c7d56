"""The generated pages say what the committed JSON says."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture
def make_results(tmp_path, monkeypatch):
    """The script, working on a copy of the pages."""
    spec = importlib.util.spec_from_file_location("make_results", DOCS / "make_results.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    shutil.copytree(DOCS, tmp_path / "docs")
    monkeypatch.setattr(module, "DOCS", tmp_path / "docs")
    return module


def ablation_row(pruning, seed, samples, accuracy):
    return {
        "searcher": "darts",
        "pruning": pruning,
        "seed": seed,
        "samples": samples,
        "seconds": samples / 10,
        "retrained_accuracy": accuracy,
        "genotype": "|skip_connect~0|",
        "collapsed": False,
        "dead": False,
    }


def write(make_results, name, rows):
    (make_results.DOCS / f"results/{name}.json").write_text(json.dumps(rows))


def line_of(page, start):
    return next(line for line in page.splitlines() if line.startswith(start))


def test_the_committed_pages_are_up_to_date(make_results, capsys):
    assert make_results.main(["--check"]) == 0, capsys.readouterr().err


def test_a_stale_page_is_named_in_one_line(make_results, capsys):
    page = make_results.DOCS / "claims.md"
    page.write_text(page.read_text().replace("dB", "decibels"))
    assert make_results.main(["--check"]) == 1
    assert capsys.readouterr().err == "docs/claims.md is not up to date; run: python docs/make_results.py\n"
    assert make_results.main([]) == 0
    assert make_results.main(["--check"]) == 0


def test_figures_of_claims_follow_the_json(make_results):
    rows = make_results.read("delta-dit-demo-1.6")
    [row] = [row for row in rows if row["method"] == "paper"]
    row["psnr_db"], row["psnr_db_ci"] = 12.34, 0.56
    write(make_results, "delta-dit-demo-1.6", rows)
    assert "The paper's schedule: 12.3 ± 0.6 dB" in make_results.claims()


def test_ratios_and_differences_of_an_ablation_are_paired_by_seed(make_results):
    rows = [ablation_row("none", seed, 100 * (seed + 1), 0.9 - 0.1 * seed) for seed in range(2)]
    rows += [ablation_row("random", seed, 40 * (seed + 1), 0.9 - 0.1 * seed) for seed in range(2)]
    rows += [ablation_row("bdp", seed, 40 * (seed + 1), 0.91 - 0.1 * seed) for seed in range(2)]
    write(make_results, "bdp-nas-ablation", rows)
    # 0.4 and one point in each pair: no spread, although samples and accuracies differ from seed to seed
    line = line_of(make_results.results(), "| darts | bdp | 2 | 0.40 ± 0.00 | 0.40 ± 0.00 | 86.00 ± ")
    assert line.endswith("| +1.00 ± 0.00 | +1.00 ± 0.00 | 0 | 0 |")
    claims = make_results.claims()
    assert "0.40× the samples and 0.40× the seconds" in claims
    assert "accuracy against no pruning +1.00 ± 0.00 points" in claims


def test_a_file_that_is_not_known_is_shown_as_it_is(make_results):
    write(
        make_results, "new-measurement", [{"what": "a|b", "value": 0.123456, "value_ci": 0.1, "count": 3, "none": None}]
    )
    page = make_results.results()
    assert "## new-measurement" in page
    assert line_of(page, "| what |") == "| what | value | count |"
    assert line_of(page, "| a\\|b |") == "| a\\|b | 0.1235 | 3 |"


def test_a_figure_that_is_not_there_is_an_error(make_results):
    with pytest.raises(LookupError, match=r"delta-dit-demo-2\.json has 0 rows"):
        make_results.figure("delta-dit-demo-2", "psnr_db", method="nobody's")
