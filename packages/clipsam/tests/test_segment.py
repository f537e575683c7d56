"""The commands ``segment`` and ``refine``: what they write, what they survive, and that nothing is done twice."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image

from clipsam.commands import refine as refining
from clipsam.commands import segment as segmenting
from clipsam.commands.models import mmr_config
from clipsam.commands.options import RefineConfig, SegmentConfig
from clipsam.commands.outputs import OUTPUTS, unique_names
from clipsam.commands.segment import segment_images
from clipsam.data.images import read_image
from clipsam.mmr import MMRConfig, refine
from clipsam.pictures import overlay
from clipsam.pipeline import ClipSAM
from clipsam.sam import SamSegmenter
from clipsam.tiles import Tiling
from clipsam.umci import UMCIHead
from frugal_shared.errors import RunError, UsageError

RANDOM = np.random.default_rng(0)


@pytest.fixture(scope="module")
def model(backbones, sam):
    torch.manual_seed(5)
    umci = UMCIHead(2, 24, 24, hidden=8)
    with torch.no_grad():  # so that the map varies and something exceeds the threshold
        for parameter in umci.parameters():
            parameter.mul_(3)
    clipsam = ClipSAM(backbones["timm"], umci, segmenter=SamSegmenter(sam))
    pictures = [RANDOM.integers(0, 256, (48, 48, 3), dtype=np.uint8) for _ in range(2)]
    level = float(np.quantile(clipsam.rough(pictures, "object"), 0.8))
    clipsam.mmr = MMRConfig(threshold=min(max(level, 0.01), 0.99))
    return clipsam


@pytest.fixture(autouse=True)
def opened(model, sam, monkeypatch):
    monkeypatch.setattr(segmenting, "open_model", lambda config: model)
    monkeypatch.setattr(refining, "segmenter_of", lambda config: SamSegmenter(sam))


def picture(path, height=40, width=52, channels=3):
    shape = (height, width, channels)[: 3 if channels > 1 else 2]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RANDOM.integers(0, 256, shape, dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def odd(tmp_path):
    """Images of every kind, all of which can be read."""
    folder = tmp_path / "in"
    paths = [picture(folder / "a.png"), picture(folder / "b" / "a.png", 24, 70), picture(folder / "A.jpg")]
    paths += [picture(folder / "one.png", 1, 1), picture(folder / "alpha.png", 30, 30, 4)]
    deep = folder / "deep.png"
    Image.fromarray(RANDOM.integers(0, 65536, (33, 21), dtype=np.uint16)).save(deep)
    return (*paths, deep, picture(folder / "grey.png", 20, 20, 1))


def listed(folder):
    return json.loads((folder / "segmentations.json").read_text())


def contents(folder):
    """The outputs' bytes."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name.endswith(OUTPUTS)}


def test_every_image_gets_its_outputs(tmp_path, odd, model):
    config = SegmentConfig(images=odd, category="metal nut", output_dir=tmp_path / "out", batch_size=3)
    segmenting.main(config)
    records = listed(config.output_dir)
    assert [record["image"] for record in records] == [str(path) for path in odd]
    for path, record in zip(odd, records):
        size = read_image(path).shape[:2]
        levels = np.asarray(Image.open(config.output_dir / record["map"]))
        mask = np.asarray(Image.open(config.output_dir / record["mask"]))
        assert levels.dtype == np.uint16 and levels.shape == mask.shape == size
        assert np.asarray(Image.open(config.output_dir / record["overlay"])).shape == (*size, 3)
        assert set(np.unique(mask)) <= {0, 255} and record["threshold"] == model.mmr.threshold
        sure = np.abs(levels / 65535 - record["threshold"]) > 1e-4  # not lost in the rounding
        assert np.array_equal((mask > 0)[sure], (levels / 65535 > record["threshold"])[sure])
        assert record["category"] == "metal nut" and 0 <= record["score"] <= 1
        assert len(record["boxes"]) == len(record["mask_scores"])
    assert any(record["boxes"] for record in records)
    results = json.loads((config.output_dir / "results.json").read_text())
    assert results == {"images": len(odd), "failures": 0}


def test_the_map_is_that_of_the_pipeline(tmp_path, odd, model):
    config = SegmentConfig(images=odd[:1], output_dir=tmp_path / "out")
    segmenting.main(config)
    [found] = model.segment([read_image(odd[0])], "object")
    levels = np.asarray(Image.open(tmp_path / "out" / "a_map.png"))
    np.testing.assert_allclose(levels / 65535, found.anomaly_map, atol=1e-5)
    [record] = listed(config.output_dir)
    assert record["score"] == pytest.approx(found.score) and record["boxes"] == found.boxes.tolist()


def test_what_cannot_be_read_stops_nothing_and_is_named(tmp_path, capsys):
    good = [picture(tmp_path / f"{number}.png") for number in range(3)]
    empty, text = tmp_path / "empty.png", tmp_path / "text.png"
    empty.touch()
    text.write_text("no image")
    images = (good[0], empty, good[1], text, tmp_path / "missing.png", good[2])
    config = SegmentConfig(images=images, output_dir=tmp_path / "out", batch_size=2)
    with pytest.raises(RunError, match=r"^3 of 6 .*empty\.png: .*text\.png: .*missing\.png: "):
        segmenting.main(config)
    records = listed(config.output_dir)
    assert [record["image"] for record in records] == [str(path) for path in images]
    assert ["error" in record for record in records] == [False, True, False, True, True, False]
    assert all((config.output_dir / f"{number}_map.png").exists() for number in range(3))
    assert json.loads((config.output_dir / "results.json").read_text())["failures"] == 3
    assert capsys.readouterr().out.count("failed") == 3


def test_what_sam_refuses_stops_nothing_and_is_named(tmp_path, model, monkeypatch):
    line, square = picture(tmp_path / "line.png", 1, 30), picture(tmp_path / "square.png")
    real = SamSegmenter.embed

    def embed(self, image):
        if image.shape[0] == 1:
            raise ValueError("height and width must be > 0")
        return real(self, image)

    monkeypatch.setattr(SamSegmenter, "embed", embed)
    monkeypatch.setattr(model, "mmr", MMRConfig(threshold=1e-6, max_area=1))  # everything is asked for
    options = {"images": (line, square)}
    maps = (map_of(line), map_of(square))
    for run, config in (
        (segmenting.main, SegmentConfig(output_dir=tmp_path / "segment", **options)),
        (refining.main, RefineConfig(output_dir=tmp_path / "refine", maps=maps, **options)),
    ):
        with pytest.raises(RunError, match=r"1 of 2 .*line\.png: "):
            run(config)
        failed, done = listed(config.output_dir)
        assert failed["error"] == f"{line}: height and width must be > 0" and done["map"] == "square_map.png"


def map_of(path):
    """A map for an image, with one region."""
    values = np.zeros(read_image(path).shape[:2], np.float32)
    values[:, : values.shape[1] // 3] = 0.9
    np.save(path.with_suffix(".npy"), values)
    return path.with_suffix(".npy")


def test_a_batch_of_which_nothing_can_be_read(tmp_path):
    config = SegmentConfig(images=(tmp_path / "none.png",), output_dir=tmp_path / "out")
    with pytest.raises(RunError, match="1 of 1"):
        segmenting.main(config)
    assert "no such file" in listed(config.output_dir)[0]["error"]


def test_a_resumed_run_does_what_is_missing_and_nothing_else(tmp_path, odd, model, monkeypatch):
    options = {"images": odd, "output_dir": tmp_path / "out", "batch_size": 3}
    segmenting.main(SegmentConfig(**options))
    before, [whole] = contents(tmp_path / "out"), [listed(tmp_path / "out")]
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*_map.png")}
    (tmp_path / "out" / "one_overlay.png").unlink()
    (tmp_path / "out" / "segmentations.json").unlink()
    calls, real = [], model.refined
    monkeypatch.setattr(model, "refined", lambda *given: calls.append(1) or real(*given))
    segmenting.main(SegmentConfig(**options, resume=True))
    assert len(calls) == 1 and contents(tmp_path / "out") == before and listed(tmp_path / "out") == whole
    redone = [path.name for path, time in times.items() if path.stat().st_mtime_ns != time]
    assert redone == ["one_map.png"]


def test_two_processes_write_the_bytes_of_one(tmp_path, odd, model):
    for world in (1, 2):
        config = SegmentConfig(images=odd, output_dir=tmp_path / str(world), batch_size=2)
        for rank in range(world):
            shares = segmenting.chunks(len(odd), config.batch_size, rank, world)
            assert segment_images(model, config, shares) == {}
    assert contents(tmp_path / "1") == contents(tmp_path / "2") and len(contents(tmp_path / "1")) == 4 * len(odd)


def test_references_change_scores_and_maps(tmp_path, odd, model):
    references = tuple(picture(tmp_path / "others" / f"{index}.png") for index in range(3))
    options = {"images": odd, "category": "nut"}
    segmenting.main(SegmentConfig(**options, output_dir=tmp_path / "plain"))
    plain, images = listed(tmp_path / "plain"), [read_image(path) for path in references]
    for score in ("combined", "distance", "map"):
        out = tmp_path / score
        segmenting.main(SegmentConfig(**options, output_dir=out, references=references, score=score))
        memory = None if score == "map" else model.remember(images, "nut", manner=score)
        [expected] = model.segment([read_image(odd[0])], "nut", memory)
        found = listed(out)[0]
        assert found["score"] == pytest.approx(expected.score, rel=1e-4)
        assert (found["score"] == plain[0]["score"]) == (score == "map")
        maps = [(folder / "a_map.png").read_bytes() for folder in (tmp_path / "plain", out)]
        assert (maps[0] == maps[1]) == (score == "map")


def test_a_folder_is_scored_against_itself(tmp_path, model):
    paths = tuple(picture(tmp_path / f"{index}.png") for index in range(4))
    torn = tmp_path / "torn.png"
    torn.write_bytes(b"")
    config = SegmentConfig(images=(*paths, torn), category="nut", score="mutual", output_dir=tmp_path / "out")
    with pytest.raises(RunError, match=r"^1 of 5 images could not be used: .*torn\.png: [^;]*$"):
        segmenting.main(config)
    memory = model.remember([read_image(path) for path in paths], "nut", manner="mutual")
    [expected] = model.segment([read_image(paths[1])], "nut", memory)
    assert listed(config.output_dir)[1]["score"] == pytest.approx(expected.score, rel=1e-4)


def test_a_reference_that_cannot_be_read_is_one_line_and_the_rest_goes_on(tmp_path, odd, model, capsys):
    torn = tmp_path / "torn.png"
    torn.write_bytes(b"")
    config = SegmentConfig(images=odd[:2], references=(odd[2], torn), output_dir=tmp_path / "out")
    with pytest.raises(RunError, match=r"^1 references could not be used: reference .*torn\.png"):
        segmenting.main(config)
    found = listed(config.output_dir)
    [expected] = model.segment([read_image(odd[0])], "object", model.remember([read_image(odd[2])]))
    assert len(found) == 2 and found[0]["score"] == pytest.approx(expected.score, rel=1e-4)
    assert capsys.readouterr().out.count("failed") == 1
    alone = SegmentConfig(images=odd, references=(torn,), output_dir=tmp_path / "other")
    with pytest.raises(RunError, match=r"none of 1 references could be used: reference .*torn\.png"):
        segmenting.main(alone)
    assert not alone.output_dir.exists()


def test_distances_need_references(tmp_path):
    for score in ("distance", "combined"):
        with pytest.raises(UsageError, match=f"score='{score}' without references; allowed: --references"):
            SegmentConfig(score=score, output_dir=tmp_path)


def test_a_map_with_nan_is_named_and_stops_nothing(tmp_path, odd, model, monkeypatch):
    real = model.scored

    def scored(images, *others):
        found = real(images, *others)
        return [(np.full_like(found[0][0], np.nan), np.nan), *found[1:]]

    monkeypatch.setattr(model, "scored", scored)
    config = SegmentConfig(images=odd[:2], output_dir=tmp_path / "out")
    with pytest.raises(RunError, match=r"1 of 2 images .*a\.png: the map's scores lie in \[nan, nan\]"):
        segmenting.main(config)
    failed, done = listed(config.output_dir)
    assert "error" in failed and done["map"] == "a-2_map.png"


def test_names_are_unique_whatever_their_case(tmp_path):
    paths = [tmp_path / name for name in ("x.png", "y/x.jpg", "x-2.png", "X.png", "z.png")]
    names = unique_names(paths)
    assert names[0] == "x" and names[-1] == "z" and len({name.lower() for name in names}) == 5


def test_the_overlay_shows_heat_outline_and_boxes():
    anomaly_map, mask = np.zeros((50, 60), np.float32), np.zeros((50, 60), bool)
    mask[10:30, 20:40] = True
    anomaly_map[mask] = 1
    shown = np.asarray(overlay(np.full((50, 60, 3), 90, np.uint8), anomaly_map, mask, np.array([[5.0, 5, 45, 35]])))
    assert (shown[0, 0] == 90).all() and (shown[45, 55] == 90).all()  # nothing found, nothing changed
    assert (shown[10, 25] == (0, 255, 255)).all() and (shown[5, 20] == 255).all()
    assert (shown[20, 30] != 90).any()


# --- refine ---


def pairs(tmp_path):
    image = picture(tmp_path / "scratch.png", 40, 52)
    rough = np.zeros((40, 52), np.float32)
    rough[10:20, 10:30] = 0.9
    np.save(tmp_path / "rough.npy", rough)
    return image, tmp_path / "rough.npy", rough


def test_refine_writes_what_mmr_finds(tmp_path, sam):
    image, path, rough = pairs(tmp_path)
    deep, shallow = tmp_path / "deep.png", tmp_path / "shallow.png"
    Image.fromarray(np.rint(rough * 65535).astype(np.uint16)).save(deep)
    Image.fromarray(np.rint(rough * 255).astype(np.uint8)).save(shallow)
    config = RefineConfig(images=(image,) * 3, maps=(path, deep, shallow), output_dir=tmp_path / "out", threshold=0.4)
    refining.main(config)
    found = refine(read_image(image), rough, SamSegmenter(sam), MMRConfig(threshold=0.4))
    first, second, third = listed(config.output_dir)
    assert first["map"] == "scratch_map.png" and second["map"] == "scratch-2_map.png"
    for record in (first, second, third):
        levels = np.asarray(Image.open(config.output_dir / record["map"])) / 65535
        np.testing.assert_allclose(levels, found.anomaly_map, atol=3e-3)
        assert record["boxes"] == found.boxes.tolist() == [[10, 10, 30, 20]] and record["threshold"] == 0.4
        assert record["score"] == pytest.approx(0.9, abs=3e-3)


def spoil(rough, how):
    if how == "nan":
        rough[3, 3] = np.nan
    if how == "range":
        rough *= 3
    return np.stack([rough] * 2) if how == "shape" else rough


@pytest.mark.parametrize("how", ["nan", "range", "shape", "pickle", "bytes", "colour", "missing"])
def test_a_map_that_cannot_be_used_is_named_and_stops_nothing(tmp_path, how):
    image, good, rough = pairs(tmp_path)
    bad = tmp_path / ("bad.png" if how == "colour" else "bad.npy")
    if how == "colour":
        picture(bad, 40, 52)
    elif how == "bytes":
        bad.write_bytes(b"not numpy")
    elif how == "pickle":
        np.save(bad, np.array([{"a": 1}], object), allow_pickle=True)
    elif how != "missing":
        np.save(bad, spoil(rough, how))
    config = RefineConfig(images=(image, image), maps=(bad, good), output_dir=tmp_path / "out")
    with pytest.raises(RunError, match="1 of 2"):
        refining.main(config)
    failed, done = listed(config.output_dir)
    assert str(bad) in failed["error"] and "\n" not in failed["error"] and done["map"] == "scratch-2_map.png"


def test_refine_takes_distances_of_another_size(tmp_path):
    image, _, rough = pairs(tmp_path)
    far = 5 + 20 * rough[None, ::2, ::2]
    np.save(tmp_path / "far.npy", far)
    for number in range(3):
        np.save(tmp_path / f"sound{number}.npy", 5 + np.random.default_rng(number).random((1, 20, 26)))
    sound = tuple(tmp_path / f"sound{number}.npy" for number in range(3))
    options = {"images": (image,), "maps": (tmp_path / "far.npy",)}
    refining.main(RefineConfig(**options, range=(5, 25), output_dir=tmp_path / "given"))
    refining.main(RefineConfig(**options, sound_maps=sound, output_dir=tmp_path / "calibrated"))
    for folder in ("given", "calibrated"):
        [record] = listed(tmp_path / folder)
        assert np.abs(np.array(record["boxes"]) - [[10, 10, 30, 20]]).max() <= 1
    with pytest.raises(UsageError, match="with sound_maps; allowed: either"):
        RefineConfig(**options, range=(5, 25), sound_maps=sound)


def test_refine_needs_a_map_for_each_image_and_a_sam(tmp_path):
    image, path, _ = pairs(tmp_path)
    with pytest.raises(UsageError, match="1 maps for 2 images"):
        RefineConfig(images=(image, image), maps=(path,))
    with pytest.raises(UsageError, match="sam='none'"):
        RefineConfig(images=(image,), maps=(path,), sam="none")


# --- folders, watching, annotations ---


def test_a_folder_is_segmented_with_all_below_it_and_summed_up(tmp_path, capsys):
    for name in ("a.png", "deep/a.png", "deep/b.png"):
        picture(tmp_path / "in" / name)
    config = SegmentConfig(
        images=(tmp_path / "in",), output_dir=tmp_path / "in" / "out", annotations=("coco", "labelme")
    )
    segmenting.main(config)
    records = listed(config.output_dir)
    assert {record["image"] for record in records} == {str(path) for path in (tmp_path / "in").glob("[ad]*/*.png")} | {
        str(tmp_path / "in" / "a.png")
    }
    assert "3 images: " in capsys.readouterr().out
    written = json.loads((config.output_dir / "annotations.json").read_text())
    assert [image["file_name"] for image in written["images"]] == ["../a.png", "../deep/a.png", "../deep/b.png"]
    assert sum(annotation["area"] for annotation in written["annotations"]) == sum(
        round(record["area"] * 40 * 52) for record in records
    )
    one = json.loads((config.output_dir / "b_labelme.json").read_text())
    assert (one["imageHeight"], one["imageWidth"]) == (40, 52) and one["imagePath"] == "../deep/b.png"
    picture(tmp_path / "in" / "0" / "a.png")  # comes first from now on, and takes the name
    segmenting.main(dataclasses.replace(config, resume=True))
    assert len({record["map"] for record in listed(config.output_dir)}) == 4
    for record in listed(config.output_dir):
        found = json.loads((config.output_dir / record["map"].replace("map.png", "found.json")).read_text())
        assert found["image"] == record["image"]


def test_watching_goes_on_until_it_is_stopped(tmp_path, monkeypatch):
    picture(tmp_path / "in" / "first.png")
    rounds = iter([["second.png", "third.png"], ["fourth.png"]])

    def arriving(folders, known, output_dir):
        assert folders == [tmp_path / "in"] and [path.name for path in known] == ["first.png"]
        yield from ([picture(tmp_path / "in" / name) for name in names] for names in rounds)

    monkeypatch.setattr(segmenting, "arrivals", arriving)
    config = SegmentConfig(images=(tmp_path / "in",), output_dir=tmp_path / "out", watch=True)
    segmenting.main(config)
    names = [record["map"] for record in listed(config.output_dir)]
    assert names == ["first_map.png", "second_map.png", "third_map.png", "fourth_map.png"]
    assert json.loads((config.output_dir / "results.json").read_text()) == {"images": 4, "failures": 0}
    with pytest.raises(UsageError, match="watch=True with score='mutual', which needs all images at once"):
        SegmentConfig(images=(tmp_path / "in",), watch=True, score="mutual")
    with pytest.raises(UsageError, match="watch=True without a folder"):
        segmenting.main(SegmentConfig(images=(tmp_path / "in" / "first.png",), watch=True))


# --- large images, deep images, and what was cut off ---


def test_large_images_are_seen_in_tiles(tmp_path, model, monkeypatch):
    large, small = picture(tmp_path / "large.png", 90, 150), picture(tmp_path / "small.png", 30, 40)
    options = {"images": (large, small)}
    segmenting.main(SegmentConfig(**options, batch_size=1, output_dir=tmp_path / "whole"))
    monkeypatch.setattr(model, "tiling", Tiling(64))
    segmenting.main(SegmentConfig(**options, output_dir=tmp_path / "tiles", tiles=64))
    [expected] = model.segment([read_image(large)], "object")
    whole, tiles = (listed(tmp_path / name) for name in ("whole", "tiles"))
    assert tiles[0]["score"] == pytest.approx(expected.score) != whole[0]["score"]
    assert tiles[1] == whole[1]


def test_a_camera_of_12_bits_is_not_black(tmp_path, model, caplog):
    bright = np.random.default_rng(1).integers(0, 256, (40, 52), dtype=np.uint8)
    for name, values in (("plain", bright), ("deep", bright.astype(np.uint16) * 16)):
        Image.fromarray(values).save(tmp_path / f"{name}.png")
    scores = {}
    for name, options in (("plain", {}), ("deep", {}), ("deep", {"bits": 16})):
        config = SegmentConfig(
            images=(tmp_path / f"{name}.png",), output_dir=tmp_path / "out", overwrite=True, **options
        )
        segmenting.main(config)
        scores[name, *options] = listed(config.output_dir)[0]["score"]
    assert "12 bits: 4095 is taken for white" in caplog.text
    assert scores["deep",] == pytest.approx(scores["plain",], abs=1e-3)
    assert abs(scores["deep", "bits"] - scores["plain",]) > 1e-3


def test_what_sam_was_not_asked_about_is_written_and_printed(tmp_path, model, capsys):
    image, path, rough = pairs(tmp_path)
    rough[30:34, 30:34] = rough[0, 0] = 0.8
    np.save(path, rough)
    options = {"images": (image,), "maps": (path,), "output_dir": tmp_path / "out"}
    refining.main(RefineConfig(**options, max_components=1, min_area=2))
    [record] = listed(tmp_path / "out")
    assert record["cut_off"] == {"min_area": 1, "max_area": 0, "max_components": 1}
    assert "not refined in 1 images: components above the threshold, 1 by min_area, 1 by max_components" in capsys.readouterr().out  # fmt: skip  # noqa: E501


def test_options_of_the_refinement_reach_it():
    options = {"min_area": 9, "max_components": 3, "points": 2, "weight": 0.5, "threshold": 0.4}
    found = mmr_config(RefineConfig(**options), MMRConfig(seed=5))
    assert found == MMRConfig(seed=5, **options) and mmr_config(RefineConfig(), MMRConfig(points=7)).points == 7
    for wrong in ({"min_area": -1}, {"max_components": 0}, {"points": 0}, {"weight": 1.5}):
        with pytest.raises(UsageError, match="allowed"):
            RefineConfig(**wrong)
