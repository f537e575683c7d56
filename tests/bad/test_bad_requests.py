"""The paragraphs "Bad input" of all packages, asked on their command lines: one line each, and nothing is left."""

import numpy as np
import pytest
import timm
from PIL import Image
from safetensors.torch import save_file

from bdp_nas.spaces.nasbench201 import index_to_genotype
from delta_dit.schedules import generic

TINY = ("--channels", 4, "--cells", 1, "--epochs", 2, "--samples", 60)


def pictures(*folders, side=32):
    for folder in folders:
        folder.mkdir(parents=True)
        for number in range(4):
            pixels = np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")


@pytest.fixture
def asked(desk, tmp_path):
    """Ask a package for each of some things that cannot be had; what follows the options has to be named."""

    def ask(package, *requests):
        for *argv, named in requests:
            out = ("--cpu", "--output-dir", tmp_path / "out")
            desk.refused(" ".join(map(str, argv)), package, *argv, *out, named=named)

    return ask


def test_delta_dit(asked, tmp_path):
    generic(4, 12, 1.6).save(tmp_path / "4.json")
    generic(20, 28, 1.6).save(tmp_path / "28.json")
    pictures(tmp_path / "model")
    asked(
        "delta-dit",
        ("generate", "--plan", tmp_path / "4.json", "--steps", 7, "4 steps"),
        ("generate", "--plan", tmp_path / "28.json", "28 blocks"),
        ("generate", "--plan", tmp_path / "nothing.json", "nothing.json"),
        ("generate", "--model", tmp_path / "model", "model"),
        ("generate", "--labels", -1, "-1"),
        ("generate", "--prompts", tmp_path / "4.json", "4.json"),
        ("bench", "--plan", tmp_path / "28.json", "28 blocks"),
        ("bench", "--weights", tmp_path, tmp_path),
        ("train-demo-lcm", "--teacher", tmp_path / "model", "model"),
    )


def test_clipsam(asked, tmp_path):
    pictures(tmp_path / "only-bad" / "thing" / "test" / "crack", tmp_path / "empty" / "thing" / "test" / "good")
    for path in (tmp_path / "empty" / "thing" / "test" / "good").iterdir():
        path.unlink()
    image = tmp_path / "only-bad" / "thing" / "test" / "crack" / "0.png"
    asked(
        "clipsam",
        ("segment", "images=()"),
        ("segment", image, "--category", " ", "category=' '"),
        ("segment", image, "--checkpoint", tmp_path, "config.json"),
        ("segment", image, "--clip", "no-such-clip", "--checkpoint", "none", "no-such-clip"),
        ("segment", image, "--sam", tmp_path / "nothing.pth", "nothing.pth"),
        ("refine", image, "--maps", "0 maps for 1 images"),
        ("eval", "--data", "no-such-data", "no-such-data"),
        ("eval", "--data", tmp_path / "empty", "empty"),
        ("train", "--data", tmp_path / "only-bad", "0 defective images with masks"),
    )


def test_partial_finetune(asked, tmp_path):
    weights, data = tmp_path / "base.safetensors", tmp_path / "data"
    save_file(timm.create_model("test_vit").state_dict(), weights)
    pictures(data / "a", data / "b", tmp_path / "one" / "a", tmp_path / "gap" / "a", tmp_path / "gap" / "b")
    pictures(tmp_path / "other" / "train" / "a", tmp_path / "other" / "train" / "b", tmp_path / "other" / "test" / "c")
    for path in (tmp_path / "gap" / "b").iterdir():
        path.unlink()
    train = (
        "train",
        "--model",
        "test_vit",
        "--weights",
        weights,
        "--image-size",
        32,
        "--batch-size",
        4,
        "--no-fit-head",
    )
    asked(
        "partial-finetune",
        (*train, "--data", data, "--strategy", "attn[", "column"),
        (*train, "--data", data, "--strategy", "attn[90]", "attn[90]"),
        (*train, "--data", data, "--strategy", "attn & ffn", "nothing"),
        (*train, "--data", data, "--strategy", "no_such_unit", "no_such_unit"),
        (*train, "--data", tmp_path / "one", "1 class"),
        (*train, "--data", tmp_path / "gap", "gap/b"),
        (*train, "--data", tmp_path / "other", "'c'"),
        (*train, "--data", tmp_path / "nothing", "nothing"),
        ("train", "--model", "no_such_model", "--data", data, "no_such_model"),
        ("train", "--model", "test_vit2", "--weights", weights, "--data", data, weights),
        ("eval", data, data),
        ("soup", tmp_path / "nothing", "nothing"),
    )


def test_bdp_nas(asked, tmp_path):
    pictures(tmp_path / "sizes" / "a")
    pictures(tmp_path / "sizes" / "b", side=16)
    (tmp_path / "table.npz").write_bytes(b"")
    asked(
        "bdp-nas",
        ("search", *TINY, "--min-per-class", 1000, "1000"),
        ("search", *TINY, "--data", tmp_path / "sizes", "sizes"),
        ("search", *TINY, "--data", tmp_path / "nothing", "nothing"),
        ("search", *TINY, "--table", tmp_path / "table.npz", "table.npz"),
        ("search", *TINY, "--searcher", "no-such-searcher", "no-such-searcher"),
        ("retrain", "|no_such_operation~0|", *TINY, "no_such_operation"),
        ("retrain", index_to_genotype(7), *TINY, "--space", "darts", "genotype"),
        ("retrain", tmp_path, *TINY, "genotype.json"),
    )
