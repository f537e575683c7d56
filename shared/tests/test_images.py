"""Reading images: every mode comes out as what one sees, and no file can do more harm than one clear line."""

import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from frugal_shared import images
from frugal_shared.images import ImageError, check_files, eight_bit, image_files, opened, read_image

RAMP = np.arange(6 * 8, dtype=np.uint8).reshape(6, 8) * 5


def pixels(path):
    return np.asarray(read_image(path))


def test_reading_needs_numpy_and_pillow_alone():
    told = "import sys, frugal_shared.images; print(*{'torch', 'sklearn', 'accelerate'}.intersection(sys.modules))"
    assert subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True).stdout == "\n"


# --- what comes out ---


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "webp"])
def test_rgb_survives_lossless_formats(tmp_path, suffix):
    colours = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    Image.fromarray(colours).save(tmp_path / f"a.{suffix}", lossless=True)
    assert np.array_equal(pixels(tmp_path / f"a.{suffix}"), colours)


def test_grey_and_bilevel_stay_grey_and_a_palette_becomes_rgb(tmp_path):
    Image.fromarray(RAMP).save(tmp_path / "grey.png")
    Image.fromarray(RAMP > 100).save(tmp_path / "bilevel.png")
    Image.fromarray(np.stack([RAMP] * 3, axis=2)).quantize(64).save(tmp_path / "palette.png")
    assert np.array_equal(pixels(tmp_path / "grey.png"), RAMP)
    assert np.array_equal(pixels(tmp_path / "bilevel.png"), np.where(RAMP > 100, 255, 0))
    assert np.array_equal(pixels(tmp_path / "palette.png"), np.stack([RAMP] * 3, axis=2))


def test_transparent_pixels_are_laid_over_white(tmp_path):
    rgba = np.zeros((2, 2, 4), np.uint8)
    rgba[0, 0] = 10, 20, 30, 255
    rgba[0, 1] = 0, 0, 0, 127
    rgba[1, 0] = 255, 0, 0, 0  # a colour that nobody could see
    Image.fromarray(rgba).save(tmp_path / "a.png")
    Image.fromarray(np.array([[[0, 0], [80, 255]]], np.uint8)).save(tmp_path / "grey_alpha.png")
    Image.new("P", (1, 1)).save(tmp_path / "palette.png", transparency=0)
    found = pixels(tmp_path / "a.png")
    assert found[0, 0].tolist() == [10, 20, 30]
    assert found[1, 0].tolist() == found[1, 1].tolist() == [255] * 3
    assert found[0, 1].tolist() == pytest.approx([128] * 3, abs=1)
    assert pixels(tmp_path / "grey_alpha.png").tolist() == [[[255] * 3, [80] * 3]]
    assert pixels(tmp_path / "palette.png").tolist() == [[[255] * 3]]


def test_16_bits_are_scaled_by_their_range_not_cut(tmp_path):
    values = np.array([[0, 257, 25700], [32768, 65278, 65535]], np.uint16)
    for suffix in ("png", "tif"):
        Image.fromarray(values).save(tmp_path / f"deep.{suffix}")
        assert pixels(tmp_path / f"deep.{suffix}").tolist() == [[0, 1, 100], [128, 254, 255]]


def test_of_16_bits_only_those_in_use_are_scaled(tmp_path):
    Image.fromarray(np.array([[0, 2048, 4095, 65535]], np.uint16)).save(tmp_path / "deep.png")
    assert np.asarray(read_image(tmp_path / "deep.png", 12)).tolist() == [[0, 128, 255, 255]]


def test_floating_point_files_are_stretched(tmp_path):
    Image.fromarray(np.array([[-1.0, 0.0, 1.0]], np.float32)).save(tmp_path / "f.tif")
    assert pixels(tmp_path / "f.tif").tolist() == [[0, 128, 255]]


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.fromarray(np.array([[0, 65535]], np.uint16)), [0, 255]),
        (Image.fromarray(np.array([[-1.0, 3.0]], np.float32)), [0, 255]),
        (Image.fromarray(np.array([[np.nan, 3.0, np.inf, 1.0]], np.float32)), [0, 255, 255, 0]),
        (Image.new("RGBA", (1, 1), (255, 0, 0, 0)), [[255] * 3]),
        (Image.new("L", (1, 1), 7), [7]),
        (Image.new("CMYK", (1, 1), (0, 0, 0, 255)), [[0] * 3]),
    ],
)
def test_every_mode_becomes_grey_or_rgb(image, expected):
    assert np.asarray(eight_bit(image)).tolist() == [expected]


def test_cmyk_becomes_rgb(tmp_path):
    Image.new("CMYK", (4, 4), (0, 255, 255, 0)).save(tmp_path / "a.tif")
    assert pixels(tmp_path / "a.tif")[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize(
    ("orientation", "turned"), [(6, np.rot90(RAMP, -1)), (8, np.rot90(RAMP)), (3, RAMP[::-1, ::-1])]
)
def test_exif_orientation_is_applied(tmp_path, orientation, turned):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(RAMP).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(pixels(tmp_path / "a.png"), turned)


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tif"])
def test_the_first_picture_of_several_is_read(tmp_path, suffix):
    first, second = Image.new("RGB", (4, 4), (255, 0, 0)), Image.new("RGB", (4, 4), (0, 0, 255))
    first.save(tmp_path / f"a.{suffix}", save_all=True, append_images=[second], lossless=True)
    assert pixels(tmp_path / f"a.{suffix}")[0, 0].tolist() == [255, 0, 0]


def test_one_pixel(tmp_path):
    Image.new("RGB", (1, 1), (1, 2, 3)).save(tmp_path / "a.png")
    assert pixels(tmp_path / "a.png").tolist() == [[[1, 2, 3]]]


# --- what is refused ---


def torn():
    """Return the first part of an image."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()[:2000]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("gone.png", None, "no such file"),
        ("empty.png", b"", "the file is empty"),
        ("text.png", b"hello", "not an image"),
        ("cut.png", torn(), "cannot be read as an image"),
        ("script.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 2 2\nshowpage\n%%EOF\n", "not an image"),
    ],
)
def test_what_is_no_image_is_named_in_one_line(tmp_path, name, content, said):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ImageError, match=said) as error:
        read_image(tmp_path / name)
    assert str(error.value).startswith(str(tmp_path / name))
    assert "\n" not in str(error.value)


def test_a_folder_is_no_image(tmp_path):
    with pytest.raises(ImageError, match="folder"):
        read_image(tmp_path)


def test_an_image_without_a_finite_value_is_refused(tmp_path):
    Image.fromarray(np.full((2, 2), np.nan, np.float32)).save(tmp_path / "nan.tif")
    with pytest.raises(ImageError, match=r"nan\.tif: cannot be read as an image \(no finite value\)"):
        read_image(tmp_path / "nan.tif")


def test_what_goes_wrong_while_an_open_image_is_used_names_its_file(tmp_path):
    Image.fromarray(RAMP).save(tmp_path / "a.png")
    with pytest.raises(ImageError, match=r"a\.png: cannot be read as an image \(two lines\)"):  # noqa: SIM117
        with opened(tmp_path / "a.png"):
            raise ValueError("two\nlines")


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
    assert pixels(tmp_path / "a.png").shape == (6, 8)
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
            assert read_image(damaged).mode in ("L", "RGB")
        except ImageError as error:
            refused += 1
            assert damaged.name in str(error)
            assert "\n" not in str(error)
    assert refused


# --- files ---


def test_headers_are_checked_and_the_first_bad_file_is_named(tmp_path):
    good, bad = tmp_path / "good.png", [tmp_path / f"bad-{number}.png" for number in range(3)]
    Image.fromarray(RAMP).save(good)
    for path in bad:
        path.write_bytes(b"hello")
    check_files([good, good])
    with pytest.raises(ImageError, match=r"bad-1\.png: not an image that can be read$"):
        check_files([good, bad[1]])
    with pytest.raises(ImageError, match=r"bad-0\.png: not an image that can be read \(and 2 other files\)$"):
        check_files([good, *bad])


def test_files_are_told_by_their_names_and_a_link_to_nothing_is_one(tmp_path):
    (tmp_path / "more" / "folder.png").mkdir(parents=True)
    for name in ("b.PNG", "a.ppm", "more/c.jpeg", ".hidden.png", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "link.png").symlink_to(tmp_path / "nothing.png")
    assert image_files(tmp_path) == [tmp_path / name for name in ("a.ppm", "b.PNG", "link.png", "more/c.jpeg")]
