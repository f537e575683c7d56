"""The demo, tiny: it shows both searches, and says what they cost."""

import json
import re

import pytest
import torch

from bdp_nas.commands import demo
from bdp_nas.commands.options import DemoConfig
from frugal_shared.report import Report


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    torch.set_num_threads(1)
    config = DemoConfig(output_dir=tmp_path_factory.mktemp("demo") / "run", samples=160, epochs=4, cpu=True)
    config = demo.replace(config, data=("digits",))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "RETRAIN_EPOCHS", 1)
        patch.setitem(demo.OF_ALL, "channels", 4)
        demo.main(config)
    return config


def test_both_searches_are_told_with_their_costs(done):
    rows = json.loads((done.output_dir / "rows.json").read_text())
    assert [row["pruning"] for row in rows] == ["none", "bdp"]
    assert rows[1]["samples"] < rows[0]["samples"] and rows[1]["forward"] <= rows[0]["forward"]
    assert all(row["accuracy_low"] <= row["retrained_accuracy"] <= row["accuracy_high"] for row in rows)
    results = json.loads((done.output_dir / "results.json").read_text())
    assert results["digits/bdp/samples"] == rows[1]["samples"]


def test_the_report_shows_cells_costs_and_what_was_pruned(done):
    page = Report.read(done.output_dir)
    captions = [figure["caption"] for block in page.blocks for figure in block.get("figures", ())]
    for words in ("Search cost", "without pruning", "with BDP", "pruned by then", "kept to the end", "by class"):
        assert any(words in caption for caption in captions)
    ledger = [block for block in page.blocks if block["kind"] == "table"][-1]
    assert {row[2] for row in ledger["rows"]} >= {"weights", "architecture", "pruning"}
    [claims] = [block["rows"] for block in page.lead if block["kind"] == "claims"]
    assert re.search(r"BDP's search drew 0\.\d\d× the samples", claims[0]["measured"])


def test_a_demo_that_is_done_is_read_back_and_says_so_step_by_step(done, monkeypatch, capsys):
    monkeypatch.setattr("bdp_nas.commands.search.Search", None)
    before = (done.output_dir / "rows.json").read_bytes()
    monkeypatch.setitem(demo.OF_ALL, "channels", 4)
    demo.main(demo.replace(done, resume=True))
    assert (done.output_dir / "rows.json").read_bytes() == before
    *steps, address = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in steps] == ["handwritten digits"] * 4
    assert address == (done.output_dir / "report.html").as_uri()
