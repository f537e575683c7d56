"""Reading images and masks: every mode comes out as RGB, and no file can do more harm than one clear line."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from clipsam.data import images
from clipsam.data.images import ImageError, read_image, read_mask

RAMP = np.arange(6 * 8, dtype=np.uint8).reshape(6, 8) * 5


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "webp"])
def test_rgb_survives_lossless_formats(tmp_path, suffix):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / f"a.{suffix}", lossless=True)
    assert np.array_equal(read_image(tmp_path / f"a.{suffix}"), pixels)


def test_grey_bilevel_and_palette_become_rgb(tmp_path):
    Image.fromarray(RAMP).save(tmp_path / "grey.png")
    Image.fromarray(RAMP > 100).save(tmp_path / "bilevel.png")
    Image.fromarray(np.stack([RAMP] * 3, axis=2)).quantize(64).save(tmp_path / "palette.png")
    assert np.array_equal(read_image(tmp_path / "grey.png"), np.stack([RAMP] * 3, axis=2))
    assert np.array_equal(read_image(tmp_path / "bilevel.png")[..., 0], np.where(RAMP > 100, 255, 0))
    assert np.array_equal(read_image(tmp_path / "palette.png")[..., 1], RAMP)


def test_transparent_pixels_are_laid_over_white(tmp_path):
    rgba = np.zeros((2, 2, 4), np.uint8)
    rgba[0, 0] = 10, 20, 30, 255
    rgba[0, 1] = 0, 0, 0, 127
    Image.fromarray(rgba).save(tmp_path / "a.png")
    Image.fromarray(np.array([[[0, 0], [80, 255]]], np.uint8)).save(tmp_path / "grey_alpha.png")
    image = read_image(tmp_path / "a.png")
    assert image[0, 0].tolist() == [10, 20, 30]
    assert image[1, 1].tolist() == [255] * 3
    assert image[0, 1].tolist() == pytest.approx([128] * 3, abs=1)
    assert read_image(tmp_path / "grey_alpha.png")[0, :, 0].tolist() == [255, 80]


def test_16_bits_are_scaled_by_their_range_not_cut(tmp_path):
    values = np.array([[0, 257, 25700], [32768, 65278, 65535]], np.uint16)
    for suffix in ("png", "tif"):
        Image.fromarray(values).save(tmp_path / f"deep.{suffix}")
        assert read_image(tmp_path / f"deep.{suffix}")[..., 0].tolist() == [[0, 1, 100], [128, 254, 255]]


def test_floating_point_files_are_stretched(tmp_path):
    Image.fromarray(np.array([[-1.0, 0.0, 1.0]], np.float32)).save(tmp_path / "f.tif")
    assert read_image(tmp_path / "f.tif")[0, :, 0].tolist() == [0, 128, 255]


def test_cmyk_becomes_rgb(tmp_path):
    Image.new("CMYK", (4, 4), (0, 255, 255, 0)).save(tmp_path / "a.tif")
    assert read_image(tmp_path / "a.tif")[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize(
    ("orientation", "turned"), [(6, np.rot90(RAMP, -1)), (8, np.rot90(RAMP)), (3, RAMP[::-1, ::-1])]
)
def test_exif_orientation_is_applied(tmp_path, orientation, turned):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(RAMP).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "a.png")[..., 0], turned)


def test_one_pixel(tmp_path):
    Image.new("RGB", (1, 1), (1, 2, 3)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").tolist() == [[[1, 2, 3]]]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("gone.png", None, "no such file"),
        ("empty.png", b"", "the file is empty"),
        ("text.png", b"hello", "not an image"),
        ("cut.png", b"\x89PNG\r\n\x1a\n", "cannot be read|not an image"),
    ],
)
def test_what_is_no_image_is_named_in_one_line(tmp_path, name, content, said):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ImageError, match=said) as error:
        read_image(tmp_path / name)
    assert name in str(error.value)
    assert "\n" not in str(error.value)


def test_a_folder_is_no_image(tmp_path):
    with pytest.raises(ImageError, match="folder"):
        read_image(tmp_path)


def _png_header(width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    data = b"IDAT" + zlib.compress(b"\0")
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data))


@pytest.mark.parametrize("side", [9_000, 12_000, 60_000])  # above our limit; where Pillow warns; where it raises
@pytest.mark.filterwarnings("error")
def test_huge_images_are_refused_before_they_are_decoded(tmp_path, side):
    (tmp_path / "bomb.png").write_bytes(_png_header(side, side))
    with pytest.raises(ImageError, match=r"bomb\.png: .*at most 67,108,864"):
        read_image(tmp_path / "bomb.png")


def test_the_limit_itself_is_allowed(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 48)
    Image.fromarray(RAMP).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").shape == (6, 8, 3)
    monkeypatch.setattr(images, "MAX_PIXELS", 47)
    with pytest.raises(ImageError, match="6x8 pixels; allowed: at most 47"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tif", "webp", "gif"])
def test_damaged_files_give_an_image_or_an_image_error(tmp_path, suffix):
    rng = np.random.default_rng(1)
    Image.fromarray(rng.integers(0, 256, (24, 31, 3), np.uint8)).save(tmp_path / f"whole.{suffix}")
    whole = (tmp_path / f"whole.{suffix}").read_bytes()
    damaged, refused = tmp_path / f"damaged.{suffix}", 0
    for trial in range(120):
        content = bytearray(whole[: rng.integers(1, len(whole))] if trial % 2 else whole)
        for position in rng.integers(0, min(len(content), 200), 4):
            content[position] = rng.integers(256)
        damaged.write_bytes(content)
        try:
            assert read_image(damaged).shape[2] == 3
        except ImageError as error:
            refused += 1
            assert damaged.name in str(error)
            assert "\n" not in str(error)
    assert refused


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
