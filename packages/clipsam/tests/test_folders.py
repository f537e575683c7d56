"""Data sets on disk: each layout is read alike, and each mistake is told in one line."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from clipsam.data.folders import load_folder
from clipsam.samples import GOOD, UNKNOWN
from frugal_shared.images import ImageError

SIZE = (6, 9)  # height, width
MASK = np.zeros(SIZE, np.uint8)
MASK[1:3, 4:6], MASK[4, 8] = 1, 2


def _save(path, pixels=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*SIZE, 3), 90, np.uint8) if pixels is None else pixels).save(path)
    return path


@pytest.fixture
def mvtec(tmp_path):
    root = tmp_path / "mvtec"
    for category in ("bottle", "metal_nut"):
        _save(root / category / "train" / "good" / "000.png")
        _save(root / category / "test" / "good" / "000.png")
        for index in range(2):
            _save(root / category / "test" / "broken_large" / f"00{index}.png")
            _save(root / category / "ground_truth" / "broken_large" / f"00{index}_mask.png", MASK * 100)
    (root / "bottle" / "license.txt").write_text("text")
    (root / "bottle" / "test" / "good" / "._000.png").write_text("macOS litter")
    return root


@pytest.fixture
def visa(tmp_path):
    root = tmp_path / "VisA"
    data = root / "candle" / "Data"
    for index in range(20):
        _save(data / "Images" / "Normal" / f"{index:04}.JPG")
    for index in range(3):
        _save(data / "Images" / "Anomaly" / f"{index:03}.JPG")
        _save(data / "Masks" / "Anomaly" / f"{index:03}.png", MASK)
    return root


@pytest.fixture
def visa_table(visa):
    lines = [("candle", "train", "normal", "candle/Data/Images/Normal/0000.JPG", "")]
    lines += [("candle", "test", "normal", "candle/Data/Images/Normal/0001.JPG", "")]
    lines += [("candle", "test", "anomaly", "candle/Data/Images/Anomaly/000.JPG", "candle/Data/Masks/Anomaly/000.png")]
    table = visa / "split_csv" / "1cls.csv"
    table.parent.mkdir()
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([("object", "split", "label", "image", "mask"), *lines])
    return visa


def _counts(data):
    return {
        defect: sum(entry.defect == defect for entry in data.entries)
        for defect in sorted({e.defect for e in data.entries})
    }


def test_mvtec_tree(mvtec):
    data = load_folder(mvtec)
    assert data.name == "mvtec"
    assert data.categories == ("bottle", "metal_nut")
    assert _counts(data) == {"broken_large": 4, GOOD: 2}
    for index, entry in enumerate(data.entries):
        sample = data[index]
        assert (sample.category, sample.defect, sample.source) == (entry.category, entry.defect, entry.source)
        assert entry.has_mask
        assert np.array_equal(sample.mask, (MASK > 0) & sample.is_anomalous)
    assert _counts(load_folder(mvtec, "train")) == {GOOD: 2}


def test_one_category_by_name_or_by_its_own_folder(mvtec):
    by_name, by_folder = load_folder(mvtec, categories=["metal_nut"]), load_folder(mvtec / "metal_nut")
    assert by_name.rows == by_folder.rows
    assert by_folder.categories == ("metal_nut",)


def test_masks_named_like_the_image_are_found(mvtec):
    masks = mvtec / "bottle" / "ground_truth" / "broken_large"
    (masks / "000_mask.png").unlink()
    _save(masks / "000.bmp", MASK)
    data = load_folder(mvtec, categories=["bottle"])
    assert all(sample.mask.any() == sample.is_anomalous for sample in (data[i] for i in range(len(data))))


def test_raw_visa_has_a_documented_split(visa):
    train, test = load_folder(visa, "train"), load_folder(visa)
    assert _counts(train) == {GOOD: 18}
    assert _counts(test) == {"anomaly": 3, GOOD: 2}
    assert not {entry.source for entry in train.entries} & {entry.source for entry in test.entries}
    assert np.array_equal(test[2].mask, MASK > 0)


def test_the_table_of_visa_rules_over_its_folders(visa_table):
    for path in (visa_table, visa_table / "split_csv" / "1cls.csv"):
        data = load_folder(path)
        assert data.name == "VisA"
        assert _counts(data) == {"anomaly": 1, GOOD: 1}
        assert not data[0].mask.any()
        assert np.array_equal(data[1].mask, MASK > 0)
    assert _counts(load_folder(visa_table, "train")) == {GOOD: 1}


def test_meta_json(mvtec):
    items = [
        {
            "img_path": "bottle/test/good/000.png",
            "mask_path": "",
            "cls_name": "bottle",
            "specie_name": "good",
            "anomaly": 0,
        },
        {
            "img_path": "bottle/test/broken_large/000.png",
            "mask_path": "bottle/ground_truth/broken_large/000_mask.png",
            "cls_name": "bottle",
            "specie_name": "broken_large",
            "anomaly": 1,
        },
        {
            "img_path": "bottle/test/broken_large/001.png",
            "mask_path": "",
            "cls_name": "bottle",
            "specie_name": "",
            "anomaly": 1,
        },
    ]
    (mvtec / "meta.json").write_text(json.dumps({"train": {}, "test": {"bottle": items}}))
    for path in (mvtec, mvtec / "meta.json"):
        data = load_folder(path)
        assert [entry.defect for entry in data.entries] == [GOOD, "broken_large", "defect"]
        assert [entry.has_mask for entry in data.entries] == [True, True, False]
        assert [bool(data[index].mask.any()) for index in range(3)] == [False, True, False]


def test_plain_folder_without_masks(tmp_path):
    _save(tmp_path / "loose" / "b.png")
    _save(tmp_path / "loose" / "a.jpg")
    _save(tmp_path / "loose" / "OK" / "c.png")
    _save(tmp_path / "loose" / "dented" / "d.png")
    data = load_folder(tmp_path / "loose")
    assert [entry.defect for entry in data.entries] == [UNKNOWN, UNKNOWN, GOOD, "dented"]
    assert [entry.has_mask for entry in data.entries] == [False, False, True, False]
    assert [entry.source[-5:] for entry in data.entries] == ["a.jpg", "b.png", "c.png", "d.png"]
    assert not any(data[index].mask.any() for index in range(4))
    with pytest.raises(ValueError, match="plain folder"):
        load_folder(tmp_path / "loose", "train")


def test_images_of_any_mode_and_shape(tmp_path):
    rng = np.random.default_rng(0)
    _save(tmp_path / "wide" / "0.png", rng.integers(0, 256, (4, 20), np.uint8))
    _save(tmp_path / "wide" / "1.png", rng.integers(0, 256, (20, 4, 4), np.uint8))
    _save(tmp_path / "wide" / "2.png", rng.integers(0, 65536, (5, 5)).astype(np.uint16))
    data = load_folder(tmp_path / "wide")
    assert [data[index].image.shape for index in range(3)] == [(4, 20, 3), (20, 4, 3), (5, 5, 3)]
    assert [data[index].mask.shape for index in range(3)] == [(4, 20), (20, 4), (5, 5)]


def test_a_damaged_image_spoils_only_itself(mvtec):
    (mvtec / "bottle" / "test" / "broken_large" / "000.png").write_bytes(b"")
    data = load_folder(mvtec, categories=["bottle"])
    with pytest.raises(ImageError, match=r"broken_large.000\.png: the file is empty"):
        data[0]
    assert data[1].mask.any()


def test_a_missing_mask_and_a_mask_of_another_size_are_named(mvtec):
    masks = mvtec / "bottle" / "ground_truth" / "broken_large"
    (masks / "000_mask.png").unlink()
    _save(masks / "001_mask.png", MASK[:, :5])
    data = load_folder(mvtec, categories=["bottle"])
    with pytest.raises(ImageError, match=r"000_mask\.png: no such file"):
        data[0]
    with pytest.raises(ImageError, match=r"001_mask\.png: the mask is 6x5, but its image is 6x9"):
        data[1]


def test_a_data_set_without_normal_images(mvtec):
    for category in ("bottle", "metal_nut"):
        (mvtec / category / "test" / "good" / "000.png").unlink()
    with pytest.raises(ValueError, match="none of the 4 images of split='test' is normal"):
        load_folder(mvtec)
    assert len(load_folder(mvtec, require_normal=False)) == 4


@pytest.mark.parametrize(
    ("split", "categories", "said"),
    [
        ("val", (), "split='val' is unknown; allowed: train, test"),
        ("test", ("bottle", "screw"), "category='screw' is not in .*; allowed: bottle, metal_nut"),
    ],
)
def test_unknown_split_or_category(mvtec, split, categories, said):
    with pytest.raises(ValueError, match=said):
        load_folder(mvtec, split, categories)


def test_nothing_to_read(tmp_path):
    with pytest.raises(ValueError, match="no such file or folder"):
        load_folder(tmp_path / "gone")
    with pytest.raises(ValueError, match="no data set in it; allowed: MVTec-AD"):
        load_folder(tmp_path)
    with pytest.raises(ValueError, match=r"a\.png: not a data set"):
        load_folder(_save(tmp_path / "a.png"))
    (tmp_path / "empty" / "test" / "good").mkdir(parents=True)
    with pytest.raises(ValueError, match="no images for split='test'"):
        load_folder(tmp_path / "empty")


def test_damaged_tables_are_named(visa_table, mvtec):
    (visa_table / "split_csv" / "1cls.csv").write_text("object,split,image\ncandle,test,a.png\n")
    with pytest.raises(ValueError, match=r"1cls\.csv: label, mask is missing"):
        load_folder(visa_table)
    for content, said in (
        ("{", "not JSON"),
        ("[]", "'test' is missing"),
        ('{"test": {"bottle": [{"anomaly": 0}]}}', "img_path is missing"),
        ('{"test": {"bottle": [3]}}', "img_path, anomaly is missing"),
    ):
        (mvtec / "meta.json").write_text(content)
        with pytest.raises(ValueError, match=f"meta.json: {said}"):
            load_folder(mvtec)
