"""Corruptions: the same for the same image, stronger with every severity, and never another size."""

import pickle
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from frugal_shared.errors import UsageError
from frugal_shared.labelled import Images
from partial_finetune.data.corruptions import CORRUPTIONS, SEVERITIES, Corrupted, corrupt

RANDOM = {"gaussian_noise", "shot_noise", "impulse_noise", "motion_blur", "elastic", "fog"}


def picture(height=64, width=80):
    """A colourful picture with edges, of soft and of hard ones."""
    down, across = np.mgrid[:height, :width] / min(height, width)
    waves = np.stack([np.sin(9 * across), np.cos(7 * down), np.sin(5 * (across + down))], 2)
    disc = np.hypot(across - 0.5, down - 0.5) < 0.25
    return np.uint8(110 + 50 * waves + 60 * disc[..., None] * np.array([1, -1, 0]))


def distance(a, b):
    return float(np.sqrt(np.mean((a.astype(float) - b.astype(float)) ** 2)))


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_every_severity_is_farther_from_the_original_than_the_one_before(kind):
    image = picture()
    distances = [distance(corrupt(image, kind, severity), image) for severity in SEVERITIES]
    assert distances[0] > 0
    assert all(less < more for less, more in pairwise(distances))


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_severity_5_is_farther_than_1_for_noise_too(kind):
    image = np.random.default_rng(0).integers(0, 256, (48, 48, 3), np.uint8)
    assert distance(corrupt(image, kind, 5), image) > distance(corrupt(image, kind, 1), image) > 0


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_an_image_is_corrupted_alike_whatever_came_before(kind):
    image = picture()
    first = [corrupt(image, kind, 3, seed=2, index=index) for index in range(3)]
    np.random.default_rng().random(10)
    again = [corrupt(image, kind, 3, seed=2, index=index) for index in (2, 1, 0)]
    assert all(np.array_equal(a, b) for a, b in zip(first, reversed(again)))
    assert np.array_equal(image, picture())


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_only_random_corruptions_depend_on_seed_and_index(kind):
    image = picture()
    here = corrupt(image, kind, 3, seed=0, index=0)
    for other in (corrupt(image, kind, 3, seed=1, index=0), corrupt(image, kind, 3, seed=0, index=1)):
        assert np.array_equal(here, other) == (kind not in RANDOM)


@pytest.mark.parametrize("shape", [(16, 16), (16, 40), (97, 33)])
@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_size_and_type_stay_at_any_size(kind, shape):
    image = picture(*shape)
    for severity in (1, 5):
        corrupted = corrupt(image, kind, severity)
        assert (corrupted.shape, corrupted.dtype) == (image.shape, np.uint8)
        assert not np.array_equal(corrupted, image)


@pytest.mark.parametrize("kind", ["defocus_blur", "motion_blur", "zoom_blur", "contrast", "pixelate", "elastic"])
def test_an_even_image_stays_as_it_is(kind):
    image = np.full((32, 40, 3), 120, np.uint8)
    assert np.array_equal(corrupt(image, kind, 5), image)


@pytest.mark.parametrize("kind", ["defocus_blur", "motion_blur", "elastic"])
def test_blur_keeps_the_mean_brightness(kind):
    image = picture()
    assert corrupt(image, kind, 4).mean() == pytest.approx(image.mean(), rel=0.02)


def test_black_and_white_survive_every_corruption_without_overflow():
    black, white = np.zeros((32, 32, 3), np.uint8), np.full((32, 32, 3), 255, np.uint8)
    for kind in ("brightness", "fog"):
        assert corrupt(white, kind, 5).min() == 255
    assert corrupt(black, "shot_noise", 5).max() == 0
    assert corrupt(black, "gaussian_noise", 5).min() == 0


def test_a_grey_image_stays_grey_when_saturated():
    image = np.repeat(picture()[..., :1], 3, axis=2)
    assert np.array_equal(corrupt(image, "saturate", 5), image)


@pytest.mark.parametrize(
    ("image", "kind", "severity", "said"),
    [
        (picture(), "snow", 1, "corruption='snow' is unknown; allowed: gaussian_noise"),
        (picture(), "fog", 6, "severity=6 is unknown; allowed: 1, 2, 3, 4, 5"),
        (picture(15, 20), "fog", 1, r"uint8 \(15, 20, 3\); allowed"),
        (picture() / 255, "fog", 1, "float64"),
        (picture()[..., 0], "fog", 1, r"uint8 \(64, 80\)"),
    ],
)
def test_what_cannot_be_corrupted_is_told(image, kind, severity, said):
    with pytest.raises(UsageError, match=said):
        corrupt(image, kind, severity)


def images():
    return Images("pictures", ("a", "b"), (0, 1, 0), (picture(), picture(), picture(40, 40)), Image.fromarray)


def test_corrupted_images_keep_labels_and_classes():
    clean = images()
    corrupted = Corrupted(clean, "gaussian_noise", 2)
    assert (len(corrupted), corrupted.labels, corrupted.classes) == (3, clean.labels, clean.classes)
    assert corrupted.name == "pictures/gaussian_noise/2"
    image, label = corrupted[2]
    assert (image.mode, image.size, label) == ("RGB", (40, 40), 0)


def test_equal_images_get_noise_of_their_own():
    corrupted = Corrupted(images(), "gaussian_noise", 2)
    assert not np.array_equal(np.asarray(corrupted[0][0]), np.asarray(corrupted[1][0]))
    assert np.array_equal(np.asarray(corrupted[1][0]), corrupt(picture(), "gaussian_noise", 2, index=1))


def test_a_part_of_corrupted_images_is_corrupted_as_in_the_whole():
    corrupted = Corrupted(images(), "fog", 3, seed=1)
    assert np.array_equal(np.asarray(corrupted.subset([1])[0][0]), np.asarray(corrupted[1][0]))


def test_corrupted_images_can_be_sent_to_workers():
    corrupted = Corrupted(images(), "elastic", 3, seed=1)
    copy = pickle.loads(pickle.dumps(corrupted))
    assert np.array_equal(np.asarray(copy[1][0]), np.asarray(corrupted[1][0]))


def test_an_unknown_corruption_is_told_at_once():
    with pytest.raises(UsageError, match="corruption='snow' is unknown"):
        Corrupted(images(), "snow", 1)
    with pytest.raises(UsageError, match="severity=0 is unknown"):
        Corrupted(images(), "fog", 0)
