"""Evaluation, and the command ``eval``: figures that equal the metrics', what is refused, and what is written."""

import csv
import json
import math
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from PIL import Image

from clipsam.commands import eval as evaluating
from clipsam.commands.eval_report import command
from clipsam.commands.measure import PIXEL_STD, deviation, thumbnail
from clipsam.commands.options import EvalConfig
from clipsam.data.cells import solar_cells
from clipsam.data.sources import open_references
from clipsam.evaluation import (
    ALL,
    COLUMNS,
    FALSE_ALARM,
    IMAGE_COLUMNS,
    INTERVAL,
    MISSED,
    PIXEL_COLUMNS,
    WORST,
    Tally,
    batches_of,
    evaluate,
    mean_row,
)
from clipsam.memories import MAP, UnusableReference
from clipsam.metrics import ImageMetrics, PixelMetrics
from clipsam.mmr import MMRConfig
from clipsam.pipeline import ClipSAM
from clipsam.sam import SamSegmenter
from clipsam.samples import GOOD, Entry, Sample
from clipsam.score import image_score
from clipsam.umci import UMCIHead
from frugal_shared.errors import RunError, UsageError
from frugal_shared.images import ImageError

DAMAGED = "damaged"


def sample_of(index, category, kind):
    random = np.random.default_rng(index)
    image, mask = random.integers(90, 110, (32, 32, 3), dtype=np.uint8), np.zeros((32, 32), bool)
    if kind != GOOD:
        mask[4 : 10 + index % 3, 8:20] = True
        image[mask] = random.integers(0, 255, (mask.sum(), 3))
    return Sample(image, mask, category, kind, "", f"{category}/{index:03}.png")


@dataclass
class Made:
    """A data set in memory: two categories, every other image defective."""

    kinds: tuple = (("bolt", GOOD), ("bolt", "bent"), ("nut", GOOD), ("nut", "cut")) * 4
    masks: bool = True
    name: str = "made"
    categories: tuple = ("bolt", "nut")
    entries: list = field(init=False)

    def __post_init__(self):
        self.entries = [
            Entry(category, kind, f"{category}/{index:03}.png", self.masks or kind == GOOD)
            for index, (category, kind) in enumerate(self.kinds)
        ]

    def __len__(self):
        return len(self.kinds)

    def __getitem__(self, index):
        if self.kinds[index][1] == DAMAGED:
            raise ImageError(f"{index}.png: the file is empty")
        return sample_of(index, *self.kinds[index])


@pytest.fixture(scope="module")
def model(backbones, sam):
    torch.manual_seed(5)
    umci = UMCIHead(2, 24, 24, hidden=8)
    clipsam = ClipSAM(backbones["timm"], umci, segmenter=SamSegmenter(sam), provenance={"data": ["photographs"]})
    images = [Made()[index].image for index in range(4)]
    level = float(np.quantile(clipsam.rough(images, "bolt"), 0.8))
    clipsam.mmr = MMRConfig(threshold=min(max(level, 0.01), 0.99))
    return clipsam


@pytest.fixture(autouse=True)
def opened(model, monkeypatch):
    monkeypatch.setattr("clipsam.commands.eval.open_model", lambda config: model)


def row_of(rows, stage, category=ALL):
    [row] = [row for row in rows if (row["stage"], row["category"]) == (stage, category)]
    return row


def test_figures_are_those_of_the_metrics(model):
    data = Made()
    found = evaluate(model, data, batch_size=3, fpr_limit=0.2)
    assert [(row["stage"], row["category"]) for row in found.rows] == [
        (stage, category) for stage in ("clip", "umci", "mmr") for category in ("bolt", "nut", ALL)
    ]
    samples = [data[index] for index in range(len(data)) if data.kinds[index][0] == "bolt"]
    images = [sample.image for sample in samples]
    segmented = model.segment(images, "bolt")
    maps = {
        "clip": [(values, image_score(values)) for values in model.text_map(images, "bolt")],
        "umci": [(one.rough_map, one.score) for one in segmented],
        "mmr": [(one.anomaly_map, one.score) for one in segmented],
    }
    for stage, scored in maps.items():
        pixels, scores = PixelMetrics(fpr_limit=0.2), ImageMetrics()
        for sample, (values, score) in zip(samples, scored):
            pixels.update(values, sample.mask)
            scores.update(score, sample.is_anomalous)
        row = row_of(found.rows, stage, "bolt")
        expected = pixels.compute() | scores.compute() | dict(zip(INTERVAL, scores.auroc_interval()))
        for key in set(COLUMNS) & expected.keys():
            assert row[key] == pytest.approx(expected[key], abs=2e-3, nan_ok=True), (stage, key)
        assert row["images"] == 8
    assert found.curves.keys() == {"clip", "umci", "mmr"} and found.failures == []


def test_all_is_the_mean_of_the_categories(model):
    rows = evaluate(model, Made(), ("umci",)).rows
    bolt, nut, whole = rows
    for key in (*PIXEL_COLUMNS, "image_auroc"):
        assert whole[key] == pytest.approx((bolt[key] + nut[key]) / 2)
    assert whole["images"] == 16 and whole[INTERVAL[0]] <= whole["image_auroc"] <= whole[INTERVAL[1]]


def test_the_interval_of_a_mean_shrinks_with_the_number_of_categories():
    one = dict.fromkeys(COLUMNS, 0.7) | {"image_auroc_low": 0.6, "image_auroc_high": 0.8, "images": 5}
    many = mean_row([one] * 4)
    assert many["image_auroc_high"] == pytest.approx(0.75) and many["image_auroc_low"] == pytest.approx(0.65)
    assert mean_row([one])["image_auroc_low"] == 0.6
    unknown = one | dict.fromkeys(("image_auroc", *INTERVAL, "auroc"), math.nan)
    some = mean_row([one, unknown])
    assert some["auroc"] == some["image_auroc"] == 0.7 and some["image_auroc_low"] == pytest.approx(0.6)
    assert math.isnan(mean_row([unknown, unknown])["image_auroc_low"])


def test_two_processes_measure_what_one_does(model):
    data, stages = Made(), ("umci", "mmr")
    batches = batches_of(data, 3)
    one = evaluate(model, data, stages, batch_size=3, picture=thumbnail)
    for order in ((0, 1), (1, 0)):
        tallies = [Tally(0.3), Tally(0.3)]
        for number, batch in enumerate(batches):
            tally = tallies[number % 2]
            tally.take(model, tally.readable(data, batch), stages, picture=thumbnail)
        first, second = (tallies[rank] for rank in order)
        first.merge(second)
        two = first.evaluation(data)
        assert two.rows == one.rows
        for mine, theirs in zip(two.worst, one.worst, strict=True):
            assert mine.entry == theirs.entry and np.array_equal(mine.picture, theirs.picture)


def test_batches_hold_one_category_each():
    data = Made()
    batches = batches_of(data, 3)
    assert sorted(index for batch in batches for index in batch) == list(range(16))
    assert all(len({data.kinds[index][0] for index in batch}) == 1 and len(batch) <= 3 for batch in batches)


def test_without_masks_there_are_image_metrics_only(model):
    found = evaluate(model, Made(masks=False), ("umci",))
    row = row_of(found.rows, "umci")
    assert all(math.isnan(row[key]) for key in PIXEL_COLUMNS) and 0 <= row["image_auroc"] <= 1
    assert found.curves == {} and {case.kind for case in found.worst} == {MISSED, FALSE_ALARM}


def test_image_metrics_need_both_kinds_of_images(model):
    kinds = (("bolt", "bent"), ("bolt", "bent"), ("nut", GOOD), ("nut", "cut"))
    rows = evaluate(model, Made(kinds=kinds), ("umci",)).rows
    bolt, nut, whole = rows
    for key in IMAGE_COLUMNS:
        assert math.isnan(bolt[key]) and whole[key] == nut[key]
    assert whole["aupro"] == pytest.approx((bolt["aupro"] + nut["aupro"]) / 2)


def test_the_worst_come_first(model):
    found = evaluate(model, Made(kinds=Made.kinds * 2), ("umci",), picture=thumbnail)
    for kind in (MISSED, FALSE_ALARM):
        badness = [case.badness for case in found.worst if case.kind == kind]
        assert badness == sorted(badness, reverse=True) and len(badness) == WORST
    assert all(case.picture.shape == (160, 320, 3) for case in found.worst)
    assert all(case.entry.is_anomalous == (case.kind == MISSED) for case in found.worst)


def test_what_the_data_or_the_references_cannot_give_is_left_out(model):
    class Torn(Made):
        def __getitem__(self, index):
            if index == 2:
                raise OSError("2.png is torn")
            return super().__getitem__(index)

    found = evaluate(model, Torn(), ("umci",), references=Made())
    assert found.failures == ["2.png is torn"] and row_of(found.rows, "umci")["images"] == 15
    assert found.worst[0].picture is None and not math.isnan(row_of(found.rows, "combined")["image_auroc"])
    beside = evaluate(model, Made(), ("umci",), references=Torn())
    assert beside.failures == ["reference 2.png is torn"] and row_of(beside.rows, "combined")["images"] == 16
    none = Made(kinds=(("bolt", DAMAGED), ("nut", GOOD)))
    with pytest.raises(UnusableReference, match=r"none of the references of 'bolt' can be used: reference 0\.png"):
        evaluate(model, Made(), ("umci",), references=none, unreadable=(ImageError,))
    with pytest.raises(OSError, match="torn"):
        evaluate(model, Torn(), ("umci",), unreadable=())


def test_solar_cells_get_a_trivial_row(model):
    data = solar_cells("elpv-mono", limit=4)
    found = evaluate(model, data, ("umci",), baselines={PIXEL_STD: deviation})
    row = row_of(found.rows, PIXEL_STD)
    deviations = [float(data[index].image.std()) for index in range(8)]
    expected = np.mean([bad > good for bad in deviations[4:] for good in deviations[:4]])
    assert row["image_auroc"] == pytest.approx(expected) and math.isnan(row["auroc"])


def test_the_plain_rows_stand_beside_ours(model):
    data, references = Made(), Made(kinds=Made.kinds[:8])

    def stages(scores, references=references):
        found = evaluate(model, data, ("umci",), references=references, scores=scores)
        return list(dict.fromkeys(row["stage"] for row in found.rows)), found

    assert stages(())[0] == stages(("combined",))[0] == stages(("distance",))[0] == ["umci", "distance", "combined"]
    assert stages(("mutual", "combined"))[0] == ["umci", "distance", "combined", "mutual"]
    assert stages(("mutual",), None)[0] == ["umci", "mutual"]
    order, found = stages(("map",))
    assert order == ["umci", MAP] and row_of(found.rows, MAP) == row_of(found.rows, "umci") | {"stage": MAP}
    for score in ("distance", "combined"):
        with pytest.raises(ValueError, match=f"score='{score}' without references; allowed: map and mutual"):
            stages((score,), None)


def test_a_map_with_nan_is_a_line_and_no_figure(model, monkeypatch):
    real = model.scored

    def scored(images, *others):
        found = real(images, *others)
        return [(np.full_like(found[0][0], np.nan), np.nan), *found[1:]]

    monkeypatch.setattr(model, "scored", scored)
    found = evaluate(model, Made(), ("umci",), batch_size=8)  # a batch of each category
    assert found.failures == [f"{name}.png: the map of umci holds NaN" for name in ("bolt/000", "nut/002")]
    assert row_of(found.rows, "umci")["images"] == 14


# --- the command ---


def folder_of_images(root):
    for index, (category, kind) in enumerate(Made.kinds):
        sample, folder = sample_of(index, category, kind), root / category / "test" / kind
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(sample.image).save(folder / f"{index:03}.png")
        if kind != GOOD:
            truth = root / category / "ground_truth" / kind
            truth.mkdir(parents=True, exist_ok=True)
            Image.fromarray(sample.mask).save(truth / f"{index:03}_mask.png")
    return root


def test_the_command_writes_everything(tmp_path, model, capsys):
    folder, json_file = folder_of_images(tmp_path / "parts"), tmp_path / "extra.json"
    config = EvalConfig(data=(str(folder), "procedural"), samples=4, output_dir=tmp_path / "out", json=json_file)
    evaluating.main(config)
    out = config.output_dir
    rows = json.loads((out / "rows.json").read_text())
    assert rows == json.loads(json_file.read_text()) and all(tuple(row) == COLUMNS for row in rows)
    assert {row["dataset"] for row in rows} == {"parts", "procedural"}
    with (out / "rows.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    for line, row in zip(table, rows, strict=True):
        assert line == {key: "" if value is None else str(value) for key, value in row.items()}
    results = json.loads((out / "results.json").read_text())
    measured = [row for row in rows if (row["dataset"], row["category"], row["stage"]) == ("parts", ALL, "mmr")]
    assert results["parts_mmr_aupro"] == measured[0]["aupro"] is not None
    assert all(value is None or isinstance(value, float) for value in results.values())
    stored = json.loads((out / "config.json").read_text())
    assert stored["samples"] == 4 and stored["provenance"] == {"data": ["photographs"]}
    page = (out / "report.html").read_text()
    assert "data photographs" in page and "Worst cases of parts" in page
    assert f"clipsam eval --data {folder} procedural --samples 4" in (out / "report.json").read_text()
    assert "means over the categories" in capsys.readouterr().out


def test_what_cannot_be_read_is_left_out_and_named(tmp_path, capsys):
    folder = folder_of_images(tmp_path / "parts")
    (folder / "nut" / "test" / "good" / "002.png").write_bytes(b"")
    Image.new("L", (5, 5)).save(folder / "nut" / "ground_truth" / "cut" / "003_mask.png")
    config = EvalConfig(data=(str(folder),), stages=("umci",), output_dir=tmp_path / "out")
    with pytest.raises(RunError, match=r"2 images .*003_mask\.png.*002\.png"):
        evaluating.main(config)
    rows = json.loads((config.output_dir / "rows.json").read_text())
    assert row_of(rows, "umci", "nut")["images"] == 6 and row_of(rows, "umci", "bolt")["images"] == 8
    assert (config.output_dir / "report.html").exists() and capsys.readouterr().out.count("failed") == 2


def test_nothing_readable_is_told_too(tmp_path, monkeypatch):
    data = Made(kinds=(("bolt", DAMAGED),))
    monkeypatch.setattr("clipsam.commands.eval.open_data", lambda *given: data)
    config = EvalConfig(data=("made",), output_dir=tmp_path / "out")
    with pytest.raises(RunError, match="1 images"):
        evaluating.main(config)
    assert json.loads((config.output_dir / "rows.json").read_text()) == []


def test_zero_shot_is_refused_on_what_was_trained_on(tmp_path, model):
    config = EvalConfig(data=("photographs",), samples=4, zero_shot=True, output_dir=tmp_path / "out")
    with pytest.raises(UsageError, match=r"'photographs' is not zero-shot.*trained on photographs; allowed"):
        evaluating.main(config)
    assert not config.output_dir.exists()


def test_zero_shot_on_something_else_says_so(tmp_path, model, monkeypatch):
    monkeypatch.setattr(model, "provenance", {"data": ["procedural/train-categories"]})
    config = EvalConfig(samples=2, stages=("umci",), zero_shot=True, output_dir=tmp_path / "out")
    evaluating.main(config)
    assert "Zero-shot" in (config.output_dir / "report.html").read_text()
    monkeypatch.setattr(model, "provenance", {"data": ["procedural"]})
    with pytest.raises(UsageError, match="trained on procedural"):
        evaluating.main(EvalConfig(samples=2, zero_shot=True, output_dir=tmp_path / "other"))


def test_a_data_set_twice_is_refused(tmp_path):
    with pytest.raises(UsageError, match="'procedural' twice"):
        evaluating.main(EvalConfig(data=("procedural", "procedural"), samples=2, output_dir=tmp_path))


def test_stages_that_the_pipeline_lacks_are_left_out(tmp_path, model, backbones, monkeypatch):
    monkeypatch.setattr("clipsam.commands.eval.open_model", lambda config: ClipSAM(backbones["timm"]))
    config = EvalConfig(samples=2, output_dir=tmp_path / "out")
    evaluating.main(config)
    assert {row["stage"] for row in json.loads((tmp_path / "out" / "rows.json").read_text())} == {"clip"}
    with pytest.raises(UsageError, match=r"stages=\('mmr',\).*allowed: clip$"):
        evaluating.main(EvalConfig(stages=("mmr",), output_dir=tmp_path / "other"))


def test_without_heads_sam_refines_the_map_from_texts(tmp_path, model, backbones, monkeypatch):
    texts = ClipSAM(backbones["timm"], segmenter=model.segmenter)
    monkeypatch.setattr("clipsam.commands.eval.open_model", lambda config: texts)
    evaluating.main(EvalConfig(samples=2, output_dir=tmp_path / "out"))
    rows = json.loads((tmp_path / "out" / "rows.json").read_text())
    assert {row["stage"] for row in rows} == {"clip", "mmr"}
    with pytest.raises(UsageError, match="references=4 need heads"):
        evaluating.main(EvalConfig(samples=2, references=4, output_dir=tmp_path / "other"))


def test_references_give_rows_of_their_own_and_change_no_other(tmp_path, model):
    folder = folder_of_images(tmp_path / "parts")
    for index, category in enumerate(Made.categories * 3):
        sound, others = sample_of(100 + index, category, GOOD), folder / category / "train" / "good"
        others.mkdir(parents=True, exist_ok=True)
        Image.fromarray(sound.image).save(others / f"{index}.png")
    found = {}
    for count in (0, 2):
        out = tmp_path / f"out{count}"
        evaluating.main(EvalConfig(data=(str(folder),), references=count, output_dir=out, batch_size=3))
        found[count] = json.loads((out / "rows.json").read_text())
    assert [row for row in found[2] if row["stage"] not in ("distance", "combined")] == found[0]
    drawn = open_references(str(folder), 2, 0)
    memory = model.remember([drawn[row].image for row in range(4) if drawn.entries[row].category == "bolt"], "bolt")
    scores = ImageMetrics()
    for index in range(0, len(Made()), 4):
        for sample in (Made()[index], Made()[index + 1]):
            [one] = model.segment([sample.image], "bolt", memory)
            scores.update(one.score, sample.is_anomalous)
    row = row_of(found[2], "combined", "bolt")
    assert row["image_auroc"] == pytest.approx(scores.compute()["image_auroc"]) and row["ap"] > 0
    with pytest.raises(UsageError, match=r"references=4 of 'bolt' in parts; allowed: 0 to 3"):
        evaluating.main(EvalConfig(data=(str(folder),), references=4, output_dir=tmp_path / "out4"))
    (folder / "nut" / "train").rename(folder / "nut" / "elsewhere")
    with pytest.raises(UsageError, match="references=2: the train split of parts lacks 'nut'"):
        evaluating.main(EvalConfig(data=(str(folder),), references=2, output_dir=tmp_path / "out4"))
    (folder / "nut" / "elsewhere").rename(folder / "nut" / "train")
    (folder / "bolt" / "train" / "good" / "0.png").write_bytes(b"")
    with pytest.raises(RunError, match=r"1 images could not be used: reference .*0\.png"):
        evaluating.main(EvalConfig(data=(str(folder),), references=3, output_dir=tmp_path / "out3"))
    assert row_of(json.loads((tmp_path / "out3" / "rows.json").read_text()), "combined", "bolt")["image_auroc"] >= 0


def test_scores_that_need_references_say_so(tmp_path):
    with pytest.raises(UsageError, match=r"score=\('distance',\) without references; allowed: map, mutual, or --ref"):
        EvalConfig(score=("distance",), output_dir=tmp_path)


def test_with_references_nothing_is_zero_shot(tmp_path):
    with pytest.raises(UsageError, match="references=8 with zero_shot"):
        EvalConfig(references=8, zero_shot=True, output_dir=tmp_path)


def test_the_command_is_what_was_asked(tmp_path):
    config = EvalConfig(data=("a b", "cells"), seed=3, zero_shot=True, sam="none", output_dir=tmp_path)
    assert command(config) == "clipsam eval --seed 3 --sam none --data 'a b' cells --zero-shot"


def test_the_thresholds_are_those_of_the_best_f1(model):
    data = Made()
    rows, pixels, scored = evaluate(model, data, ("umci",)).rows, PixelMetrics(), []
    for index, entry in enumerate(data.entries):
        [(anomaly_map, score)] = model.scored([data[index].image], entry.category)
        pixels.update(anomaly_map, data[index].mask)
        scored.append((score, entry.is_anomalous))
    row = row_of(rows, "umci")
    assert row["threshold"] == pytest.approx(pixels.compute()["threshold"], abs=1e-4)

    def f1(threshold):
        found = [(score >= threshold - 1e-6, bad) for score, bad in scored]
        hits = sum(called and bad for called, bad in found)
        return 2 * hits / (sum(called for called, _ in found) + sum(bad for _, bad in found))

    assert f1(row["image_threshold"]) == pytest.approx(max(f1(score) for score, _ in scored))
    of_one_kind = evaluate(model, Made((("bolt", GOOD),) * 2), ("umci",)).rows
    assert math.isnan(row_of(of_one_kind, "umci")["image_threshold"])


def test_a_category_of_the_command_line_is_all_folders(tmp_path, model, monkeypatch):
    folder_of_images(tmp_path / "set_7")
    asked = []
    monkeypatch.setattr(model, "scored", lambda images, category, memory=None: asked.append(category) or ClipSAM.scored(model, images, category))  # fmt: skip  # noqa: E501
    options = {"data": (str(tmp_path / "set_7"),), "stages": ("umci",), "output_dir": tmp_path / "out"}
    evaluating.main(EvalConfig(**options, category="metal nut"))
    assert set(asked) == {"metal nut"}
