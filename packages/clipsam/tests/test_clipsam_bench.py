"""The bench, on tiny models and small numbers: what it reports and how its ratios come about, not how fast it is."""

import json

import numpy as np
import pytest

from clipsam.commands import bench
from clipsam.commands.options import BenchConfig
from clipsam.pipeline import ClipSAM
from clipsam.sam import SamSegmenter
from clipsam.umci import UMCIHead
from frugal_shared.errors import RunError

KEYS = {"part", "model", "seconds_p50", "seconds_p95"}


@pytest.fixture
def config(tmp_path):
    return BenchConfig(pixels=2, repeats=2, output_dir=tmp_path / "run", json=tmp_path / "own.json", cpu=True)


@pytest.fixture
def small(monkeypatch, backbones, sam):
    """The bench of tiny models on small images and maps."""
    backbone = backbones["own"]

    def tiny():
        return ClipSAM(backbone, UMCIHead(2, backbone.width, backbone.text_dim, hidden=16), segmenter=SamSegmenter(sam))

    def missing():
        raise RunError("an extra is missing")

    monkeypatch.setattr(bench, "SIDE", 64)
    monkeypatch.setattr(bench, "MAP_SIDE", 100)
    monkeypatch.setattr(bench, "MODELS", {"tiny": tiny, "missing": missing})


def test_the_bench_writes_a_row_for_every_part(config, small, capsys):
    bench.main(config)
    rows = json.loads((config.output_dir / "rows.json").read_text())
    assert rows == json.loads(config.json.read_text())
    assert [row["part"] for row in rows] == ["aupro", *bench.TIMED, "pipeline"]
    *timed, missing = rows
    for row in timed:
        assert row.keys() >= KEYS and 0 < row["seconds_p50"] <= row["seconds_p95"]
    assert missing == {"part": "pipeline", "model": "missing", "why": "an extra is missing"}
    aupro = rows[0]
    assert aupro["difference"] < 1e-4 and aupro["state_bytes"] < 50e6
    assert aupro["ratio_low"] <= aupro["ratio"] <= aupro["ratio_high"]
    assert (config.output_dir / "report.html").exists() and "sam_decoder" in capsys.readouterr().out
    results = json.loads((config.output_dir / "results.json").read_text())
    assert results["aupro_2 Mpx_ratio"] == aupro["ratio"]


def test_ratios_come_from_pairs(monkeypatch):
    """Of calls that take as long as a clock that they turn themselves says, whatever the machine does."""
    now = [0.0]
    usual, ours = iter([9.0, 2, 6, 12]), iter([9.0, 1, 2, 3])  # the first is the warm-up

    def turn(times):
        now[0] += next(times)

    for module in ("clipsam.commands.bench", "frugal_shared.timing"):
        monkeypatch.setattr(f"{module}.perf_counter", lambda: now[0])
    row = bench.against("part", "model", lambda: turn(usual), lambda: turn(ours), 3)
    assert row["ratio"] == 3 and row["seconds_p50"] == 2 and row["usual_p50"] == 6
    assert row["seconds_p95"] == pytest.approx(np.quantile([1, 2, 3], 0.95))
