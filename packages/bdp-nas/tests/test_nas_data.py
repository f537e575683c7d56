"""Data and batches: the same for the same seed, on any number of processes, and refused in one line."""

import struct

import numpy as np
import pytest
import torch
from PIL import Image

from bdp_nas.commands.data import Images, open_data
from bdp_nas.commands.loading import Augmented, EpochBatches, crop, cutout, normalise, unit_of
from bdp_nas.commands.options import TaskConfig
from frugal_shared.errors import RunError, UsageError


def opened(data, **options):
    return open_data(TaskConfig(data=str(data), **options))


def pictures(folder, *, count=4, size=(6, 6), mode="L", start=0):
    """Write pictures, of which the first pixel tells the number."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(start, start + count):
        picture = Image.new(mode, size)
        picture.putpixel((0, 0), number if mode == "L" else (number, 0, 0))
        picture.save(folder / f"{number:03d}.png")


def images(count=40, classes=4, side=8):
    pixels = torch.arange(count * side * side).remainder(251).byte().view(count, 1, side, side)
    return Images(tuple("abcdefgh"[:classes]), pixels, torch.arange(count) % classes)


@pytest.mark.parametrize(
    ("name", "shape", "classes"),
    [("digits", (1, 8, 8), 10), ("textured-digits", (3, 32, 32), 40), ("elpv", (1, 16, 16), 4)],
)
def test_embedded_data_come_as_tensors(name, shape, classes):
    splits = opened(name, image_size=16 if name == "elpv" else None)
    for part in (splits.train, splits.val, splits.test):
        assert part.pixels.shape == (len(part), *shape)
        assert part.pixels.dtype == torch.uint8
        assert sorted(part.labels.unique().tolist()) == list(range(classes)) == list(range(len(part.classes)))


def test_a_folder_with_splits_is_read_as_it_is(tmp_path):
    for split, start in (("train", 0), ("val", 100), ("test", 200)):
        for number, name in enumerate(("cat", "dog")):
            pictures(tmp_path / split / name, start=start + 10 * number)
    splits = opened(tmp_path)
    assert splits.train.classes == ("cat", "dog")
    assert splits.train.pixels[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 10, 11, 12, 13]
    assert splits.val.labels.tolist() == splits.test.labels.tolist() == [0] * 4 + [1] * 4


def test_a_folder_without_splits_is_split_into_parts_without_overlap(tmp_path):
    for number, name in enumerate(("cat", "dog")):
        pictures(tmp_path / name, count=20, start=100 * number, mode="RGB")
    first, again, other = (open_data(TaskConfig(data=str(tmp_path), val_share=0.25), seed) for seed in (0, 0, 1))
    numbers = [set(part.pixels[:, 0, 0, 0].tolist()) for part in (first.train, first.val, first.test)]
    assert [len(each) for each in numbers] == [24, 8, 8]
    assert len(set.union(*numbers)) == 40
    assert torch.equal(first.val.pixels, again.val.pixels)
    assert not torch.equal(first.val.pixels, other.val.pixels)
    assert torch.equal(first.test.pixels, other.test.pixels)


def test_a_torchvision_data_set_is_read_where_it_lies(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, count in (("train", 40), ("t10k", 20)):
        pixels, labels = np.full((count, 28, 28), 7, np.uint8), np.arange(count, dtype=np.uint8) % 10
        (raw / f"{name}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 2051, count, 28, 28) + pixels.tobytes())
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, count) + labels.tobytes())
    splits = opened(f"torchvision:MNIST:{tmp_path}", image_size=12, val_share=0.25)
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [30, 10, 20]
    assert splits.train.pixels.shape[1:] == (1, 12, 12)
    assert len(splits.train.classes) == 10


def test_samples_are_taken_of_each_class_in_proportion(tmp_path):
    for number, (name, count) in enumerate((("cat", 30), ("dog", 15), ("fox", 5))):
        pictures(tmp_path / "train" / name, count=count, start=60 * number)
        pictures(tmp_path / "test" / name)
    splits = opened(tmp_path, samples=10, val_share=0)
    assert splits.train.labels.bincount().tolist() == [6, 3, 1]
    assert len(splits.test) == 12
    assert not len(splits.val)


def test_images_are_grey_if_all_of_all_splits_are(tmp_path):
    for name in ("train/cat", "train/dog", "test/cat"):
        pictures(tmp_path / name)
    assert opened(tmp_path).train.pixels.shape[1:] == (1, 6, 6)
    pictures(tmp_path / "test" / "dog", mode="RGB")
    assert {part.pixels.shape[1:] for part in (opened(tmp_path).train, opened(tmp_path).test)} == {(3, 6, 6)}


def test_moments_are_those_of_the_pixels():
    mean, std = images().moments()
    values = images().pixels.double() / 255
    assert mean.item() == pytest.approx(values.mean().item())
    assert std.item() == pytest.approx(values.std(correction=0).item())


@pytest.mark.parametrize(
    ("make", "error", "told"),
    [
        (lambda root: pictures(root / "a"), UsageError, "1 class folders; allowed: 2 or more"),
        (lambda root: [pictures(root / "a"), (root / "b").mkdir()], UsageError, "b: no images in this class folder"),
        (lambda root: [pictures(root / name, count=1) for name in "ab"], UsageError, "2 images are too few to test"),
        (
            lambda root: [pictures(root / "a", count=9), pictures(root / "b", count=9, size=(7, 6))],
            UsageError,
            "images of 2 sizes",
        ),
        (
            lambda root: [pictures(root / "a"), pictures(root / "b"), (root / "a" / "x.png").write_bytes(b"PNG")],
            RunError,
            "x.png: not an image that can be read",
        ),
        (
            lambda root: [
                pictures(root / "train" / "a"),
                pictures(root / "train" / "c"),
                pictures(root / "test" / "b"),
            ],
            UsageError,
            "no class 'b'",
        ),
        (lambda root: None, UsageError, "0 class folders"),
    ],
)
def test_a_folder_that_cannot_be_used_is_refused_in_one_line(tmp_path, make, error, told):
    make(tmp_path)
    with pytest.raises(error, match=told) as caught:
        opened(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "options", "told"),
    [
        ("nothing", {}, "data='nothing' is unknown; allowed: digits"),
        ("torchvision:Nothing:x", {}, "NAME of torchvision.datasets"),
        ("torchvision:MNIST:/nowhere", {}, "/nowhere: no MNIST of torchvision .*nothing is downloaded"),
        ("digits", {"samples": 9}, "samples=9 is too few; allowed: 10"),
    ],
)
def test_data_that_are_not_there_are_refused_in_one_line(data, options, told):
    with pytest.raises(UsageError, match=told):
        opened(data, **options)


def test_what_changes_an_image_follows_from_its_index_and_epoch_alone():
    one = images()
    data = Augmented(one, *one.moments(), ("flip", "crop", "cutout"), seed=5)
    rows, (batch, labels) = data[[3, 17, 8]]
    assert rows.tolist() == [3, 17, 8]
    assert torch.equal(labels, one.labels[rows])
    assert torch.equal(data[[17]][1][0][0], batch[1])
    later = Augmented(one, *one.moments(), ("flip", "crop", "cutout"), seed=5, epoch=1)
    assert not torch.equal(later[[3, 17, 8]][1][0], batch)
    assert torch.equal(Augmented(one, *one.moments())[[3]][1][0], normalise(one.pixels[3:4], *one.moments()))


def test_a_crop_shifts_by_up_to_an_eighth():
    pixels = torch.arange(1, 65, dtype=torch.uint8).view(1, 1, 8, 8)
    shifted = crop(pixels.repeat(3, 1, 1, 1), torch.tensor([[0.0, 0.5], [0.5, 0.5], [0.99, 0.99]]))
    assert torch.equal(shifted[0, 0, 1:], pixels[0, 0, :-1])
    assert (shifted[0, 0, 0] == 0).all()
    assert torch.equal(shifted[1], pixels[0])
    assert torch.equal(shifted[2, 0, :-1, :-1], pixels[0, 0, 1:, 1:])


def test_a_cutout_is_a_square_of_half_the_side():
    cut = cutout(torch.ones(2, 3, 8, 8), torch.tensor([[0.5, 0.5], [0.0, 0.0]]))
    assert (cut[0] == 0).sum() == 3 * 16
    assert (cut[1] == 0).sum() == 3 * 4


@pytest.mark.parametrize(("count", "sizes"), [(128, [64, 64]), (99, [48, 48]), (200, [48, 48, 48, 56]), (7, [])])
def test_an_epoch_is_divided_into_batches_of_nearly_equal_size(count, sizes):
    batches = EpochBatches(range(100, 100 + count), 64, 8, (0, 1))
    drawn = list(batches)
    assert sorted(map(len, drawn)) == sizes
    assert len(batches) == len(sizes)
    rows = [row for batch in drawn for row in batch]
    assert len(set(rows)) == len(rows)
    assert set(rows) <= set(range(100, 100 + count))
    assert not sizes or list(batches) != drawn


def test_processes_have_consecutive_parts_of_the_same_batches():
    whole, first, second = (list(EpochBatches(range(90), 32, 8, (3,), *which)) for which in ((0, 1), (0, 2), (1, 2)))
    assert [left + right for left, right in zip(first, second, strict=True)] == whole
    assert all(len(left) == len(right) for left, right in zip(first, second))


def test_a_batch_has_to_divide_among_the_processes():
    assert [unit_of(64, 1), unit_of(64, 2), unit_of(96, 3), unit_of(10, 1)] == [8, 8, 24, 2]
    with pytest.raises(UsageError, match="batch_size=64 does not divide among 3 processes"):
        unit_of(64, 3)
