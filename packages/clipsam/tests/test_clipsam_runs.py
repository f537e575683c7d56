"""The commands with the shipped models, as a user calls them."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from clipsam.commands.cli import main
from clipsam.commands.models import open_model
from clipsam.commands.options import PipelineConfig
from clipsam.data.procedural import HELD_OUT_CATEGORIES, Procedural
from clipsam.data.sources import TRAINED_CATEGORIES
from clipsam.embedded.dinov2 import HEADS, asset, embedded_model, embedded_segmenter
from clipsam.evaluation import evaluate


@pytest.fixture(scope="module")
def model():
    return embedded_model()


@pytest.fixture
def photographs(tmp_path):
    """Three images of one category: square, wide, grey."""
    paths = []
    for number in range(3):
        image = Image.fromarray(Procedural(3, ("bolt",), 160, seed=number, defect_share=1)[0].image)
        image = image.resize((320, 160)) if number == 1 else image.convert("L") if number == 2 else image
        paths.append(tmp_path / f"{number}.png")
        image.save(paths[-1])
    return paths


def test_the_shipped_models_find_defects_of_categories_that_were_held_out(model):
    assert model.provenance["data"] == ["photographs", TRAINED_CATEGORIES]
    data = Procedural(21, HELD_OUT_CATEGORIES, 224, seed=77, defect_share=1)
    found = evaluate(model, data, ("umci", "mmr"))
    umci, mmr = (curve.average_precision() for curve in found.curves.values())
    share = found.curves["umci"].anomalous / (found.curves["umci"].anomalous + found.curves["umci"].normal)
    assert umci > 5 * share  # what guessing has is the share
    assert mmr > umci


def test_a_batch_gives_what_single_images_give(model, photographs):
    images = [np.array(Image.open(path).convert("RGB")) for path in photographs]
    together = model.segment(images, "bolt")
    for image, found in zip(images, together):
        [alone] = model.segment([image], "bolt")
        np.testing.assert_allclose(found.rough_map, alone.rough_map, atol=1e-4)
        assert found.anomaly_map.shape == image.shape[:2]


def test_the_shipped_heads_are_opened_on_towers_in_half_precision(model, photographs, monkeypatch):
    monkeypatch.setattr("clipsam.embedded.dinov2.IMAGE_SIZE", 56)  # of SAM's: a CPU takes its time in half precision
    half, single = open_model(PipelineConfig(dtype="bf16")), embedded_segmenter()
    assert half.backbone.dtype == torch.bfloat16 and next(half.umci.parameters()).dtype == torch.float32
    pixels, image = torch.randn(1, 3, 56, 56), np.array(Image.open(photographs[0]))
    found = [*half.backbone.patches(pixels), *half.segmenter.embed(image).features]
    expected = [*model.backbone.patches(pixels), *single.embed(image).features]
    for one, other in zip(found, expected):
        assert one.dtype == torch.float32 and not torch.equal(one, other)
        assert torch.cosine_similarity(one.flatten(), other.flatten(), dim=0) > 0.99


def test_segment_goes_on_after_a_file_that_is_none(tmp_path, photographs, capsys):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"")
    out = tmp_path / "out"
    paths = [str(path) for path in (photographs[0], broken, photographs[1])]
    assert main(["segment", *paths, "--category", "bolt", "--output-dir", str(out), "--cpu"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "1 of 3 images could not be used" in error and "broken.png" in error
    listed = json.loads((out / "segmentations.json").read_text())
    assert [one["image"] for one in listed] == paths
    assert "error" in listed[1] and {"score", "boxes", "mask_scores"} <= listed[2].keys()
    assert Image.open(out / "1_map.png").size == (320, 160)


def test_refine_takes_anyones_map(tmp_path, photographs):
    values = np.zeros((160, 160), np.float32)
    values[60:100, 60:100] = 0.9
    np.save(tmp_path / "map.npy", values)
    options = ["--maps", str(tmp_path / "map.npy"), "--output-dir", str(tmp_path / "out"), "--cpu"]
    assert main(["refine", str(photographs[0]), *options]) == 0
    [listed] = json.loads((tmp_path / "out" / "segmentations.json").read_text())
    assert listed["boxes"] == [[60, 60, 100, 100]]


def test_zero_shot_refuses_what_was_trained_on(tmp_path, capsys):
    options = ["--data", "photographs", "--zero-shot", "--output-dir", str(tmp_path / "run"), "--samples", "2", "--cpu"]
    assert main(["eval", *options]) == 2
    assert (
        "data='photographs' is not zero-shot (seen: the data set): the checkpoint was trained on photographs"
        in capsys.readouterr().err
    )
    assert not (tmp_path / "run").exists()


def test_heads_of_another_clip_are_refused(tmp_path, capsys):
    options = ["--clip", "ViT-B-32", "--checkpoint", str(asset(HEADS)), "--sam", "none", "--data", "procedural"]
    assert main(["eval", *options, "--output-dir", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err.startswith("clipsam: error: ")
    assert main(["eval", "--checkpoint", str(tmp_path), "--output-dir", str(tmp_path / "run")]) == 1
    assert "holds no config.json" in capsys.readouterr().err


def test_the_demo_writes_rows_results_and_a_report_and_says_what_it_does(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("clipsam.embedded.dinov2.IMAGE_SIZE", 56)  # of SAM's
    monkeypatch.setattr("clipsam.commands.demo.REFERENCES", 4)
    assert main(["demo", "--samples", "21", "--cells", "3", "--output-dir", str(tmp_path), "--cpu"]) == 0
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert {row["dataset"] for row in rows} == {"elpv-mono", "elpv-poly", "procedural", "cells"}
    assert {row["stage"] for row in rows} == {"clip", "umci", "mmr", "distance", "combined", "pixel-std"}
    assert {"stage", "dataset", "auroc", "f1_max", "ap", "aupro", "image_auroc"} <= rows[0].keys()
    assert "elpv-mono" in (tmp_path / "report.html").read_text()
    *steps, address = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in steps] == ["elpv-mono", "elpv-poly", "procedural", "cells"]
    assert address == (tmp_path / "report.html").as_uri()
    assert (tmp_path / "results.json").exists()
