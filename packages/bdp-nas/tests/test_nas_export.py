"""Exports: they need nothing of this package, and answer as the network does."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from bdp_nas.blueprint import Blueprint
from bdp_nas.commands import export, retrain, search
from bdp_nas.commands.cli import main
from bdp_nas.commands.data import open_data
from bdp_nas.commands.export import inherited, network_of
from bdp_nas.commands.loading import normalise
from bdp_nas.commands.options import ExportConfig, RetrainConfig, SearchConfig, TaskConfig
from frugal_shared.errors import RunError

TINY = {"channels": 4, "cells": 1, "epochs": 2, "samples": 120, "cpu": True}


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("runs")
    search.main(SearchConfig(output_dir=root / "search", **TINY))
    retrain.main(RetrainConfig(genotype=str(root / "search"), output_dir=root / "retrain", **TINY))
    return root


@pytest.fixture(scope="module")
def exported(folders):
    torch.set_num_threads(1)
    export.main(ExportConfig(source=folders / "retrain", output_dir=folders / "export", onnx=True))
    return folders / "export"


def expected(folder, images):
    """Answer as the network with the trained weights does."""
    blueprint = Blueprint.read(folder)
    network = blueprint.network().eval()
    network.load_state_dict(load_file(folder / "network.safetensors"))
    with torch.no_grad():
        return network(normalise(images * 255, *blueprint.moments))


def test_the_program_needs_nothing_but_torch(folders, exported):
    code = """if True:
        import sys, torch
        program = torch.export.load(sys.argv[1]).module()
        torch.save([program(images) for images in torch.load(sys.argv[2])], sys.argv[3])
        assert not {"bdp_nas", "frugal_shared"} & set(sys.modules)"""
    pictures = [torch.rand(count, 1, 8, 8) for count in (1, 5)]
    torch.save(pictures, folders / "images.pt")
    files = [exported / "network.pt2", folders / "images.pt", folders / "answers.pt"]
    subprocess.run([sys.executable, "-c", code, *map(str, files)], check=True)
    for images, answer in zip(pictures, torch.load(folders / "answers.pt"), strict=True):
        torch.testing.assert_close(answer, expected(folders / "retrain", images), atol=1e-5, rtol=1e-5)


def test_the_onnx_model_answers_as_the_network(folders, exported):
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(exported / "network.onnx", providers=["CPUExecutionProvider"])
    images = torch.rand(3, 1, 8, 8)
    (answer,) = session.run(["logits"], {"images": images.numpy()})
    torch.testing.assert_close(torch.from_numpy(answer), expected(folders / "retrain", images), atol=1e-4, rtol=1e-4)


def test_the_description_tells_classes_and_pixels(exported):
    told = json.loads((exported / "genotype.json").read_text())
    assert told["classes"] == list("0123456789")
    assert told["image"] == [1, 8, 8]
    assert told["space"] == "nasbench201"


def test_weights_are_inherited_and_norms_calibrated(folders):
    supernet = load_file(folders / "search" / "supernet.safetensors")
    blueprint = Blueprint.read(folders / "search")
    network = inherited(folders / "search", blueprint)
    assert torch.equal(network.body.stem[0].weight, supernet["body.stem.0.weight"])
    images = normalise(open_data(TaskConfig(samples=120)).train.pixels, *blueprint.moments)
    means = [network.body.stem[0](batch).mean((0, 2, 3)) for batch in images.split(64)]
    torch.testing.assert_close(network.body.stem[1].running_mean, torch.stack(means).mean(0))


def test_a_network_is_exported_in_half_precision(folders, tmp_path):
    export.main(ExportConfig(source=folders / "retrain", output_dir=tmp_path, dtype="bf16"))
    images = torch.rand(3, 1, 8, 8)
    answer = torch.export.load(tmp_path / "network.pt2").module()(images.bfloat16())
    assert answer.dtype == load_file(tmp_path / "network.safetensors")["body.classifier.weight"].dtype == torch.bfloat16
    torch.testing.assert_close(answer.float(), expected(folders / "retrain", images), atol=0.1, rtol=0.1)


def test_random_weights_follow_the_seed(folders):
    blueprint = Blueprint.read(folders / "search")
    weights = [
        network_of(ExportConfig(source=folders / "search", seed=seed), blueprint).body.stem[0].weight
        for seed in (0, 0, 1)
    ]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_weights_of_another_network_are_refused(folders, tmp_path):
    for name in ("genotype.json", "network.safetensors"):
        (tmp_path / name).write_bytes((folders / "retrain" / name).read_bytes())
    told = json.loads((tmp_path / "genotype.json").read_text()) | {"channels": 6}
    (tmp_path / "genotype.json").write_text(json.dumps(told))
    with pytest.raises(RunError, match="is of another space, size or genotype"):
        export.main(ExportConfig(source=tmp_path, output_dir=tmp_path / "out"))
    (tmp_path / "network.safetensors").write_bytes(b"torn")
    with pytest.raises(RunError, match="cannot be read"):
        export.main(ExportConfig(source=tmp_path, output_dir=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_wrong_request_is_refused_in_one_line(folders, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    out = ["--output-dir", str(tmp_path / "out")]
    requests = {
        (str(tmp_path), *out): (1, "has no genotype.json; allowed: the run folder of a search"),
        (str(folders / "retrain"), "--inherit", *out): (2, "inherit=True with the retraining"),
        (str(folders / "retrain"), "--onnx", *out): (1, "install it with: pip install onnx onnxscript"),
    }
    for argv, (code, told) in requests.items():
        assert main(["export", *argv]) == code
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        assert told in lines[0]
        assert not (tmp_path / "out").exists()
