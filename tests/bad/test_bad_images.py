"""Bad image files: each works, or is told in one line that names it; the others of a batch go on."""

import json
import os
import pickle
import random
import shutil
import struct
import zlib
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from damage import HTML, Hostile
from PIL import Image
from safetensors.torch import save_file

from bdp_nas.commands.data import open_data
from bdp_nas.commands.options import TaskConfig
from bdp_nas.spaces.nasbench201 import index_to_genotype
from clipsam.commands import eval as evaluate
from clipsam.commands import segment
from clipsam.data.images import read_image
from clipsam.embedded import dinov2
from clipsam.pipeline import ClipSAM
from delta_dit.commands.scores import read_pictures
from frugal_shared.images import ImageError
from frugal_shared.timing import peak_memory
from partial_finetune.data.images import open_data as open_finetune_data

SIDE = 24
BOMB = 100_000  # pixels, side of a picture that would take 30 GB
ENOUGH = 128 * 2**20  # bytes that reading all of them may take; a bomb would take 256 MB and more


def noise(channels: int = 3, kind: type = np.uint8, high: int = 256) -> np.ndarray:
    shape = (SIDE, SIDE, channels)[: 3 if channels > 1 else 2]
    return np.random.default_rng(0).integers(0, high, shape).astype(kind)


def encoded(picture: Image.Image, kind: str, **options) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def png(width: int, height: int, *chunks: tuple[bytes, bytes], data: bytes = b"") -> bytes:
    """Return a PNG of grey bytes, from its parts."""
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)), *chunks]
    parts += [(b"IDAT", zlib.compress(data)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        for name, content in parts
    )


def tiff(width: int, height: int) -> bytes:
    """Return an uncompressed grey TIFF that claims so many pixels and has none."""
    entries = [(256, 4, width), (257, 4, height), (258, 3, 8), (259, 3, 1), (262, 3, 1)]
    entries += [(273, 4, 8), (277, 3, 1), (278, 4, height), (279, 4, 2**32 - 1)]
    body = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries)
    return b"II*\x00" + struct.pack("<IH", 8, len(entries)) + body + bytes(4)


def valid() -> dict[str, bytes]:
    """Return odd pictures that are nevertheless whole: name -> content."""
    colour, grey = Image.fromarray(noise()), Image.fromarray(noise(1))
    clear = Image.fromarray(noise(4))
    palette = colour.quantize(16)
    deep, floats = noise(1, np.uint16, 65536), noise(1).astype(np.float32) / 255
    floats[0, 0] = np.nan
    frames = [Image.fromarray(noise(1)).rotate(turn) for turn in (90, 180)]
    nonsense = Image.Exif()
    nonsense[0x0112] = 77  # there are eight ways to turn a picture
    wide = Image.fromarray(np.zeros((1, 3000, 3), np.uint8))
    return {
        "one-pixel.png": encoded(Image.new("RGB", (1, 1)), "PNG"),
        "one-row.png": encoded(wide, "PNG"),
        "animated.gif": encoded(grey, "GIF", save_all=True, append_images=frames),
        "animated.png": encoded(colour, "PNG", save_all=True, append_images=[colour.rotate(90)]),
        "animated.webp": encoded(colour, "WEBP", save_all=True, append_images=[colour.rotate(90)]),
        "stack.tiff": encoded(grey, "TIFF", save_all=True, append_images=frames),
        "cmyk.jpg": encoded(colour.convert("CMYK"), "JPEG"),
        "palette.png": encoded(palette, "PNG", transparency=3),
        "transparent.webp": encoded(clear, "WEBP"),
        "grey-alpha.png": encoded(clear.convert("LA"), "PNG"),
        "one-bit.png": encoded(grey.convert("1"), "PNG"),
        "lab.tiff": encoded(Image.merge("LAB", [grey] * 3), "TIFF"),
        "sixteen-bit.png": encoded(Image.fromarray(deep), "PNG"),
        "sixteen-bit.tiff": encoded(Image.fromarray(deep), "TIFF"),
        "nan.tiff": encoded(Image.fromarray(floats), "TIFF"),
        "turned.jpg": encoded(colour, "JPEG", exif=nonsense),
        "broken-exif.jpg": encoded(colour, "JPEG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff"),
        "broken-icc.jpg": encoded(colour, "JPEG", icc_profile=b"no profile at all" * 5000),
        "broken-icc.png": encoded(colour, "PNG", icc_profile=bytes(2**20)),
        "a-jpeg-named.png": encoded(colour, "JPEG"),
        "a-png-named.bmp": encoded(colour, "PNG"),
        "-leading-dash.png": encoded(colour, "PNG"),
        "naïve 図 \U0001f600.png": encoded(colour, "PNG"),
        "new\nline.png": encoded(colour, "PNG"),
        "escape \x1b[31m.png": encoded(colour, "PNG"),
    }


@cache
def compressed_text() -> bytes:
    """Return 256 MB in 256 kB."""
    return zlib.compress(bytes(2**28), 1)


def invalid(marker: Path) -> dict[str, bytes]:
    """Return files that are no pictures, or bombs, or damaged ones: name -> content."""
    text = compressed_text()
    colour = Image.fromarray(noise())
    whole = {
        "png": encoded(colour, "PNG"),
        "jpg": encoded(colour, "JPEG"),
        "bmp": encoded(colour, "BMP"),
        "tiff": encoded(colour, "TIFF", compression="tiff_lzw"),
        "webp": encoded(colour, "WEBP", lossless=True),
        "gif": encoded(colour, "GIF"),
    }
    cut = {
        f"torn-{share}.{kind}": data[: len(data) * share // 100] for kind, data in whole.items() for share in (3, 50)
    }
    files = {
        "empty.png": b"",
        "text.png": b"just words\n" * 50,
        "page.png": HTML,
        "pickle.png": pickle.dumps(Hostile(marker)),
        "script.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\nshowpage\n%%EOF\n",
        "vector.png": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        "bomb.png": png(BOMB, BOMB),
        "flat-bomb.png": png(2**31 - 1, 1),
        "no-side.png": png(0, 10),
        "bomb.bmp": encoded(colour, "BMP")[:18] + struct.pack("<ii", BOMB, BOMB) + encoded(colour, "BMP")[26:],
        "bomb.gif": encoded(colour, "GIF")[:6] + struct.pack("<HH", 65535, 65535) + encoded(colour, "GIF")[10:],
        "bomb.tiff": tiff(BOMB, BOMB),
        "text-bomb.png": png(4, 4, (b"zTXt", b"comment\0\0" + text), data=bytes(20)),
        "profile-bomb.png": png(4, 4, (b"iCCP", b"profile\0\0" + text), data=bytes(20)),
        "only-nan.tiff": encoded(Image.fromarray(np.full((SIDE, SIDE), np.nan, np.float32)), "TIFF"),
    }
    return files | cut


def fuzzed(count: int) -> dict[str, bytes]:
    """Return pictures with a few random bytes in their first 64."""
    dice, colour = random.Random(0), Image.fromarray(noise())
    files = {}
    for kind in ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF"):
        whole = encoded(colour, kind)
        for number in range(count):
            spoilt = bytearray(whole)
            for place in dice.sample(range(2, 64), 4):
                spoilt[place] = dice.randrange(256)
            files[f"fuzzed-{number}.{kind.lower()}"] = bytes(spoilt)
    return files


ODD = valid()


@pytest.fixture
def pictures(tmp_path):
    """Every file, and what is none: a folder, a link to nothing, a name that is no UTF-8."""
    root = tmp_path / "pictures"
    root.mkdir()
    for name, content in (ODD | invalid(tmp_path / "code-was-run") | fuzzed(2)).items():
        (root / name).write_bytes(content)
    (root / "folder.png").mkdir()
    (root / "link.png").symlink_to(root / "nothing.png")
    (root / os.fsdecode(b"latin-\xe9.png")).write_bytes(b"")
    return root


def in_a_line(path: Path) -> str:
    """Return a file's name as a line on the terminal holds it."""
    visible = "".join(letter if letter.isprintable() else " " for letter in path.name)
    return " ".join(visible.split())


def is_open(name: str) -> bool:
    """Whether a file may be read and may be refused: what a torn or a fuzzed one still holds is up to its decoder."""
    return name.startswith(("torn", "fuzzed"))


def in_a_class(path: Path) -> str:
    """Return a folder of two classes, of which one has this picture."""
    folder = path.parent.parent / "one"
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        for number in range(2):
            (folder / name / f"good-{number}.png").write_bytes(ODD["one-bit.png"])
    (folder / "a" / f"{path.name}.png").symlink_to(path)
    return str(folder)


def as_searched_on(path: Path) -> None:
    """Read a picture as bdp-nas reads those of a folder."""
    open_data(TaskConfig(data=in_a_class(path), image_size=8, val_share=0), 0)


def as_tuned_on(path: Path) -> None:
    """Read a picture as partial-finetune reads those of a folder."""
    for part in open_finetune_data(in_a_class(path)):
        for number in range(len(part)):
            part[number]


def as_real(path: Path) -> None:
    """Read a picture as delta-dit reads real ones."""
    folder = path.parent.parent / "real"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / "good.png").write_bytes(ODD["one-bit.png"])
    (folder / path.with_suffix(".png").name).symlink_to(path)
    read_pictures(folder)


@pytest.mark.parametrize("read", [read_image, as_tuned_on, as_searched_on, as_real])
def test_what_is_odd_is_read_and_what_is_bad_is_named_in_bounded_memory(pictures, read):
    wrong: list[str] = []

    def read_all() -> None:
        for path in sorted(pictures.iterdir()):
            try:
                read(path)
            except ImageError as error:
                if path.stem[:5] not in str(error) or len(str(error).replace(path.stem, "").splitlines()) != 1:
                    wrong.append(f"not named in one line: {error}")
                if path.name in ODD:
                    wrong.append(f"refused: {error}")
            else:
                if path.name not in ODD and not is_open(path.name):
                    wrong.append(f"read: {path.name!r}")

    before = peak_memory(lambda: None)
    after = peak_memory(read_all)
    assert wrong == []
    assert before is None or after is None or after - before < ENOUGH


class Blind(ClipSAM):
    """Sees nothing, at no cost: what is under test comes before and after the networks."""

    def see_at(self, *_):
        return self

    def text_scored(self, images, category):
        return [(np.zeros(image.shape[:2], np.float32), 0.0) for image in images]


@pytest.fixture
def blind(monkeypatch):
    clip = Blind(torch.nn.Identity())
    for module in (segment, evaluate):
        monkeypatch.setattr(module, "open_model", lambda config: clip)


def check_batch(desk, answer, bad: set[str]) -> None:
    """Check that a command named every bad file, on its list and in its one line, and ended with 1."""
    lines = answer.err.splitlines()
    assert (answer.code, len(lines)) == (1, 1), answer.err
    assert lines[0].startswith("clipsam: error: ")
    assert "Traceback" not in answer.err + answer.out
    assert [name for name in bad if name not in answer.err] == []
    assert not desk.marker.exists()


def test_segment_does_the_others(desk, pictures, tmp_path, blind):
    out, paths = tmp_path / "out", sorted(pictures.iterdir())
    answer = desk.ask("clipsam", "segment", *paths, "--cpu", "--output-dir", out)
    desk.cases += len(paths)
    records = {record["image"]: record for record in json.loads((out / "segmentations.json").read_text())}
    failed = {path for path in paths if "error" in records[str(path)]}
    assert {path.name for path in failed} >= {
        path.name for path in paths if path.name not in ODD and not is_open(path.name)
    }
    assert not {path.name for path in failed} & ODD.keys()
    check_batch(desk, answer, {in_a_line(path) for path in failed if path.name.isascii()})
    assert answer.out.count("failed ") == len(failed)
    for path in set(paths) - failed:
        assert all((out / records[str(path)][kind]).stat().st_size for kind in ("map", "mask", "overlay"))


def test_eval_does_the_others(desk, pictures, tmp_path, blind):
    out = tmp_path / "out"
    answer = desk.ask("clipsam", "eval", "--data", pictures, "--cpu", "--output-dir", out)
    desk.cases += len(list(pictures.iterdir()))
    bad = {name for name in invalid(desk.marker) if not is_open(name) and not name.endswith("gif")}
    check_batch(desk, answer, bad)
    assert {"rows.json", "rows.csv", "results.json", "report.html"} <= {path.name for path in out.iterdir()}


def test_maps_that_are_pictures(desk, pictures, tmp_path):
    image, out = pictures / "animated.png", tmp_path / "out"
    taken = {"one-bit.png", "sixteen-bit.png"}
    bad = {path.name for path in pictures.iterdir() if not is_open(path.name)} - ODD.keys()
    maps = [pictures / name for name in sorted(bad | taken | {"cmyk.jpg", "nan.tiff"})]
    answer = desk.ask("clipsam", "refine", *[image] * len(maps), "--maps", *maps, "--cpu", "--output-dir", out)
    desk.cases += len(maps)
    records = json.loads((out / "segmentations.json").read_text())
    told = {path.name: record.get("error", "") for path, record in zip(maps, records)}
    assert [name for name, error in told.items() if error and Path(name).stem not in error] == []
    assert not any(told[name] for name in taken) and told["cmyk.jpg"]
    assert all(told[name] for name in invalid(desk.marker) if not is_open(name))
    assert "nan" in told["nan.tiff"]
    check_batch(desk, answer, set())


BAD = ("empty.png", "page.png", "pickle.png", "bomb.png", "text-bomb.png", "script.png", "torn-3.jpg", "only-nan.tiff")


@pytest.mark.parametrize(
    ("package", "argv"),
    [
        ("clipsam", ("train", "--steps", 1, "--images", 4, "--val-images", 2, "--hidden", 8, "--batch-size", 2)),
        ("partial-finetune", ("train", "--model", "test_vit", "--image-size", 32, "--batch-size", 4)),
        ("bdp-nas", ("search", "--image-size", 8, "--channels", 4, "--cells", 1)),
        ("bdp-nas", ("retrain", index_to_genotype(5), "--image-size", 8, "--channels", 4, "--cells", 1)),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_training_data(desk, tmp_path, monkeypatch, package, argv):
    monkeypatch.setattr(dinov2, "embedded_backbone", cache(dinov2.embedded_backbone))
    weights, data, files = tmp_path / "base.safetensors", tmp_path / "data", ODD | invalid(desk.marker)
    save_file(timm.create_model("test_vit").state_dict(), weights)
    given = ("--weights", weights) if package == "partial-finetune" else ()
    folders = ("test/good", "test/bad", "ground_truth/bad") if package == "clipsam" else ("good", "bad")
    for folder in folders:
        (data / folder).mkdir(parents=True)
        for number in range(6):
            (data / folder / f"{number}.png").write_bytes(ODD["one-bit.png"])
    argv = (package, *argv, *given, "--data", data, "--cpu", "--output-dir", tmp_path / "out")
    for name in BAD[:-1] if package == "clipsam" else BAD:  # headers are read before anything is written
        place = data / folders[0] / name
        place.write_bytes(files[name])
        desk.refused(name, *argv, named=name)
        place.unlink()
