import numpy as np
import pytest
from PIL import Image

from frugal_shared.rgb import as_rgb


@pytest.mark.parametrize(
    ("pixel", "expected"),
    [
        (Image.fromarray(np.array([[0, 65535]], np.uint16)), [[0] * 3, [255] * 3]),
        (Image.fromarray(np.array([[-1.0, 3.0]], np.float32)), [[0] * 3, [255] * 3]),
        (Image.fromarray(np.array([[np.nan, 3.0, np.inf, 1.0]], np.float32)), [[0] * 3, [255] * 3, [255] * 3, [0] * 3]),
        (Image.new("RGBA", (1, 1), (255, 0, 0, 0)), [[255] * 3]),
        (Image.new("L", (1, 1), 7), [[7] * 3]),
        (Image.new("CMYK", (1, 1), (0, 0, 0, 255)), [[0] * 3]),
    ],
)
def test_every_mode_becomes_rgb(pixel, expected):
    assert np.asarray(as_rgb(pixel)).tolist() == [expected]


def test_an_image_without_a_finite_value_is_refused():
    with pytest.raises(ValueError, match="no finite value"):
        as_rgb(Image.fromarray(np.full((2, 2), np.nan, np.float32)))
