"""The images that models are tuned on: one seed and one share for all splits, RGB, and none is decoded twice."""

import pickle

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from frugal_shared.datasets import CELL_GREY
from frugal_shared.errors import UsageError
from partial_finetune.data.images import open_data


def pets(root):
    """Write a folder of images: 20 cats and 20 dogs."""
    for number in range(40):
        path = root / "pets" / ("cat" if number < 20 else "dog") / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), number).save(path)
    return str(root / "pets")


def files(images):
    return {item.name for item in images.items}


def _first(batch):
    return batch[0]


def test_solar_cells_are_rgb_and_in_one_exposure():
    image, label = open_data("elpv").test[0]
    assert (image.mode, image.size) == ("RGB", (270, 270))
    assert np.median(np.asarray(image)) == CELL_GREY
    assert label in range(4)


def test_a_solar_cell_is_decoded_once(monkeypatch):
    images = open_data("elpv").val
    first = np.asarray(images[0][0])
    monkeypatch.setattr(Image, "open", None)
    assert np.array_equal(np.asarray(images[0][0]), first)


@pytest.mark.parametrize(
    ("name", "classes", "counts"), [("digits", 10, (988, 629, 180)), ("textured-digits", 40, None)]
)
def test_drawn_data_are_rgb_and_have_all_classes(name, classes, counts):
    splits = open_data(name)
    image, label = splits.train[5]
    assert (image.mode, image.size) == ("RGB", (32, 32))
    assert 0 <= label < classes == len(splits.train.classes) == len(set(splits.train.labels))
    assert counts is None or counts == tuple(len(part) for part in (splits.train, splits.val, splits.test))


def test_samples_limit_training_images_alone():
    few, all_of_them = open_data("elpv", samples=40), open_data("elpv")
    assert len(few.train) == 40
    assert few.val.items == all_of_them.val.items
    assert few.test.items == all_of_them.test.items


@pytest.mark.parametrize("name", ["elpv", "digits", "textured-digits"])
def test_data_can_be_sent_to_workers(name):
    images = open_data(name).test
    copy = pickle.loads(pickle.dumps(images))
    assert np.array_equal(np.asarray(copy[1][0]), np.asarray(images[1][0]))


def test_workers_load_what_the_main_process_would():
    images = open_data("digits").test.limited(10)
    loaded = list(DataLoader(images, batch_size=1, num_workers=1, collate_fn=_first))
    assert [label for _, label in loaded] == list(images.labels)
    assert all(np.array_equal(np.asarray(a), np.asarray(b)) for (a, _), (b, _) in zip(loaded, images))


def test_a_folders_split_follows_from_one_seed_and_one_share(tmp_path):
    name = pets(tmp_path)
    first, again, other = (open_data(name, seed=seed) for seed in (1, 1, 2))
    assert [len(part) for part in first] == [26, 6, 8]
    assert first.val.items == again.val.items != other.val.items
    assert first.test.items == again.test.items != other.test.items
    assert set.union(*map(files, first)) == {f"{number:03}.png" for number in range(40)}
    assert [len(part) for part in open_data(name, val_share=0.5)] == [10, 10, 20]


def test_too_few_images_to_validate_are_told(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        Image.new("L", (4, 4)).save(tmp_path / name / "0.png")
    with pytest.raises(UsageError, match="2 images of 2 classes are too few to split off"):
        open_data(str(tmp_path))
