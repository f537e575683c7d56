"""The bench, on small numbers: what it reports and how it comes about, not how fast it is."""

import json

import pytest
import torch

from bdp_nas.commands import bench
from bdp_nas.commands.options import BenchConfig
from bdp_nas.searchers import get_searcher
from bdp_nas.spaces import get_space
from bdp_nas.spaces.cell import MixedEdges
from bdp_nas.spaces.nasbench201 import OPERATIONS

TINY = bench.Workload(channels=4, cells=1, side=8, batch=8)


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    monkeypatch.setattr(bench, "SMALL", TINY)
    monkeypatch.setattr(bench, "WORKLOADS", (TINY,))
    small = bench.PRESETS["small"]
    search = bench.replace(small.search, channels=4, epochs=3, samples=160)
    monkeypatch.setitem(bench.PRESETS, "small", bench.replace(small, search=search))


def test_the_bench_writes_a_row_for_every_part(tmp_path, capsys):
    config = BenchConfig(samples=200, repeats=1, output_dir=tmp_path / "run", json=tmp_path / "own.json", cpu=True)
    bench.main(config)
    rows = json.loads(config.json.read_text())
    assert rows == json.loads((config.output_dir / "rows.json").read_text())
    assert [row["part"] for row in rows] == ["search", "overhead", *["step"] * len(bench.TIMED), "grouped"]
    assert all(row["seconds"] > 0 and row["usual_seconds"] > 0 for row in rows)
    assert rows[0]["samples"] < rows[0]["usual_samples"]
    assert rows[1]["share"] == pytest.approx(rows[1]["seconds"] / rows[1]["usual_seconds"])
    assert (config.output_dir / "report.html").exists() and "overhead" in capsys.readouterr().out
    assert "search/none ÷ bdp/ratio" in json.loads((config.output_dir / "results.json").read_text())


def test_a_ratio_above_1_means_that_ours_is_faster(monkeypatch):
    now = [0.0]

    def turn(seconds):
        now[0] += seconds

    monkeypatch.setattr("frugal_shared.timing.perf_counter", lambda: now[0])
    row = bench.against("part", "what", lambda: turn(6), lambda: turn(2), 2)
    assert row["ratio"] == 3 and row["seconds"] == 2 and row["usual_seconds"] == 6


def test_pruned_epochs_have_fewer_steps():
    seconds, steps = bench.pruning_seconds(400, 8)
    assert seconds > 0 and 0.3 < steps / (bench.EPOCHS * 25) < 0.5


def test_edge_by_edge_computes_what_edges_compute_together():
    together = MixedEdges(OPERATIONS, 4, 1, 2, 1, norm_pools=False)
    apart = bench.EdgeByEdge(together, OPERATIONS)
    for edge, operations in enumerate(apart.edges):
        for name, operation in zip(OPERATIONS, operations):
            operation.load_state_dict({} if name == "none" else together.weights_of(name, edge))
    x, weights = torch.randn(3, 4, 6, 6), torch.rand(2, len(OPERATIONS)).softmax(1)
    for mine, theirs in zip(apart(x, weights), together(x, weights)):
        torch.testing.assert_close(mine, theirs)


def test_all_cells_are_separated():
    supernet = get_searcher("darts")().supernet(get_space("nasbench201"), TINY.size)
    bench.separate(supernet)
    assert not any(isinstance(module, MixedEdges) for module in supernet.modules())
    assert supernet(TINY.images()[0]).shape == (8, bench.CLASSES)
