"""The command ``calibrate`` and the verdicts of ``segment``: from a score to a decision."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from clipsam import Calibration, calibrate
from clipsam.commands import calibrate as calibrating
from clipsam.commands import segment as segmenting
from clipsam.commands.options import CalibrateConfig, SegmentConfig
from clipsam.conformal import conformal_threshold, f1_threshold
from clipsam.data.images import read_image
from clipsam.pipeline import ClipSAM
from clipsam.tiles import Tiling
from clipsam.umci import UMCIHead
from frugal_shared.errors import RunError, UsageError
from frugal_shared.evaluation import chunks


@pytest.fixture(scope="module")
def model(backbones):
    torch.manual_seed(5)
    return ClipSAM(backbones["timm"], UMCIHead(2, 24, 24, hidden=8))


@pytest.fixture(autouse=True)
def opened(model, monkeypatch):
    monkeypatch.setattr(calibrating, "open_model", lambda config: model)
    monkeypatch.setattr(segmenting, "open_model", lambda config: model)
    monkeypatch.setattr(model, "mmr", model.mmr)  # a calibration changes it


def pictures(folder, count, seed=0):
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(count):
        values = np.random.default_rng([seed, number]).integers(0, 256, (32, 40, 3), np.uint8)
        paths.append(folder / f"{number:02}.png")
        Image.fromarray(values).save(paths[-1])
    return paths


def images_of(paths):
    return [read_image(path) for path in paths]


@pytest.fixture
def good(tmp_path):
    return pictures(tmp_path / "good", 20)


def test_the_thresholds_are_those_of_scores_and_maps(tmp_path, good, model, capsys):
    path = tmp_path / "nut.json"
    config = CalibrateConfig(images=(good[0].parent,), category="nut", output=path, output_dir=tmp_path / "run")
    calibrating.main(config)
    found, segmented = Calibration.load(path), model.segment(images_of(good), "nut")
    scores, peaks = [one.score for one in segmented], [one.rough_map.max() for one in segmented]
    assert found.threshold == pytest.approx(conformal_threshold(scores, 0.05), rel=1e-4)
    assert found.pixel_threshold == pytest.approx(conformal_threshold(peaks, 0.05), rel=1e-4)
    assert (found.category, found.method, found.alpha, found.images) == ("nut", "conformal", 0.05, 20)
    assert calibrate(model, images_of(good), "nut").threshold == pytest.approx(found.threshold, rel=1e-4)
    told = capsys.readouterr().out
    assert f"nut: defect above {found.threshold:.4f}" in told and str(path) in told


def test_every_image_gets_a_verdict_on_the_scale_of_its_score(tmp_path, good, model, capsys):
    options, path = {"category": "nut", "output_dir": tmp_path / "run"}, tmp_path / "nut.json"
    calibrating.main(CalibrateConfig(images=tuple(good), alpha=0.2, output=path, **options))
    calibration = Calibration.load(path)
    config = SegmentConfig(images=tuple(good), category="nut", calibration=path, output_dir=tmp_path / "out")
    segmenting.main(config)
    records = json.loads((config.output_dir / "segmentations.json").read_text())
    for record, found in zip(records, model.segment(images_of(good), "nut"), strict=True):
        assert record["score"] == pytest.approx(found.score, rel=1e-4) and record["threshold"] == calibration.threshold
        assert record["verdict"] == ("defect" if record["score"] > record["threshold"] else "ok")
        mask = np.asarray(Image.open(config.output_dir / record["mask"]))
        assert record["pixel_threshold"] == pytest.approx(calibration.pixel_threshold)
        assert (mask > 0).any() == (record["peak"] > record["pixel_threshold"])
        assert json.loads((config.output_dir / record["mask"].replace("mask.png", "found.json")).read_text()) == record
    defects = sum(record["verdict"] == "defect" for record in records)
    assert defects == 20 - np.ceil(21 * 0.8)  # as many scores lie above the order statistic
    assert f", {defects} defective" in capsys.readouterr().out


def test_without_a_calibration_there_is_no_verdict(tmp_path, good):
    segmenting.main(SegmentConfig(images=tuple(good[:1]), output_dir=tmp_path / "out"))
    [record] = json.loads((tmp_path / "out" / "segmentations.json").read_text())
    assert "verdict" not in record and record["threshold"] == record["pixel_threshold"]


def test_references_are_part_of_the_scale(tmp_path, good, model):
    references, others = tuple(pictures(tmp_path / "references", 3, seed=1)), tuple(pictures(tmp_path / "o", 3, seed=2))
    path = tmp_path / "nut.json"
    options = {"category": "nut", "references": references, "score": "distance"}
    calibrating.main(CalibrateConfig(images=tuple(good), output=path, output_dir=tmp_path / "run", **options))
    segmenting.main(SegmentConfig(images=tuple(good), calibration=path, output_dir=tmp_path / "out", **options))
    for name, change in {"references": {"references": others}, "score": {"score": "combined"}}.items():
        config = SegmentConfig(images=tuple(good), calibration=path, output_dir=tmp_path / name, **options | change)
        with pytest.raises(UsageError, match=rf"nut\.json': the calibration was made with {name}="):
            segmenting.main(config)
    both = {"images": (*good, references[0]), "references": references}
    with pytest.raises(UsageError, match=r"00\.png' is a reference, too"):
        calibrating.main(CalibrateConfig(**both, output_dir=tmp_path / "both"))


def test_another_category_or_another_pipeline_is_refused(tmp_path, good, model, backbones):
    path = tmp_path / "nut.json"
    calibrate(model, images_of(good), "nut").save(path)
    config = SegmentConfig(images=tuple(good), category="bolt", calibration=path, output_dir=tmp_path / "out")
    with pytest.raises(UsageError, match="category='bolt' with a calibration of 'nut'; allowed: that category"):
        segmenting.main(config)
    assert not config.output_dir.exists()
    torch.manual_seed(6)
    other = ClipSAM(backbones["timm"], UMCIHead(2, 24, 24, hidden=8))
    own = model.backbone, model.umci
    changes = {
        "heads": other,
        "pooling": ClipSAM(*own, pooling="quantile"),
        "scales": ClipSAM(*own, scales=(32, 64)),
        "tiles": ClipSAM(*own, tiling=Tiling(64)),
    }
    for name, change in changes.items():
        with pytest.raises(ValueError, match=f"the calibration was made with {name}="):
            Calibration.load(path).check(change, "nut")
    Calibration.load(path).check(model, "nut")


def test_too_few_images_are_told_how_many_are_needed(tmp_path, good):
    config = CalibrateConfig(images=tuple(good), alpha=0.01, output_dir=tmp_path / "run")
    with pytest.raises(UsageError, match=r"20 images with alpha=0\.01; allowed: 99 images or more"):
        calibrating.main(config)
    assert not config.output_dir.exists()


def test_an_image_that_cannot_be_used_is_one_line_and_the_rest_goes_on(tmp_path, good, model, monkeypatch, capsys):
    torn, real = tmp_path / "torn.png", model.scored
    torn.write_bytes(b"")
    first = read_image(good[0])

    def scored(images, *others):
        blind = [np.nan if np.array_equal(image, first) else 1 for image in images]
        return [(values * factor, score * factor) for factor, (values, score) in zip(blind, real(images, *others))]

    monkeypatch.setattr(model, "scored", scored)
    path = tmp_path / "nut.json"
    config = CalibrateConfig(images=(*good, torn), output=path, output_dir=tmp_path / "run")
    with pytest.raises(RunError, match=r"2 of 21 images could not be used: .*00\.png: its map holds NaN; .*torn\.png"):
        calibrating.main(config)
    assert Calibration.load(path).images == 19 and capsys.readouterr().out.count("failed") == 2
    few = CalibrateConfig(images=(*good[:18], torn), output=path, output_dir=tmp_path / "few")
    with pytest.raises(RunError, match=r"17 sound images with alpha=0\.05; allowed: 19 images or more; .*00\.png"):
        calibrating.main(few)


def test_two_processes_see_what_one_sees(tmp_path, good, model):
    config, torn = CalibrateConfig(category="nut", batch_size=3, output_dir=tmp_path), tmp_path / "torn.png"
    torn.write_bytes(b"")
    paths = [*good, torn]

    def evidence(rank, world):
        shares = chunks(len(paths), config.batch_size, rank, world)
        return calibrating.evidence_of(model, config, paths, shares, None)

    whole, failures = evidence(0, 1)
    (first, none), (second, one) = evidence(0, 2), evidence(1, 2)
    assert first | second == whole and none | one == failures and list(failures) == [20]


def test_labels_give_the_threshold_of_the_best_f1(tmp_path, model):
    folder, path = tmp_path / "parts", tmp_path / "parts.json"
    good, bad = pictures(folder / "good", 4), pictures(folder / "scratch", 4, seed=1)
    options = {"category": "nut", "adaptive": True, "output": path}
    calibrating.main(CalibrateConfig(images=(folder,), output_dir=tmp_path / "run", **options))
    scores = [one.score for one in model.segment(images_of([*good, *bad]), "nut")]
    found = Calibration.load(path)
    assert found.threshold == pytest.approx(f1_threshold(scores, [False] * 4 + [True] * 4), rel=1e-4)
    assert found.method == "f1" and found.alpha is None and found.images == 8
    loose = pictures(tmp_path / "loose", 3)
    with pytest.raises(UsageError, match=r"00\.png', which has no label; allowed: folders such as good/"):
        calibrating.main(CalibrateConfig(images=(loose[0].parent,), output_dir=tmp_path / "other", **options))


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"schema": "clipsam-calibration-1"}', "null", "\xff"])
def test_something_else_is_no_calibration(tmp_path, content):
    path = tmp_path / "c.json"
    path.write_bytes(content.encode("latin1"))
    with pytest.raises(ValueError, match=r"c\.json' is no calibration; allowed: what `clipsam calibrate` wrote$"):
        Calibration.load(path)


def test_a_threshold_that_is_no_number_is_no_calibration(tmp_path, good, model):
    path = tmp_path / "c.json"
    calibrate(model, images_of(good), "nut").save(path)
    told = json.loads(path.read_text()) | {"threshold": float("nan")}
    path.write_text(json.dumps(told))
    with pytest.raises(ValueError, match="is no calibration"):
        Calibration.load(path)


def test_options_that_contradict_each_other_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"threshold=0\.3 contradicts the calibration's"):
        SegmentConfig(threshold=0.3, calibration=tmp_path / "c.json")
    with pytest.raises(UsageError, match="score='mutual' depends on the images beside"):
        CalibrateConfig(score="mutual")
    with pytest.raises(UsageError, match="alpha=1 is not possible; allowed: between 0 and 1"):
        CalibrateConfig(alpha=1)
    with pytest.raises(UsageError, match=r"images=\(\) is empty"):
        calibrating.main(CalibrateConfig(output_dir=tmp_path / "run"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="empty' holds no images; allowed: image files, or folders with some"):
        calibrating.main(CalibrateConfig(images=(tmp_path / "empty",), output_dir=tmp_path / "run"))
