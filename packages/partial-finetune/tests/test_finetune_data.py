"""Data by name: the same splits for the same seed, nothing of the test images elsewhere, and one line for bad input."""

import json
import pickle
import struct
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from frugal_shared.datasets import CELL_GREY
from frugal_shared.errors import RunError, UsageError
from partial_finetune.data import images as data
from partial_finetune.data.images import Images, check_images, open_data, read_image, split_off, stratified

RAMP = np.arange(6 * 8, dtype=np.uint8).reshape(6, 8) * 5


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


def message(name, **options):
    """Return the one line that opening these data fails with."""
    with pytest.raises(UsageError) as error:
        open_data(name, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def _first(batch):
    return batch[0]


# --- choosing and splitting ---


def test_a_choice_has_every_class_in_proportion():
    labels = [0] * 60 + [1] * 30 + [2] * 10
    chosen = stratified(labels, 20)
    assert Counter(labels[row] for row in chosen) == {0: 12, 1: 6, 2: 2}
    assert chosen == sorted(set(chosen))


def test_a_rare_class_is_not_forgotten():
    assert len({([0] * 98 + [1, 2])[row] for row in stratified([0] * 98 + [1, 2], 3)}) == 3


def test_a_smaller_choice_is_part_of_a_larger_one():
    labels = np.random.default_rng(0).integers(0, 5, 200).tolist()
    choices = [set(stratified(labels, count, seed=3)) for count in (5, 20, 90, 200)]
    assert all(small < large for small, large in pairwise(choices))
    assert choices[-1] == set(range(200))


def test_another_seed_chooses_others():
    assert stratified([0, 1] * 50, 20, seed=0) != stratified([0, 1] * 50, 20, seed=1)


def test_a_split_leaves_one_of_each_class_to_train_on():
    images = Images("a", ("x", "y"), (0,) * 9 + (1,), range(10), Image.fromarray)
    for seed in range(20):
        part, rest = split_off(images, 0.8, seed)
        assert sorted([*part.items, *rest.items]) == list(range(10))
        assert set(rest.labels) == {0, 1}


# --- by name ---


def test_solar_cells_are_the_sure_ones_of_four_classes():
    splits = open_data("elpv")
    assert [len(images) for images in (splits.train, splits.val, splits.test)] == [1334, 444, 445]
    assert Counter(splits.test.labels) == {0: 118, 1: 184, 2: 63, 3: 80}
    image, label = splits.test[0]
    assert (image.mode, image.size) == ("RGB", (270, 270))
    assert np.median(np.asarray(image)) == CELL_GREY
    assert splits.test.classes[label] in data.CELL_CLASSES
    assert not files(splits.train) & files(splits.test)


def test_a_solar_cell_is_decoded_once(monkeypatch):
    images = open_data("elpv").val
    first = np.asarray(images[0][0])
    monkeypatch.setattr(data.Image, "open", None)
    assert np.array_equal(np.asarray(images[0][0]), first)


def test_samples_limit_training_images_alone():
    few, all_of_them = open_data("elpv", samples=40), open_data("elpv")
    assert len(few.train) == 40
    assert Counter(few.train.labels) == {0: 11, 1: 16, 2: 6, 3: 7}
    assert few.val.items == all_of_them.val.items
    assert few.test.items == all_of_them.test.items


def test_samples_of_other_seeds_differ():
    first, again, other = (open_data("digits", samples=50, seed=seed).train for seed in (0, 0, 1))
    assert all(a is not None and np.array_equal(a, b) for a, b in zip(first.items, again.items))
    assert not all(np.array_equal(a, b) for a, b in zip(first.items, other.items))


@pytest.mark.parametrize(
    ("name", "classes", "counts"), [("digits", 10, (988, 629, 180)), ("textured-digits", 40, None)]
)
def test_drawn_data_are_rgb_and_have_all_classes(name, classes, counts):
    splits = open_data(name)
    image, label = splits.train[5]
    assert (image.mode, image.size) == ("RGB", (32, 32))
    assert 0 <= label < classes == len(splits.train.classes) == len(set(splits.train.labels))
    assert counts is None or counts == tuple(len(part) for part in (splits.train, splits.val, splits.test))


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


# --- folders ---


def test_a_folder_of_classes_is_split_in_three(tmp_path):
    splits = open_data(tree(tmp_path / "pets", {"cat": 20, "dog": 20}))
    assert splits.train.classes == ("cat", "dog")
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [26, 6, 8]
    assert files(splits.train) | files(splits.val) | files(splits.test) == {f"{n:03}.png" for n in range(40)}
    for part in (splits.train, splits.val, splits.test):
        assert part.name == "pets"
        assert abs(Counter(part.labels)[0] - len(part) / 2) <= 1
        assert all((int(path.stem) >= 20) == label for path, label in zip(part.items, part.labels))


def test_a_folders_split_follows_from_the_seed(tmp_path):
    name = tree(tmp_path / "pets", {"cat": 20, "dog": 20})
    assert open_data(name, seed=1).val.items == open_data(name, seed=1).val.items
    assert open_data(name, seed=1).val.items != open_data(name, seed=2).val.items


def test_splits_on_disk_are_taken_as_they_are(tmp_path):
    counts = {"train/cat": 3, "train/dog": 4, "val/cat": 1, "val/dog": 1, "test/cat": 2, "test/dog": 2}
    splits = open_data(tree(tmp_path, counts))
    assert [Counter(part.labels) for part in (splits.train, splits.val, splits.test)] == [
        {0: 3, 1: 4},
        {0: 1, 1: 1},
        {0: 2, 1: 2},
    ]


def test_validation_images_come_out_of_train_and_never_out_of_test(tmp_path):
    splits = open_data(tree(tmp_path, {"train/cat": 10, "train/dog": 10, "test/cat": 4, "test/dog": 4}))
    assert len(splits.test) == 8
    assert len(splits.val) == 4
    assert all(path.parent.parent.name == "train" for path in splits.val.items)


def test_test_images_come_out_of_train_where_there_are_none(tmp_path):
    splits = open_data(tree(tmp_path, {"train/a": 10, "train/b": 10, "validation/a": 2, "validation/b": 2}))
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [16, 4, 4]
    assert not files(splits.train) & files(splits.test)


def test_train_may_be_the_name_of_a_class(tmp_path):
    assert open_data(tree(tmp_path, {"train": 5, "car": 5})).train.classes == ("car", "train")


def test_hidden_files_and_other_files_are_no_images(tmp_path):
    name = tree(tmp_path, {"cat": 5, "dog/more": 5, ".git": 1})
    (tmp_path / "cat" / "._000.png").write_bytes(b"")
    (tmp_path / "cat" / "notes.txt").write_text("x")
    splits = open_data(name)
    assert splits.train.classes == ("cat", "dog")
    assert sum(len(part) for part in (splits.train, splits.val, splits.test)) == 10


def test_an_unknown_name_is_told_with_what_is_allowed(tmp_path):
    assert "allowed: elpv, digits, textured-digits, torchvision:NAME:ROOT, a folder" in message(str(tmp_path / "gone"))


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
    assert "2 images of 2 classes are too few" in message(name)
    assert "samples=3 is too few; allowed: one per class, 4, or more" in message("elpv", samples=3)


def test_a_damaged_image_is_named_when_it_is_asked_for_and_when_checked(tmp_path):
    name = tree(tmp_path, {"train/cat": 5, "train/dog": 5, "test/cat": 1, "val/cat": 1})
    for path in ("cat/000.png", "dog/020.png"):
        (tmp_path / "train" / path).write_bytes(b"hello")
    images = open_data(name).train
    check_images(open_data(name).test)
    with pytest.raises(RunError, match=r"cat/000\.png: not an image that can be read \(and 1 other files\)$"):
        check_images(images)
    with pytest.raises(RunError, match=r"cat/000\.png: not an image that can be read$"):
        images[0]
    assert images[1][0].size == (4, 4)


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
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [40, 10, 20]
    assert splits.train.classes[3] == "3 - three"
    assert splits.test.labels[:3] == (0, 1, 2)
    assert splits.test[0][0].getpixel((0, 0)) == (7, 7, 7)
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
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [10, 2, 4]
    assert splits.test[0][0].mode == "RGB"


def test_torchvision_data_in_one_piece_are_split(tmp_path):
    tree(tmp_path / "eurosat" / "2750", {"Forest": 10, "River": 10})
    splits = open_data(f"torchvision:EuroSAT:{tmp_path}")
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [13, 3, 4]


def test_absent_torchvision_data_are_told_and_not_downloaded(tmp_path):
    said = message(f"torchvision:CIFAR100:{tmp_path}")
    assert said == f"{tmp_path}: no CIFAR100 of torchvision (Dataset not found or corrupted); nothing is downloaded"


@pytest.mark.parametrize("name", ["torchvision:CIFAR100", "torchvision:Cifar:/x", "torchvision::"])
def test_a_name_that_torchvision_lacks_is_told(name):
    assert "allowed: torchvision:NAME:ROOT" in message(name)


# --- reading ---


def test_every_mode_becomes_rgb(tmp_path):
    Image.fromarray(RAMP).save(tmp_path / "grey.png")
    Image.fromarray(RAMP.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    Image.fromarray(np.stack([RAMP] * 3, 2)).quantize(64).save(tmp_path / "palette.png")
    Image.fromarray(np.stack([RAMP] * 3 + [np.full_like(RAMP, 255)], 2)).save(tmp_path / "rgba.png")
    for name in ("grey", "deep", "palette", "rgba"):
        image = read_image(tmp_path / f"{name}.png")
        assert image.mode == "RGB"
        assert np.array_equal(np.asarray(image)[..., 1], RAMP)


def test_transparent_pixels_are_laid_over_white(tmp_path):
    Image.new("RGBA", (2, 2)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").getpixel((0, 0)) == (255, 255, 255)


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(RAMP).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(np.asarray(read_image(tmp_path / "a.png"))[..., 0], np.rot90(RAMP, -1))


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "no such file"), (b"", "the file is empty"), (b"hello", "not an image"), ("cut", "cannot be read as")],
)
def test_what_is_no_image_is_named_in_one_line(tmp_path, content, said):
    path = tmp_path / "a.png"
    if content == "cut":
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(path)
        content = path.read_bytes()[:2000]
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RunError, match=said) as error:
        read_image(path)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_huge_images_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    Image.fromarray(RAMP).save(tmp_path / "a.png")
    monkeypatch.setattr(data, "MAX_PIXELS", 47)
    with pytest.raises(RunError, match=r"a\.png: too many pixels; allowed: at most 47"):
        read_image(tmp_path / "a.png")
