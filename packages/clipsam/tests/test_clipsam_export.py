"""The exported network gives the pipeline's maps and scores, in torch and in ONNX."""

import json

import numpy as np
import pytest
import torch

from clipsam import exported
from clipsam.commands import export
from clipsam.commands.options import ExportConfig
from clipsam.exported import Exported, difference, to_onnx
from clipsam.pipeline import ClipSAM
from clipsam.umci import UMCIHead
from frugal_shared.errors import UsageError


def pipeline(backbones, kind="own", heads=True, rarity=True, pooling="max"):
    torch.manual_seed(3)
    backbone = backbones[kind]
    umci = UMCIHead(2, backbone.width, backbone.text_dim, hidden=16, pool_kernels=(1, 3), pool_stride=1)
    return ClipSAM(backbone, umci if heads else None, rarity=rarity, pooling=pooling)


def square(size=32):
    return np.random.default_rng(0).integers(0, 256, (2, size, size, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("heads", "rarity", "pooling"),
    [(True, True, "max"), (True, False, "quantile"), (True, False, "top-mean"), (False, False, "max")],
)
def test_the_network_gives_the_pipeline_s_maps_and_scores(backbones, heads, rarity, pooling):
    model = pipeline(backbones, heads=heads, rarity=rarity, pooling=pooling)
    pixels = torch.from_numpy(square()).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        maps, scores = Exported(model, "nut")(pixels)
    for found, score, expected in zip(maps, scores, model.segment(list(square()), "nut")):
        np.testing.assert_allclose(found.numpy(), expected.anomaly_map, atol=1e-5)
        assert float(score) == pytest.approx(expected.score, abs=1e-5)


@pytest.mark.parametrize(("kind", "heads"), [("own", True), ("timm", True), ("timm", False)])
def test_onnx_gives_what_the_pipeline_gives(backbones, kind, heads):
    for package in ("onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason="the extra [onnx] is missing")
    model = pipeline(backbones, kind, heads)
    content = to_onnx(model, "nut")
    assert difference(content, model, "nut") <= 1e-4
    assert difference(content, model, "a thing that this file was not made for") > 1e-4


def test_the_command_writes_a_file_that_it_has_checked(backbones, tmp_path, monkeypatch):
    model = pipeline(backbones)
    monkeypatch.setattr(export, "open_model", lambda config: model)
    monkeypatch.setattr(export, "to_onnx", lambda model, category: category.encode())
    monkeypatch.setattr(export, "difference", lambda *given: 2e-7)
    config = ExportConfig(onnx=tmp_path / "new" / "model.onnx", category="metal nut", cpu=True)
    export.main(config)
    assert config.onnx.read_bytes() == b"metal nut"
    described = json.loads(config.onnx.with_suffix(".json").read_text())
    assert described["category"] == "metal nut" and described["difference"] == 2e-7 and described["image_size"] == 32
    monkeypatch.setattr(export, "difference", lambda *given: 2e-3)
    with pytest.raises(RuntimeError, match=r"differs by 0\.002"):
        export.main(ExportConfig(onnx=tmp_path / "other.onnx", cpu=True))
    assert not (tmp_path / "other.onnx").exists()


def test_a_file_s_name_is_needed():
    with pytest.raises(UsageError, match="onnx=None is missing; allowed: --onnx FILE"):
        export.main(ExportConfig())
    with pytest.raises(UsageError, match="num_processes=2 would write one file; allowed: 1"):
        ExportConfig(num_processes=2)


def test_a_missing_package_is_named(monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(exported, "import_module", missing)
    with pytest.raises(ImportError, match="onnxscript is not installed; install it with: pip install onnx"):
        exported.require("onnxscript")
