"""Shifted data sets in their real layouts: every label is found by its name, and only the right columns count."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from frugal_shared.errors import UsageError
from partial_finetune.data.shifts import CIFAR_10, CIFAR_100, imagenet_classes, open_shift

WNIDS = imagenet_classes()


def write_class(folder, value=0, count=1):
    folder.mkdir(parents=True)
    for number in range(count):
        Image.new("RGB", (4, 4), (value, number, 0)).save(folder / f"{number}.JPEG", quality=100)


def write_cifar(root, classes=10, per_severity=20, corruptions=("fog", "snow")):
    """Write arrays whose images hold their row number, and the same labels five times."""
    root.mkdir(exist_ok=True)
    count = 5 * per_severity
    rows = np.arange(count, dtype=np.uint8).reshape(-1, 1, 1, 1)
    for corruption in corruptions:
        np.save(root / f"{corruption}.npy", np.broadcast_to(rows, (count, 32, 32, 3)))
    np.save(root / "labels.npy", np.tile(np.arange(per_severity, dtype=np.uint8) % classes, 5))


def message(spec, classes=None):
    """Return the one line that opening this shift fails with."""
    with pytest.raises(UsageError) as error:
        open_shift(spec, classes)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_imagenet_has_1000_sorted_classes_and_cifar_its_own():
    assert len(WNIDS) == 1000
    assert list(WNIDS) == sorted(WNIDS)
    for names, count in ((CIFAR_10.split(), 10), (CIFAR_100.split(), 100)):
        assert len(names) == count
        assert names == sorted(set(names))


def test_imagenet_v2s_folders_are_numbers_not_texts(tmp_path):
    for number in (2, 10, 999):
        write_class(tmp_path / str(number))
    [shift] = open_shift(f"imagenet-v2:{tmp_path}")
    assert (shift.name, shift.mask) == ("imagenet-v2", None)
    found = {path.parent.name: label for path, label in zip(shift.images.items, shift.images.labels)}
    assert found == {"2": 2, "10": 10, "999": 999}


def test_imagenet_v2_follows_the_models_own_order_of_classes(tmp_path):
    write_class(tmp_path / "0")
    [shift] = open_shift(f"imagenet-v2:{tmp_path}", WNIDS[::-1])
    assert shift.images.labels == (999,)


@pytest.mark.parametrize("kind", ["imagenet-r", "imagenet-a"])
def test_only_the_folders_classes_count(tmp_path, kind):
    for column in (900, 3, 70):
        write_class(tmp_path / WNIDS[column], count=2)
    (tmp_path / "README.txt").write_text("not a class")
    [shift] = open_shift(f"{kind}:{tmp_path}")
    assert shift.mask == (3, 70, 900)
    assert shift.images.classes == (WNIDS[3], WNIDS[70], WNIDS[900])
    assert shift.images.labels == (0, 0, 1, 1, 2, 2)

    logits = torch.zeros(1, 1000)
    logits[0, 500], logits[0, 70] = 9, 1  # 500 is no class of the folder's
    assert logits[:, list(shift.mask)].argmax(1).item() == 1
    assert open_shift(f"{kind}:{tmp_path}", WNIDS[::-1])[0].mask == (99, 929, 996)


def test_of_sketches_all_classes_count(tmp_path):
    write_class(tmp_path / WNIDS[5])
    [shift] = open_shift(f"imagenet-sketch:{tmp_path}")
    assert (shift.mask, shift.images.labels) == (None, (5,))


def test_imagenet_c_is_a_shift_per_corruption_and_severity(tmp_path):
    for corruption in ("fog", "jpeg_compression"):
        for severity in (1, 5):
            write_class(tmp_path / corruption / str(severity) / WNIDS[7], value=50 * severity)
    shifts = open_shift(f"imagenet-c:{tmp_path}")
    assert [shift.name for shift in shifts] == [
        "imagenet-c/fog/1",
        "imagenet-c/fog/5",
        "imagenet-c/jpeg_compression/1",
        "imagenet-c/jpeg_compression/5",
    ]
    image, label = shifts[1].images[0]
    assert (image.getpixel((0, 0))[0], label) == (pytest.approx(250, abs=3), 7)


@pytest.mark.parametrize(("kind", "names"), [("cifar-10-c", CIFAR_10.split()), ("cifar-100-c", CIFAR_100.split())])
def test_cifar_cs_severities_lie_behind_each_other(tmp_path, kind, names):
    write_cifar(tmp_path, classes=len(names))
    shifts = open_shift(f"{kind}:{tmp_path}", names)
    assert [shift.name for shift in shifts] == [f"{kind}/{c}/{s}" for c in ("fog", "snow") for s in range(1, 6)]
    images = shifts[2].images  # severity 3: rows 40 … 59
    assert (len(images), shifts[2].mask) == (20, None)
    image, label = images[7]
    assert (image.mode, image.size, image.getpixel((0, 0)), label) == ("RGB", (32, 32), (47, 47, 47), 7)


def test_cifars_labels_follow_the_models_order_of_classes(tmp_path):
    write_cifar(tmp_path)
    model = ("truck", *CIFAR_10.split()[:-1])
    [labels] = {shift.images.labels for shift in open_shift(f"cifar-10-c:{tmp_path}", model)}
    assert labels[:10] == (1, 2, 3, 4, 5, 6, 7, 8, 9, 0)


def test_shifts_can_be_sent_to_workers(tmp_path):
    write_cifar(tmp_path / "cifar")
    write_class(tmp_path / "r" / WNIDS[5])
    for spec, classes in (
        (f"cifar-10-c:{tmp_path / 'cifar'}", CIFAR_10.split()),
        (f"imagenet-r:{tmp_path / 'r'}", None),
    ):
        shift = open_shift(spec, classes)[0]
        copy = pickle.loads(pickle.dumps(shift))
        assert np.array_equal(np.asarray(copy.images[0][0]), np.asarray(shift.images[0][0]))


# --- bad input ---


@pytest.mark.parametrize("spec", ["imagenet-r", "imagenet-r:", "/data/imagenet-r"])
def test_the_kind_is_not_guessed(spec):
    assert "allowed: KIND:FOLDER" in message(spec)


def test_an_unknown_kind_or_folder_is_told(tmp_path):
    assert "kind of shift='imagenet-x' is unknown; allowed: imagenet-v2, imagenet-sketch" in message("imagenet-x:/data")
    assert message(f"imagenet-r:{tmp_path / 'gone'}") == f"{tmp_path / 'gone'}: no such folder"


@pytest.mark.parametrize(
    "kind", ["imagenet-v2", "imagenet-sketch", "imagenet-r", "imagenet-a", "imagenet-c", "cifar-10-c"]
)
def test_an_empty_folder_is_told(tmp_path, kind):
    assert str(tmp_path) in message(f"{kind}:{tmp_path}", CIFAR_10.split() if kind == "cifar-10-c" else None)


def test_a_class_that_the_model_lacks_is_named(tmp_path):
    write_class(tmp_path / "a" / "n00000000")
    write_class(tmp_path / "v2" / "1000")
    write_cifar(tmp_path / "cifar")
    assert "the model has no class 'n00000000'" in message(f"imagenet-a:{tmp_path / 'a'}")
    assert "class folder '1000' is not imagenet-v2's; allowed: 0 to 999" in message(f"imagenet-v2:{tmp_path / 'v2'}")
    assert "no class 'automobile', nor 0 others of 10" in message(
        f"cifar-10-c:{tmp_path / 'cifar'}", CIFAR_10.replace("automobile", "car").split()
    )


def test_a_class_without_images_is_named(tmp_path):
    (tmp_path / WNIDS[0]).mkdir()
    [shift] = open_shift(f"imagenet-r:{tmp_path}")
    with pytest.raises(UsageError, match=f"{WNIDS[0]}: no images in this class folder"):
        _ = shift.images


def test_another_layout_than_imagenet_cs_is_told(tmp_path):
    write_class(tmp_path / "fog" / WNIDS[0])
    assert "not a severity" in message(f"imagenet-c:{tmp_path}")


def test_arrays_that_are_not_cifars_are_told(tmp_path):
    write_cifar(tmp_path)
    spec = f"cifar-10-c:{tmp_path}"
    np.save(tmp_path / "fog.npy", np.zeros((99, 32, 32, 3), np.uint8))
    assert "fog.npy: uint8 (99, 32, 32, 3) with 100 labels" in message(spec, CIFAR_10.split())
    (tmp_path / "fog.npy").write_bytes(b"hello")
    assert "fog.npy: not an array" in message(spec, CIFAR_10.split())
    np.save(tmp_path / "labels.npy", np.full(100, 10))
    assert "labels.npy: not labels of cifar-10-c; allowed: numbers 0 to 9" in message(spec, CIFAR_10.split())
    (tmp_path / "labels.npy").unlink()
    assert "labels.npy: no such file" in message(spec, CIFAR_10.split())


def test_a_hostile_pickle_is_never_opened(tmp_path):
    write_cifar(tmp_path)
    np.save(tmp_path / "fog.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    assert "fog.npy: not an array" in message(f"cifar-10-c:{tmp_path}", CIFAR_10.split())
