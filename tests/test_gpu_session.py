"""The session for machines with GPUs: that it says where it cannot run, and that every benchmark of it works."""

import json
from importlib.util import module_from_spec, spec_from_file_location

import pytest
import torch


@pytest.fixture(scope="module")
def session(request):
    path = request.config.rootpath / "benchmarks/gpu.py"
    spec = spec_from_file_location("gpu_session", path)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA GPU")
def test_without_a_gpu_one_line_says_that_it_is_skipped(session, capsys):
    assert session.main() == 0
    assert capsys.readouterr().out == "gpu: skipped, there is no CUDA GPU\n"


def test_every_benchmark_runs(session, tmp_path):
    code = session.main(device="cpu", tiny=True, tests=False, json=tmp_path / "gpu.json")
    result = json.loads((tmp_path / "gpu.json").read_text())
    assert [row for row in result["rows"] if "why" in row] == []
    assert {row["part"].split(",")[0] for row in result["rows"]} == {
        "dit_xl",
        "flux",
        "clipsam",
        "partial-finetune",
        "bdp-nas",
    }
    assert all(row["ratio"] > 0 for row in result["rows"])
    assert [row["mac_speedup"] > 1 for row in result["rows"] if "mac_speedup" in row] == [True, False, True, False]
    assert code == 0
    assert result["machine"]["cores"] >= 1


def test_a_part_that_fails_is_told_and_the_others_are_measured(session, monkeypatch):
    def broken(bench):
        raise RuntimeError("no memory")

    monkeypatch.setattr(session, "PARTS", {"one": broken, "two": lambda bench: iter([{"part": "two"}])})
    bench = session.Bench(torch.device("cpu"), tiny=True)
    rows = list(session.measure(bench, end=float("inf")))
    assert rows == [{"part": "one", "why": "RuntimeError: no memory"}, {"part": "two"}]
    assert all(row["why"] == "no time was left" for row in session.measure(bench, end=0))
