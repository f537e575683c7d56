"""Photographs as arrays, and masks: whatever is above 0 is a defect, and it fits its image."""

import numpy as np
import pytest
from PIL import Image

from clipsam.data.images import read_image, read_mask
from frugal_shared.images import ImageError


def test_a_photograph_is_rgb_whatever_it_was_saved_as(tmp_path):
    grey = np.arange(6 * 8, dtype=np.uint8).reshape(6, 8) * 5
    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    for name in ("grey", "deep"):
        image = read_image(tmp_path / f"{name}.png")
        assert image.dtype == np.uint8
        assert np.array_equal(image, np.stack([grey] * 3, axis=2))


def test_a_mask_is_turned_as_its_image_is(tmp_path):
    numbers = np.zeros((5, 7), np.uint8)
    numbers[1, 2] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(numbers).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read_mask(tmp_path / "a.png", (7, 5)), np.rot90(numbers > 0, -1))


def test_mask_of_defect_numbers_and_mask_of_255_agree(tmp_path):
    numbers = np.zeros((5, 7), np.uint8)
    numbers[1:3, 2:4], numbers[4, 6] = 1, 3
    Image.fromarray(numbers).save(tmp_path / "numbers.png")
    Image.fromarray(np.where(numbers > 0, 255, 0).astype(np.uint8)).save(tmp_path / "white.png")
    Image.fromarray(numbers > 0).save(tmp_path / "bilevel.png")
    palette = Image.fromarray(numbers)
    palette.putpalette([0] * 768)  # the numbers count, not the colours they stand for
    palette.save(tmp_path / "palette.png")
    Image.fromarray(np.stack([0 * numbers, numbers, 0 * numbers], axis=2)).save(tmp_path / "rgb.png")
    Image.fromarray(numbers.astype(np.uint16) * 300).save(tmp_path / "deep.png")
    for name in ("numbers", "white", "bilevel", "palette", "rgb", "deep"):
        mask = read_mask(tmp_path / f"{name}.png", (5, 7))
        assert mask.dtype == bool
        assert np.array_equal(mask, numbers > 0), name


def test_an_opaque_alpha_channel_is_no_defect(tmp_path):
    Image.new("RGBA", (7, 5), (0, 0, 0, 255)).save(tmp_path / "a.png")
    assert not read_mask(tmp_path / "a.png", (5, 7)).any()


def test_mask_of_another_size_names_both_sizes(tmp_path):
    Image.new("L", (7, 5)).save(tmp_path / "m.png")
    with pytest.raises(ImageError, match=r"m\.png: the mask is 5x7, but its image is 7x5"):
        read_mask(tmp_path / "m.png", (7, 5))
