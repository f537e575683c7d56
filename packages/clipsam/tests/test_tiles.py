"""Large images: tiles cover them, no seam shows, what is small in the whole is found, and scales are averaged."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from clipsam.commands.models import tiling
from clipsam.commands.options import EvalConfig, SegmentConfig
from clipsam.memory import Memory
from clipsam.pipeline import ClipSAM
from clipsam.tiles import Tiling, averaged, seen_in_tiles, starts, tiles_of
from clipsam.umci import UMCIHead
from frugal_shared.errors import UsageError

SIDE = 16  # pixels that the stub sees


def brightness(images):
    """What a CLIP that sees 16×16 pixels would say if an anomaly were what is bright."""
    found = []
    for image in images:
        small = Image.fromarray(image[..., 0]).resize((SIDE, SIDE), Image.Resampling.BOX)
        levels = small.resize(image.shape[1::-1], Image.Resampling.BILINEAR)
        found.append((np.asarray(levels, np.float32) / 255, float(np.max(small)) / 255))
    return {"bright": found}


def spotted(height=400, width=600):
    image = np.zeros((height, width, 3), np.uint8)
    image[201:205, 333:337] = 255
    return image


@pytest.mark.parametrize("size", [(400, 600), (32, 33), (65, 200), (10, 500), (401, 64)])
@pytest.mark.parametrize("overlap", [0, 0.25, 0.5])
def test_tiles_of_one_size_cover_the_image_and_overlap(size, overlap):
    windows, seen = tiles_of(*size, 64, overlap), np.zeros(size, int)
    for window in windows:
        seen[window] += 1
    assert seen.min() == 1 and len({seen[window].shape for window in windows}) == 1
    for length in size:
        steps = np.diff(starts(length, 64, overlap))
        assert all(0 < step <= 64 * (1 - overlap) + 1 for step in steps)


def test_what_vanishes_in_the_whole_is_found_in_a_tile():
    [(whole, score)] = brightness([spotted()])["bright"]
    [(anomaly_map, tiled_score)] = seen_in_tiles(spotted(), 32, Tiling(), brightness)["bright"]
    assert whole.max() < 0.05 and score < 0.05
    assert anomaly_map.shape == (400, 600) and tiled_score > 0.4
    assert np.unravel_index(anomaly_map.argmax(), anomaly_map.shape) == pytest.approx((203, 335), abs=2)


def test_what_is_larger_than_a_tile_is_found_in_the_whole():
    contrast = lambda images: {"contrast": [(np.abs(image[..., 0] - image.mean()).astype(np.float32) / 255, 0.0) for image in images]}  # fmt: skip  # noqa: E501, E731
    image = np.zeros((200, 200, 3), np.uint8)
    image[:, :100] = 255
    [(anomaly_map, _)] = seen_in_tiles(image, 32, Tiling(overlap=0), contrast)["contrast"]
    assert anomaly_map.min() > 0.4


def test_no_seam_shows_where_tiles_agree():
    even = lambda images: {"even": [(np.full(image.shape[:2], 0.3, np.float32), 0.3) for image in images]}  # noqa: E731
    [(anomaly_map, score)] = seen_in_tiles(spotted(), 48, Tiling(overlap=0.3), even)["even"]
    np.testing.assert_allclose(anomaly_map, 0.3, atol=1e-6)
    assert score == 0.3


def test_tiles_are_seen_a_few_at_once():
    asked = []

    def see(images):
        asked.append(len(images))
        return brightness(images)

    seen_in_tiles(spotted(), 100, Tiling(batch=5), see)
    assert max(asked) == 5 and sum(asked) == len(tiles_of(400, 600, 100, 0.25)) + 1


def test_looks_are_averaged():
    looks = [{"a": [(np.full((2, 2), value, np.float32), value)]} for value in (0.2, 0.6)]
    [(anomaly_map, score)] = averaged(looks)["a"]
    np.testing.assert_allclose(anomaly_map, 0.4)
    assert score == pytest.approx(0.4) and averaged(looks[:1]) is looks[0]


@pytest.fixture(scope="module")
def heads(backbones):
    torch.manual_seed(3)
    backbone = backbones["own"]
    return backbone, UMCIHead(2, backbone.width, backbone.text_dim, hidden=16, pool_kernels=(1, 3), pool_stride=1)


def picture(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_small_images_are_as_without_tiles_beside_large_ones(heads):
    plain, tiled = ClipSAM(*heads), ClipSAM(*heads, tiling=Tiling(64))
    small, large = picture(40, 64), picture(90, 150, 1)
    [(expected, score)] = plain.scored([small], "nut")
    [(found, found_score), (other, _)] = tiled.scored([small, large], "nut")
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert found_score == pytest.approx(score) and other.shape == (90, 150)
    assert not np.allclose(other, plain.scored([large], "nut")[0][0], atol=1e-4)


def test_every_stage_is_tiled_alike(heads):
    model, large = ClipSAM(*heads, tiling=Tiling("auto")), picture(90, 150)
    stages = model.every_stage([large], "nut")
    np.testing.assert_allclose(stages["umci"][0][0], model.scored([large], "nut")[0][0], atol=1e-5)
    np.testing.assert_allclose(stages["clip"][0][0], model.text_map([large], "nut")[0], atol=1e-5)
    [(_, by_texts)] = ClipSAM(heads[0], tiling=Tiling("auto")).scored([large], "nut")
    assert by_texts == pytest.approx(stages["clip"][0][1]) and by_texts > stages["clip"][0][0].max()  # of the views


def test_references_are_seen_at_the_scale_of_the_images(heads):
    [image] = images = [picture(40, 50)]
    model = ClipSAM(*heads, scales=(64,))
    [(distance, _)] = model.scored(images, "nut", model.remember(images, "nut", manner="distance"))
    [(other, _)] = model.scored([image[::-1]], "nut", model.remember(images, "nut", manner="distance"))
    assert distance.max() < other.min()  # what was seen before is at no distance


def test_several_scales_are_the_mean_of_each(heads):
    images = [picture(40, 50)]
    each = [ClipSAM(*heads, scales=(side,)).scored(images, "nut")[0] for side in (32, 64)]
    [(both, score)] = ClipSAM(*heads, scales=(32, 64)).scored(images, "nut")
    np.testing.assert_allclose(both, (each[0][0] + each[1][0]) / 2, atol=1e-6)
    assert score == pytest.approx((each[0][1] + each[1][1]) / 2)
    assert not np.allclose(each[0][0], each[1][0], atol=1e-4)


def test_what_is_not_possible_is_refused(heads):
    for options in ({"side": 3}, {"side": "large"}, {"overlap": 0.9}, {"batch": 0}):
        with pytest.raises(ValueError, match="allowed"):
            Tiling(**options)
    for scales in ((30,), (32, 32), (0,)):
        with pytest.raises(ValueError, match=r"scales=.* allowed: different multiples of 8"):
            ClipSAM(*heads, scales=scales)
    memory = Memory([torch.rand(1, heads[0].width, 4, 4)] * 2)
    for options in ({"tiling": Tiling(64)}, {"scales": (32, 64)}):
        with pytest.raises(ValueError, match="a memory with several scales or tiles"):
            ClipSAM(*heads, **options).scored([picture(40, 40)], "nut", memory)


def test_options_of_the_command_line():
    assert tiling(SegmentConfig()) is None
    assert tiling(SegmentConfig(tiles="auto")) == Tiling() and tiling(SegmentConfig(tiles=448)) == Tiling(448)
    with pytest.raises(UsageError, match="tiles=8 is not possible; allowed: 16 or more, or auto"):
        SegmentConfig(tiles=8)
    for options in ({"tiles": 64}, {"tiles": "auto"}, {"scales": (224, 448)}):
        with pytest.raises(UsageError, match=r"references with tiles=.*allowed: either"):
            SegmentConfig(references=(Path("a.png"),), **options)
        with pytest.raises(UsageError, match=r"references with tiles=.*allowed: either"):
            EvalConfig(references=2, **options)
        for config in (SegmentConfig, EvalConfig):
            with pytest.raises(UsageError, match=r"references with tiles=.*allowed: either"):
                config(score="mutual" if config is SegmentConfig else ("mutual",), **options)
