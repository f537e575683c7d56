"""Data as people have it: published layouts, masks beside or below, nested folders, and what is missing."""

import numpy as np
import pytest
from PIL import Image

from clipsam.commands.options import EvalConfig
from clipsam.data.folders import load_folder
from clipsam.data.sources import open_data, training_data
from clipsam.samples import GOOD, UNKNOWN
from frugal_shared.errors import UsageError

SIZE = (6, 9)
MASK = np.zeros(SIZE, np.uint8)
MASK[1:3, 4:6] = 255
BLACK = np.zeros(SIZE, np.uint8)


def save(path, pixels=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*SIZE, 3), 90, np.uint8) if pixels is None else pixels).save(path)
    return path


def seen(data):
    """Of every image its category, defect and name, and how many of its pixels are defective (None: not known)."""
    rows = [(entry, data[index]) for index, entry in enumerate(data.entries)]
    return {(e.category, e.defect, s.source.split("/")[-1]): int(s.mask.sum()) if e.has_mask else None for e, s in rows}


def test_good_defective_and_mask_folders(tmp_path):
    root = tmp_path / "parts"
    for name in ("a", "b"):
        save(root / "good" / f"{name}.png")
        save(root / "defective" / f"{name}.png")
    save(root / "mask" / "a.png", MASK)
    assert seen(load_folder(root)) == {
        ("parts", GOOD, "a.png"): 0,
        ("parts", GOOD, "b.png"): 0,
        ("parts", "defective", "a.png"): 4,
        ("parts", "defective", "b.png"): None,
    }


def test_masks_of_two_kinds_with_one_name(tmp_path):
    root = tmp_path / "parts"
    for kind, mask in (("dent", MASK), ("scratch", BLACK + 255)):
        save(root / kind / "0.jpg")
        save(root / "Masks" / kind / "0_mask.PNG", mask)
    save(root / "ok" / "0.jpg")
    found = seen(load_folder(root))
    assert found == {("parts", "dent", "0.jpg"): 4, ("parts", "scratch", "0.jpg"): 54, ("parts", GOOD, "0.jpg"): 0}


def test_nested_folders_are_listed_and_name_categories(tmp_path):
    root = tmp_path / "plant"
    save(root / "line 1" / "good" / "monday" / "a.png")
    save(root / "line 1" / "bad" / "dent" / "b.png")
    save(root / "line 2" / "2024" / "OK" / "c.png")
    save(root / "line 2" / "2024" / "ng" / "d.png")
    save(root / "line 3" / "scratch" / "e.png")
    assert set(seen(load_folder(root))) == {
        ("line 1", GOOD, "a.png"),
        ("line 1", "dent", "b.png"),
        ("line 2/2024", GOOD, "c.png"),
        ("line 2/2024", "ng", "d.png"),
        ("line 3", "scratch", "e.png"),
    }


@pytest.mark.parametrize("name", ["0_mask.PNG", "0.PNG", "0_GT.png", "0_label.bmp", "0_mask.JPG"])
def test_masks_named_in_any_case_are_found(tmp_path, name):
    root = tmp_path / "set"
    save(root / "bolt" / "test" / "good" / "1.png")
    save(root / "bolt" / "test" / "bent" / "0.PNG")
    big = np.kron(MASK, np.ones((16, 16), np.uint8))  # so that a JPEG's blocks hold it
    save(root / "bolt" / "test" / "bent" / "0.PNG", np.zeros((*big.shape, 3), np.uint8))
    save(root / "bolt" / "ground_truth" / "bent" / name, big)
    assert seen(load_folder(root))["bolt", "bent", "0.PNG"] == 4 * 256


def test_a_tree_without_ground_truth_has_image_figures_only(tmp_path):
    root = tmp_path / "set"
    for kind in ("good", "bent"):
        save(root / "bolt" / "test" / kind / "0.png")
    assert seen(load_folder(root)) == {("bolt", GOOD, "0.png"): 0, ("bolt", "bent", "0.png"): None}


def test_a_set_without_normal_images_can_be_evaluated(tmp_path):
    save(tmp_path / "skin" / "lesion" / "0.png")
    save(tmp_path / "skin" / "masks" / "0.png", MASK)
    assert seen(open_data(str(tmp_path / "skin"), 1, 0)) == {("skin", "lesion", "0.png"): 4}


def test_mvtec_loco(tmp_path):
    bag = tmp_path / "loco" / "breakfast_box"
    for split in ("train", "validation", "test"):
        save(bag / split / "good" / "000.png")
    save(bag / "test" / "logical_anomalies" / "000.png")
    save(bag / "ground_truth" / "logical_anomalies" / "000" / "000.png", MASK - (MASK > 0))  # 254: its own number
    save(bag / "ground_truth" / "logical_anomalies" / "000" / "001.png", np.roll(MASK, 2, 0))
    assert seen(load_folder(tmp_path / "loco")) == {
        ("breakfast_box", GOOD, "000.png"): 0,
        ("breakfast_box", "logical_anomalies", "000.png"): 8,
    }


def test_mvtec_ad2(tmp_path):
    can = tmp_path / "ad2" / "can"
    save(can / "train" / "good" / "000_regular.png")
    for split in ("test_private", "test_private_mixed"):
        save(can / split / "000_regular.png")
    save(can / "test_public" / "good" / "000_regular.png")
    save(can / "test_public" / "bad" / "001_overexposed.png")
    save(can / "test_public" / "ground_truth" / "bad" / "001_overexposed_mask.png", MASK)
    found = {("can", GOOD, "000_regular.png"): 0, ("can", "bad", "001_overexposed.png"): 4}
    assert seen(load_folder(tmp_path / "ad2")) == seen(load_folder(can)) == found
    assert set(seen(load_folder(can, "train"))) == {("can", GOOD, "000_regular.png")}


def test_kolektor_sdd2(tmp_path):
    root = tmp_path / "KolektorSDD2"
    for split in ("train", "test"):
        for name, mask in (("20000", BLACK), ("20001", MASK)):
            save(root / split / f"{name}.png")
            save(root / split / f"{name}_GT.png", mask)
    for split in ("train", "test"):
        found = seen(load_folder(root, split, category="metal surface"))
        assert found == {("metal surface", GOOD, "20000.png"): 0, ("metal surface", "defect", "20001.png"): 4}


def test_magnetic_tiles(tmp_path):
    for kind, mask in (("MT_Free", BLACK), ("MT_Blowhole", MASK)):
        save(tmp_path / "tiles" / kind / "Imgs" / "exp1_num_1.jpg")
        save(tmp_path / "tiles" / kind / "Imgs" / "exp1_num_1.png", mask)
    assert seen(load_folder(tmp_path / "tiles")) == {
        ("magnetic tile", GOOD, "exp1_num_1.jpg"): 0,
        ("magnetic tile", "blowhole", "exp1_num_1.jpg"): 4,
    }
    with pytest.raises(ValueError, match="magnetic tiles have no split='train'"):
        load_folder(tmp_path / "tiles", "train")


def test_a_folder_of_masks_elsewhere(tmp_path):
    for name in ("a", "b", "c"):
        save(tmp_path / "photos" / f"{name}.jpg")
    save(tmp_path / "elsewhere" / "deep" / "A_mask.png", MASK)
    save(tmp_path / "elsewhere" / "b.png", BLACK)
    found = seen(load_folder(tmp_path / "photos", mask_dir=tmp_path / "elsewhere", category="nut"))
    assert found == {("nut", "defect", "a.jpg"): 4, ("nut", GOOD, "b.jpg"): 0, ("nut", UNKNOWN, "c.jpg"): None}
    with pytest.raises(ValueError, match=r"mask_dir=.*gone' is no folder; allowed"):
        load_folder(tmp_path / "photos", mask_dir=tmp_path / "gone")
    with pytest.raises(ValueError, match="has no mask of an image in"):
        load_folder(tmp_path / "elsewhere" / "deep", mask_dir=tmp_path / "photos")


def test_masks_elsewhere_are_of_one_folder(tmp_path):
    reading = EvalConfig(mask_dir=tmp_path, bits=12, category="nut").reading
    assert reading == {"mask_dir": tmp_path, "bits": 12, "category": "nut"}
    with pytest.raises(UsageError, match="with 0 data folders; allowed: one"):
        training_data(("photographs",), 4, 4, 0, reading)
    for wrong in ({"category": " "}, {"bits": 7}):
        with pytest.raises(UsageError, match="allowed"):
            EvalConfig(**wrong)


def test_deep_images_of_a_set_are_read_alike(tmp_path):
    for name, white in (("a", 4095), ("b", 300)):
        values = np.full(SIZE, 100, np.uint16)
        values[0, 0] = white
        save(tmp_path / "deep" / f"{name}.png", values)
    data = load_folder(tmp_path / "deep")
    assert data.depth == 12 and data[0].image.max() == 255 and data[1].image.max() == 19
    assert load_folder(tmp_path / "deep", bits=16)[0].image.max() == 16


def test_defective_images_are_trained_on_and_validated_on(tmp_path):
    root = tmp_path / "few" / "bolt"
    for number in range(7):
        save(root / "test" / "good" / f"{number}.png")
    for number in range(2):
        save(root / "test" / "bent" / f"{number}.png")
        save(root / "ground_truth" / "bent" / f"{number}_mask.png", MASK)
    for part in training_data((str(tmp_path / "few"),), 0, 320, 0):
        assert {entry.is_anomalous for entry in part.entries} == {True, False}
    (root / "test" / "bent" / "1.png").unlink()
    with pytest.raises(UsageError, match="data='few' has 1 defective images with masks; allowed: 2 or more"):
        training_data((str(tmp_path / "few"),), 0, 320, 0)
