"""Maps of other methods come to the image's size and to one scale, and what is there already stays as it is."""

import numpy as np
import pytest
import torch

from clipsam.map_scale import MapScale, as_map


def distances(seed=0, shape=(1, 28, 28)):
    return np.random.default_rng(seed).gamma(2.0, size=shape).astype(np.float32)


def test_a_map_that_fits_comes_back_bit_for_bit():
    values = np.random.default_rng(0).random((30, 40), np.float32)
    for given in (values, values[None], values[None, None], torch.from_numpy(values)[None]):
        assert np.array_equal(as_map(given, (30, 40)), values)


def test_a_block_keeps_its_place_at_another_size():
    small = np.zeros((1, 14, 28), np.float32)
    small[0, 2:6, 10:20] = 0.8
    large = as_map(small, (140, 280))
    assert large.shape == (140, 280) and large.dtype == np.float32
    assert (large[26:54, 106:194] > 0.79).all() and large[:10].max() == 0 and large[70:].max() == 0
    again = as_map(large, (14, 28))
    assert abs(again.mean() - small.mean()) < 1e-3 and (again[3:5, 11:19] > 0.7).all()


def test_distances_are_scaled_alike_in_every_image():
    scale = MapScale.calibrated(distances(seed) for seed in range(20))
    first = as_map(distances(100), (28, 28), scale)
    assert first.min() >= 0 and first.max() <= 1 and (first > 0.5).mean() < 0.005
    far = distances(100)
    far[0, 5, 5] = 40
    second = as_map(far, (28, 28), scale)
    assert second[5, 5] == 1 and np.array_equal(np.delete(second, 5 * 28 + 5), np.delete(first, 5 * 28 + 5))
    np.testing.assert_allclose(as_map(np.array([[2.0, 4, 8]]), (1, 3), MapScale(2, 6)), [[0, 0.5, 1]])


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (np.full((4, 4), np.nan), "nan"),
        (np.full((4, 4), 2.0), r"\[2.0, 2.0\]; allowed: numbers in \[0, 1\], or distances with a range"),
        (np.zeros((2, 4, 4)), r"\(2, 4, 4\)"),
        (np.zeros(4), r"\(4,\)"),
        (np.zeros((0, 4)), r"\(0, 4\)"),
    ],
)
def test_what_is_no_map_is_refused(values, says):
    with pytest.raises(ValueError, match=says):
        as_map(values, (4, 4))
    if np.isnan(values).any():
        with pytest.raises(ValueError, match=says):
            as_map(values, (4, 4), MapScale(0, 1))


def test_a_scale_that_is_none_is_refused():
    for low, high in [(1, 1), (2, 1), (0, np.nan)]:
        with pytest.raises(ValueError, match="allowed: two rising numbers"):
            MapScale(low, high)
    for maps in ([], [np.array([[np.nan]])]):
        with pytest.raises(ValueError, match="allowed: one map or more, of numbers"):
            MapScale.calibrated(maps)
