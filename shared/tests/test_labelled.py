"""Data by name: the same splits for the same seed, nothing of the test images elsewhere, and one line for bad input."""

import hashlib
import json
import pickle
import struct
import subprocess
import sys
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from frugal_shared.datasets import CELL_GREY
from frugal_shared.errors import RunError, UsageError
from frugal_shared.labelled import CELL_CLASSES, Images, in_proportion, open_data, split_off


def write_images(folder, count, first=0):
    """Write ``count`` grey images that differ from each other."""
    folder.mkdir(parents=True)
    for number in range(first, first + count):
        Image.new("L", (4, 4), number % 256).save(folder / f"{number:03}.png")


def tree(root, counts):
    """Write a folder of images: {"train/cat": 3, ...}."""
    for number, (path, count) in enumerate(counts.items()):
        write_images(root / path, count, 20 * number)
    return str(root)


def files(images):
    return {item.name for item in images.items}


def digest(*values):
    return hashlib.sha256(repr(values).encode()).hexdigest()[:8]


def message(name, **options):
    """Return the one line that opening these data fails with."""
    with pytest.raises(UsageError) as error:
        open_data(name, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_naming_a_folder_needs_no_torch(tmp_path):
    name = tree(tmp_path, {"cat": 3, "dog": 3})
    told = (
        f"import sys; from frugal_shared.labelled import open_data; open_data({name!r}); print('torch' in sys.modules)"
    )
    answer = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    assert answer.stdout == "False\n"


# --- choosing and splitting ---


def test_a_choice_has_every_class_in_proportion():
    labels = [0] * 60 + [1] * 30 + [2] * 10
    chosen = in_proportion(labels, 20, 0)
    assert Counter(labels[row] for row in chosen) == {0: 12, 1: 6, 2: 2}
    assert chosen == sorted(set(chosen))


def test_a_choice_is_as_close_to_the_proportions_as_whole_images_can_be():
    labels = [0] * 60 + [1] * 30 + [2] * 9 + [3]
    for count in (4, 10, 50):
        found = np.bincount(np.array(labels)[in_proportion(labels, count, 3)], minlength=4)
        assert found.sum() == count
        assert found.min() >= 1
        assert abs(found - count * np.array([0.6, 0.3, 0.09, 0.01])).max() <= 1.5


def test_a_rare_class_is_not_forgotten():
    assert len({([0] * 98 + [1, 2])[row] for row in in_proportion([0] * 98 + [1, 2], 3, 0)}) == 3


def test_a_smaller_choice_is_part_of_a_larger_one():
    labels = np.random.default_rng(0).integers(0, 5, 200).tolist()
    choices = [set(in_proportion(labels, count, 3)) for count in (5, 20, 90, 200)]
    assert all(small < large for small, large in pairwise(choices))
    assert choices[-1] == set(in_proportion(labels, 999, 3)) == set(range(200))


def test_another_seed_chooses_others():
    assert in_proportion([0, 1] * 50, 20, 0) != in_proportion([0, 1] * 50, 20, 1)


def test_a_seed_chooses_the_rows_that_published_results_were_measured_on():
    labels = np.random.default_rng(0).integers(0, 7, 500)
    chosen = [digest(in_proportion(labels, count, count)) for count in (7, 123, 400)]
    assert chosen == ["391f1919", "51cb6e2b", "c92fe393"]


@pytest.mark.parametrize("least", [0, 1])
def test_a_split_leaves_one_of_each_class_to_train_on(least):
    images = Images("a", ("x", "y"), (0,) * 9 + (1,), range(10), Image.fromarray)
    for seed in range(20):
        part, rest = split_off(images, 0.8, seed, least=least)
        assert sorted([*part.items, *rest.items]) == list(range(10))
        assert set(rest.labels) == {0, 1}


def test_as_much_of_a_share_is_split_off_as_can_be_spared_or_it_is_told():
    images = Images("a", tuple("wxyz"), (0, 1, 2, 3) * 2, range(8), Image.fromarray)
    part, rest = split_off(images, 0.9, 0)
    assert sorted(rest.labels) == [0, 1, 2, 3]
    assert len(part) == 4
    assert len(split_off(images, 0.01, 0)[0]) == 0
    assert len(split_off(images, 0.01, 0, least=1)[0]) == 1
    with pytest.raises(UsageError, match=r"8 images of 4 classes are too few to split off 0\.9 of them"):
        split_off(images, 0.9, 0, least=1)


# --- by name ---


def test_solar_cells_are_the_sure_ones_of_four_classes():
    splits = open_data("elpv")
    assert [len(images) for images in splits] == [1334, 444, 445]
    assert Counter(splits.test.labels) == {0: 118, 1: 184, 2: 63, 3: 80}
    picture = splits.test.picture(0)
    assert (picture.mode, picture.size) == ("L", (270, 270))
    assert np.median(np.asarray(picture)) == CELL_GREY
    assert splits.test.classes == CELL_CLASSES
    assert not files(splits.train) & files(splits.test)


def test_samples_limit_training_images_alone():
    few, all_of_them = open_data("elpv", samples=40), open_data("elpv")
    assert len(few.train) == 40
    assert Counter(few.train.labels) == {0: 11, 1: 16, 2: 6, 3: 7}
    assert digest([path.name for path in open_data("elpv", samples=40, seed=5).train.items]) == "d9183593"
    assert few.val.items == all_of_them.val.items
    assert few.test.items == all_of_them.test.items


def test_samples_of_other_seeds_differ():
    first, again, other = (open_data("digits", samples=50, seed=seed).train for seed in (0, 0, 1))
    assert all(np.array_equal(a, b) for a, b in zip(first.items, again.items))
    assert not all(np.array_equal(a, b) for a, b in zip(first.items, other.items))


@pytest.mark.parametrize(
    ("name", "classes", "counts", "mode", "side"),
    [("digits", 10, [988, 629, 180], "L", 8), ("textured-digits", 40, [4000, 1000, 1000], "RGB", 32)],
)
def test_drawn_data_have_all_classes(name, classes, counts, mode, side):
    splits = open_data(name)
    assert [len(part) for part in splits] == counts
    assert classes == len(splits.train.classes) == len(set(splits.train.labels))
    assert (splits.train.picture(5).mode, splits.train.picture(5).size) == (mode, (side, side))
    image, label = splits.train[5]
    assert (image.mode, label) == ("RGB", splits.train.labels[5])


@pytest.mark.parametrize("name", ["elpv", "digits", "textured-digits"])
def test_data_can_be_sent_to_workers(name):
    images = open_data(name).test
    copy = pickle.loads(pickle.dumps(images))
    assert np.array_equal(np.asarray(copy[1][0]), np.asarray(images[1][0]))


# --- folders ---


def test_a_folder_of_classes_is_split_in_three(tmp_path):
    splits = open_data(tree(tmp_path / "pets", {"cat": 20, "dog": 20}))
    assert splits.train.classes == ("cat", "dog")
    assert [len(part) for part in splits] == [26, 6, 8]
    assert set.union(*map(files, splits)) == {f"{n:03}.png" for n in range(40)}
    for part in splits:
        assert part.name == "pets"
        assert abs(Counter(part.labels)[0] - len(part) / 2) <= 1
        assert all((int(path.stem) >= 20) == label for path, label in zip(part.items, part.labels))


def test_a_folders_split_follows_from_the_seeds(tmp_path):
    name = tree(tmp_path / "pets", {"cat": 20, "dog": 20})
    first, again, other = (open_data(name, seed=seed) for seed in (1, 1, 2))
    assert first.val.items == again.val.items != other.val.items
    assert first.test.items == other.test.items != open_data(name, test_seed=1).test.items


def test_a_folder_is_split_as_for_published_results(tmp_path):
    name = tree(tmp_path / "pets", {"cat": 20, "dog": 13})
    options = [
        {"seed": 3, "test_seed": 3, "least": 1},
        {"seed": 3, "samples": 9, "val_share": 0.1},
        {"val_share": 0.35, "test_share": 0.35, "least": 1},
    ]
    splits = [digest(*map(sorted, map(files, open_data(name, **each)))) for each in options]
    assert splits == ["1fea042e", "8fdead01", "141867bc"]


def test_no_image_is_decoded_before_it_is_asked_for(tmp_path):
    name = tree(tmp_path, {"train/cat": 5, "train/dog": 5, "test/cat": 1, "val/cat": 1})
    for path in ("cat/000.png", "dog/020.png"):
        (tmp_path / "train" / path).write_bytes(b"hello")
    images, test = open_data(name).train, open_data(name).test
    test.check()
    with pytest.raises(RunError, match=r"cat/000\.png: not an image that can be read \(and 1 other files\)$"):
        images.check()
    with pytest.raises(RunError, match=r"cat/000\.png: not an image that can be read$"):
        images[0]
    assert images[1][0].size == (4, 4)


def test_splits_on_disk_are_taken_as_they_are(tmp_path):
    counts = {"train/cat": 3, "train/dog": 4, "val/cat": 1, "val/dog": 1, "test/cat": 2, "test/dog": 2}
    splits = open_data(tree(tmp_path, counts))
    assert [Counter(part.labels) for part in splits] == [{0: 3, 1: 4}, {0: 1, 1: 1}, {0: 2, 1: 2}]


def test_validation_images_come_out_of_train_and_never_out_of_test(tmp_path):
    splits = open_data(tree(tmp_path, {"train/cat": 10, "train/dog": 10, "test/cat": 4, "test/dog": 4}))
    assert len(splits.test) == 8
    assert len(splits.val) == 4
    assert all(path.parent.parent.name == "train" for path in splits.val.items)


def test_test_images_come_out_of_train_where_there_are_none(tmp_path):
    splits = open_data(tree(tmp_path, {"train/a": 10, "train/b": 10, "validation/a": 2, "validation/b": 2}))
    assert [len(part) for part in splits] == [16, 4, 4]
    assert not files(splits.train) & files(splits.test)


def test_train_may_be_the_name_of_a_class(tmp_path):
    assert open_data(tree(tmp_path, {"train": 5, "car": 5})).train.classes == ("car", "train")


def test_hidden_files_and_other_files_are_no_images(tmp_path):
    name = tree(tmp_path, {"cat": 5, "dog/more": 5, ".git": 1})
    (tmp_path / "cat" / "._000.png").write_bytes(b"")
    (tmp_path / "cat" / "notes.txt").write_text("x")
    splits = open_data(name)
    assert splits.train.classes == ("cat", "dog")
    assert sum(map(len, splits)) == 10


def test_an_unknown_name_is_told_with_what_is_allowed(tmp_path):
    assert "allowed: digits, textured-digits, elpv, torchvision:NAME:ROOT, a folder" in message(str(tmp_path / "gone"))


def test_no_classes_are_told(tmp_path):
    write_images(tmp_path / "images", 3)
    assert "0 class folders; allowed: 2 or more" in message(str(tmp_path / "images"))
    assert "1 class folders; allowed: 2 or more" in message(str(tmp_path))


@pytest.mark.parametrize("empty", ["train/fox", "test/cat"])
def test_an_empty_class_is_named(tmp_path, empty):
    name = tree(tmp_path, {"train/cat": 2, "train/dog": 2, "test/dog": 2})
    (tmp_path / empty).mkdir()
    assert message(name).startswith(f"{tmp_path / empty}: no images in this class folder")


def test_a_class_that_train_lacks_is_named(tmp_path):
    name = tree(tmp_path, {"train/cat": 5, "train/dog": 5, "test/cow": 2})
    assert "test/cow: the training images have no class 'cow'" in message(name)


def test_too_few_images_are_told(tmp_path):
    name = tree(tmp_path, {"cat": 1, "dog": 1})
    assert "2 images of 2 classes are too few" in message(name, least=1)
    assert "samples=3 is too few; allowed: 4, one per class, or more" in message("elpv", samples=3)


# --- torchvision ---


def write_mnist(root, train, test):
    """Write MNIST's four files with images that all are 7, of classes 0 … 9 in turn."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for prefix, count in (("train", train), ("t10k", test)):
        images = struct.pack(">IIII", 2051, count, 28, 28) + bytes([7]) * (count * 28 * 28)
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(images)
        labels = struct.pack(">II", 2049, count) + bytes(number % 10 for number in range(count))
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(labels)


def test_torchvision_data_with_a_train_flag_are_read(tmp_path):
    write_mnist(tmp_path, 50, 20)
    splits = open_data(f"torchvision:MNIST:{tmp_path}")
    assert [len(part) for part in splits] == [40, 10, 20]
    assert splits.train.classes[3] == "3 - three"
    assert splits.test.labels[:3] == (0, 1, 2)
    assert splits.test[0][0].getpixel((0, 0)) == (7, 7, 7)
    assert splits.test.picture(0).mode == "L"
    assert pickle.loads(pickle.dumps(splits.val))[0][1] == splits.val.labels[0]


def test_torchvision_data_with_named_splits_are_read(tmp_path):
    root = tmp_path / "food-101"
    tree(root / "images", {"apple": 8, "bread": 8})
    for path in root.glob("images/*/*.png"):
        Image.open(path).save(path.with_suffix(".jpg"))
    (root / "meta").mkdir()
    lists = {
        name: [f"{name}/{path.stem}" for path in sorted((root / "images" / name).glob("*.png"))]
        for name in ("apple", "bread")
    }
    for split, part in (("train", slice(0, 6)), ("test", slice(6, 8))):
        (root / "meta" / f"{split}.json").write_text(json.dumps({name: paths[part] for name, paths in lists.items()}))
    splits = open_data(f"torchvision:Food101:{tmp_path}")
    assert [len(part) for part in splits] == [10, 2, 4]
    assert splits.test[0][0].mode == "RGB"


def test_torchvision_data_in_one_piece_are_split(tmp_path):
    tree(tmp_path / "eurosat" / "2750", {"Forest": 10, "River": 10})
    assert [len(part) for part in open_data(f"torchvision:EuroSAT:{tmp_path}")] == [13, 3, 4]


class Unlisted:
    """A data set that keeps its labels where nobody knows."""

    labelled_with = staticmethod(lambda row: row % 3)

    def __init__(self, root, split):
        self.count = {"train": 30, "val": 6, "test": 9}[split]

    def __len__(self):
        return self.count

    def __getitem__(self, row):
        if row >= self.count:
            raise IndexError(row)
        return Image.new("L", (4, 4), row), self.labelled_with(row)


def test_labels_that_are_kept_nowhere_are_read_with_their_images(monkeypatch):
    monkeypatch.setattr("torchvision.datasets.PCAM", Unlisted)
    splits = open_data("torchvision:PCAM:x")
    assert [len(part) for part in splits] == [30, 6, 9]
    assert splits.train.classes == ("0", "1", "2")
    assert splits.val.labels == (0, 1, 2) * 2


@pytest.mark.parametrize("label", [{"boxes": []}, 0.5, "cat"])
def test_data_without_one_class_per_image_are_refused(monkeypatch, label):
    monkeypatch.setattr("torchvision.datasets.PCAM", Unlisted)
    monkeypatch.setattr(Unlisted, "labelled_with", staticmethod(lambda _: label))
    assert "torchvision's PCAM does not have one class per image; allowed:" in message("torchvision:PCAM:x")


def test_absent_torchvision_data_are_told_and_not_downloaded(tmp_path):
    said = message(f"torchvision:CIFAR100:{tmp_path}")
    assert said == f"{tmp_path}: no CIFAR100 of torchvision (Dataset not found or corrupted); nothing is downloaded"


@pytest.mark.parametrize("name", ["torchvision:CIFAR100", "torchvision:Cifar:/x", "torchvision::"])
def test_a_name_that_torchvision_lacks_is_told(name):
    assert "allowed: torchvision:NAME:ROOT, NAME of torchvision.datasets" in message(name)
