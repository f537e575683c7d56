import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from clipsam.commands.options import TrainConfig
from clipsam.data.derived import Joined, Subset
from clipsam.data.features import compute_features
from clipsam.data.procedural import HELD_OUT_CATEGORIES, Procedural
from clipsam.data.sources import training_data
from frugal_shared.errors import UsageError
from frugal_shared.run import Run

DATA = Procedural(20, size=48, seed=5)


@pytest.fixture
def run(tmp_path):
    with Run(TrainConfig(output_dir=tmp_path / "run", cpu=True), "clipsam") as run:
        yield run


def test_they_are_what_the_tower_says_and_the_masks_lie_on_them(run, tmp_path, backbones):
    features = compute_features(tmp_path, backbones["timm"], DATA, run, "train")
    stages, masks = features.batch([17, 3])
    pixels = torch.stack([backbones["timm"].preprocess(DATA[row].image) for row in (17, 3)])
    for found, expected in zip(stages, backbones["timm"].patches(pixels)):
        torch.testing.assert_close(found, expected, rtol=2e-3, atol=2e-3)  # kept as float16
    assert masks.shape == (2, 32, 32) and set(masks.unique().tolist()) <= {0.0, 1.0}
    assert masks[0].any() == DATA[17].mask.any()


def test_what_is_there_is_not_computed_again(run, tmp_path, backbones, monkeypatch):
    first = compute_features(tmp_path, backbones["timm"], DATA, run, "train")
    tokens = np.array(first.tokens)
    (tmp_path / ".train-16").unlink()  # as if the run had been killed in the second chunk
    seen = []
    patches = backbones["timm"].patches
    monkeypatch.setattr(backbones["timm"], "patches", lambda images: seen.append(len(images)) or patches(images))
    again = compute_features(tmp_path, backbones["timm"], DATA, run, "train")
    assert seen == [4]
    np.testing.assert_array_equal(again.tokens, tokens)


def test_features_of_another_number_format_are_refused(run, tmp_path, backbones):
    backbone = copy.deepcopy(backbones["timm"]).compute_in(torch.bfloat16)
    few = Procedural(2, size=48, seed=5)
    compute_features(tmp_path, backbone, few, run, "half")
    with pytest.raises(UsageError, match="features of another"):
        compute_features(tmp_path, backbones["timm"], few, run, "half")
    compute_features(tmp_path, backbones["timm"], few, run, "old")
    key = json.loads((tmp_path / "old.json").read_text())
    assert key.pop("dtype") == "float32"
    (tmp_path / "old.json").write_text(json.dumps(key))  # as it was written before there was a choice
    compute_features(tmp_path, backbones["timm"], few, run, "old")


@pytest.mark.parametrize("changed", ["data", "tower"])
def test_features_of_something_else_are_refused(run, tmp_path, backbones, changed):
    compute_features(tmp_path, backbones["timm"], DATA, run, "train")
    data = Procedural(20, size=48, seed=6) if changed == "data" else DATA
    backbone = backbones["own"] if changed == "tower" else backbones["timm"]
    with pytest.raises(UsageError, match=f"features of another {changed}"):
        compute_features(tmp_path, backbone, data, run, "train")


def test_training_data_shares_no_image_with_validation_and_no_category_with_the_held_out_half():
    train, val = training_data(("procedural", "photographs"), 40, 8, 0)
    assert (len(train), len(val)) == (40, 8)
    assert not {entry.source for entry in train.entries} & {entry.source for entry in val.entries}
    assert not {entry.category for entry in train.entries} & set(HELD_OUT_CATEGORIES)
    assert train.name == "procedural/train-categories+photographs"
    assert train[35].source == train.entries[35].source  # beyond the first part
    with pytest.raises(IndexError, match="index=40"):
        train[40]


def test_a_folder_holds_images_back_for_validation(tmp_path):
    from PIL import Image

    for kind in ("good", "hole"):
        for folder in (tmp_path / "nut/test" / kind, tmp_path / "nut/ground_truth" / kind):
            folder.mkdir(parents=True)
        for number in range(6):
            Image.new("L", (32, 32)).save(tmp_path / f"nut/test/{kind}/{number}.png")
            Image.new("L", (32, 32)).save(tmp_path / f"nut/ground_truth/{kind}/{number}_mask.png")
    train, val = training_data((str(tmp_path),), 40, 320, 0)
    assert isinstance(train, Joined) and isinstance(train.parts[0], Subset)
    assert (len(train), len(val)) == (9, 3)
    assert {Path(entry.source) for entry in train.entries}.isdisjoint(Path(entry.source) for entry in val.entries)
