"""Photographs as arrays, and masks: whatever is above 0 is a defect, and it fits its image."""

import zlib

import numpy as np
import pytest
from PIL import Image

from clipsam.data.images import camera_bits, read_image, read_mask
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


# --- binarising ---


def disc(side=60):
    y, x = np.mgrid[:side, :side] - side / 2
    return y**2 + x**2 < (side / 4) ** 2


def test_what_jpeg_leaves_beside_an_edge_is_no_defect(tmp_path):
    truth = disc()
    Image.fromarray(np.where(truth, 255, 0).astype(np.uint8)).save(tmp_path / "m.jpg", quality=60)
    Image.open(tmp_path / "m.jpg").save(tmp_path / "again.png")  # as many have converted theirs
    assert ((np.asarray(Image.open(tmp_path / "m.jpg")) > 0) != truth).sum() > 100  # the ringing
    for name in ("m.jpg", "again.png"):
        found = read_mask(tmp_path / name, truth.shape)
        assert (found & truth).sum() / (found | truth).sum() > 0.97


def test_a_faint_smear_below_a_white_mask_is_no_defect(tmp_path):
    truth = disc()
    for white in (255, 200, 128):
        values = np.where(truth, white, 0).astype(np.uint8)
        values[:5], values[5:8] = 2, 9
        Image.fromarray(values).save(tmp_path / "m.png")
        assert np.array_equal(read_mask(tmp_path / "m.png", truth.shape), truth)


def test_a_mask_of_soft_edges_is_cut_at_half(tmp_path):
    values = np.linspace(0, 200, 60).astype(np.uint8)[None].repeat(4, 0)
    Image.fromarray(values).save(tmp_path / "m.png")
    assert np.array_equal(read_mask(tmp_path / "m.png", (4, 60)), values > 100)


def test_numbers_of_defects_count_all(tmp_path):
    numbers = np.zeros((6, 30), np.uint8)
    numbers[2, :25] = np.arange(1, 26) % 13 + 1
    Image.fromarray(numbers).save(tmp_path / "few.png")
    Image.fromarray(numbers // 5 * 85).save(tmp_path / "spread.png")  # 0, 85, 170
    assert np.array_equal(read_mask(tmp_path / "few.png", (6, 30)), numbers > 0)
    assert np.array_equal(read_mask(tmp_path / "spread.png", (6, 30)), numbers >= 5)


def test_the_files_of_a_folder_count_together(tmp_path):
    for number in range(2):
        part = np.zeros((4, 5), np.uint8)
        part[number, 1] = 255 - number
        (tmp_path / "000").mkdir(exist_ok=True)
        Image.fromarray(part).save(tmp_path / "000" / f"{number}.png")
    assert np.argwhere(read_mask(tmp_path / "000", (4, 5))).tolist() == [[0, 1], [1, 1]]


# --- bit depth ---


def deep(path, bits, seed=0, **options):
    values = np.random.default_rng(seed).integers(0, 2**bits, (20, 30)).astype(np.uint16)
    values[0, 0] = 2**bits - 1
    Image.fromarray(values).save(path, **options)
    return path, values


@pytest.mark.parametrize("bits", [8, 10, 12, 14])
def test_a_camera_s_bits_are_read_off_the_greatest_value_of_all(tmp_path, bits, caplog):
    (bright, values), (dark, _) = deep(tmp_path / "a.png", bits), deep(tmp_path / "b.tif", max(bits - 3, 2))
    found = camera_bits([dark, bright, tmp_path / "missing.png"])
    assert found == bits and f"of {bits} bits" in caplog.text
    expected = np.rint(values / (2**bits - 1) * 255)
    assert np.abs(read_image(bright, found)[..., 0] - expected).max() <= 1
    assert read_image(bright)[..., 0].max() < 70  # almost black without


def test_all_16_bits_and_none_are_left_alone(tmp_path, caplog):
    full, _ = deep(tmp_path / "a.png", 16)
    plain = tmp_path / "plain.png"
    Image.new("L", (4, 4), 3).save(plain)
    assert camera_bits([full, deep(tmp_path / "b.png", 12)[0]]) is None and camera_bits([plain]) is None
    assert not caplog.text


def test_what_a_file_states_counts_more_than_its_values(tmp_path):
    tiff, _ = deep(tmp_path / "a.tif", 9, tiffinfo={281: 4095})
    png, _ = deep(tmp_path / "a.png", 9)
    content = png.read_bytes()
    chunk = b"sBIT" + bytes([12])
    png.write_bytes(content[:33] + b"\x00\x00\x00\x01" + chunk + zlib.crc32(chunk).to_bytes(4, "big") + content[33:])
    assert camera_bits([tiff]) == camera_bits([png]) == 12
