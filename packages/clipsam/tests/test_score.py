"""The image's score: one number of a map, which does not depend on how wide the view is."""

import numpy as np
import pytest

from clipsam.pipeline import ClipSAM
from clipsam.score import POOLING, POOLINGS, image_score
from clipsam.umci import UMCIHead

MAP = np.arange(1000, dtype=np.float32).reshape(20, 50) / 1000


@pytest.mark.parametrize(("pooling", "expected"), [("max", 0.999), ("quantile", 0.990), ("top-mean", 0.9945)])
def test_every_pooling_is_what_it_says(pooling, expected):
    assert image_score(MAP, pooling) == pytest.approx(expected, abs=1e-6)
    assert image_score(np.array([[0.3]], np.float32), pooling) == pytest.approx(0.3)


def test_an_unknown_pooling_is_refused():
    with pytest.raises(ValueError, match="pooling='mean' is unknown; allowed: max, quantile, top-mean"):
        image_score(MAP, "mean")


def test_a_defect_does_not_vanish_when_the_view_is_three_times_as_wide():
    near = np.full((100, 100), 0.05, np.float32)
    near[50:52, 20:50] = 0.97
    wide = np.full((300, 300), 0.05, np.float32)
    wide[100:200, 100:200] = near
    assert image_score(wide) == image_score(near) == pytest.approx(0.97)
    assert image_score(wide, "top-mean") < 0.2  # what was the default before


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_pipeline_scores_as_it_is_told(backbones, pooling):
    backbone = backbones["own"]
    umci = UMCIHead(2, backbone.width, backbone.text_dim, hidden=8, pool_kernels=(1, 2))
    image = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)
    [found] = ClipSAM(backbone, umci, pooling=pooling).segment([image], "nut")
    assert found.score == image_score(found.rough_map, pooling)
    assert ClipSAM(backbone, umci).pooling == POOLING
