"""Painted defects: the mask is exactly what changed, on the object, visible, and a function of the generator."""

import sys

import numpy as np
import pytest
from PIL import Image

from clipsam.data.defects import PAINTERS, SMALLEST, SOLID, VISIBLE, paint
from clipsam.data.photographs import PHOTOGRAPHS, Painted

HEIGHT, WIDTH = 96, 128
Y, X = np.mgrid[:HEIGHT, :WIDTH]


def _pictures() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    stripes = np.stack([120 + 60 * np.sin(X / 4), 90 + 40 * np.sin(X / 4), 60 + 0 * X], axis=2)
    grey = np.repeat((100 + 0.8 * Y + rng.normal(0, 6, (HEIGHT, WIDTH)))[..., None], 3, axis=2)
    even = {f"even {level}": np.full((HEIGHT, WIDTH, 3), level) for level in (0, 128, 255)}
    return {name: image.astype(np.uint8) for name, image in {"stripes": stripes, "grey": grey, **even}.items()}


PICTURES = _pictures()
DISC = (X - 60) ** 2 + (Y - 50) ** 2 < 35**2


@pytest.mark.parametrize("kind", PAINTERS)
@pytest.mark.parametrize("picture", PICTURES)
def test_mask_is_exactly_what_visibly_changed(kind, picture):
    image, before = PICTURES[picture], PICTURES[picture].copy()
    for seed in range(3):
        painted, mask = paint(image, kind, np.random.default_rng(seed))
        change = np.abs(painted.astype(int) - image).max(axis=2)
        assert not change[~mask].any(), "bit for bit the same outside the mask"
        assert mask.sum() >= max(SMALLEST * mask.size, 9)
        assert (change[mask] > VISIBLE).mean() > SOLID, "inside it, all but enclosed pixels changed"
        assert (mask | (change <= VISIBLE)).all()
        assert mask.mean() < 0.6
    assert np.array_equal(image, before)


@pytest.mark.parametrize("kind", PAINTERS)
def test_defects_lie_on_the_object(kind):
    for seed in range(4):
        _, mask = paint(PICTURES["stripes"], kind, np.random.default_rng(seed), DISC)
        assert mask.any()
        assert not (mask & ~DISC).any()


@pytest.mark.parametrize("kind", PAINTERS)
def test_grey_pictures_stay_grey(kind):
    painted, _ = paint(PICTURES["grey"], kind, np.random.default_rng(5))
    assert (painted == painted[..., :1]).all()


def test_a_piece_of_noise_swapped_for_noise_is_no_defect():
    grain = np.random.default_rng(0).normal(128, 25, (HEIGHT, WIDTH, 1)).clip(0, 255).astype(np.uint8).repeat(3, axis=2)
    for kind in ("misprint", "cut_paste", "broken_line"):
        for seed in range(6):
            painted, mask = paint(grain, kind, np.random.default_rng(seed))
            assert abs(painted[mask].mean() - grain[mask].mean()) > 8, (kind, seed)


def test_colour_spots_are_coloured_on_coloured_pictures():
    painted, mask = paint(PICTURES["stripes"], "colour_spot", np.random.default_rng(0))
    assert np.ptp(painted[mask].astype(int), axis=1).max() > 40


@pytest.mark.parametrize("kind", PAINTERS)
def test_same_generator_same_defect(kind):
    first, again, other = (paint(PICTURES["stripes"], kind, np.random.default_rng(seed)) for seed in (7, 7, 8))
    assert np.array_equal(first[0], again[0])
    assert np.array_equal(first[1], again[1])
    assert not np.array_equal(first[1], other[1])


def test_sizes_reach_from_specks_to_a_fifth_of_the_picture():
    shares = [
        paint(PICTURES["grey"], kind, np.random.default_rng(seed))[1].mean() for kind in PAINTERS for seed in range(12)
    ]
    assert min(shares) < 0.004
    assert max(shares) > 0.15
    assert 0.003 < np.median(shares) < 0.05


def test_a_smallest_picture_can_be_painted():
    image = np.full((16, 16, 3), 100, np.uint8)
    for kind in PAINTERS:
        assert paint(image, kind, np.random.default_rng(0))[1].any(), kind


@pytest.mark.parametrize(
    ("kind", "shape", "on_object", "said"),
    [
        ("wormhole", (32, 32, 3), None, "kind='wormhole' is unknown; allowed: scratch"),
        ("crack", (8, 32, 3), None, r"\(8, 32, 3\) is not possible"),
        ("crack", (32, 32), None, r"\(32, 32\) is not possible"),
        ("crack", (32, 32, 3), np.zeros((32, 32), bool), "no pixels"),
        ("crack", (32, 32, 3), np.ones((31, 32), bool), r"\(31, 32\); the image is \(32, 32\)"),
    ],
)
def test_bad_input(kind, shape, on_object, said):
    with pytest.raises(ValueError, match=said):
        paint(np.zeros(shape, np.uint8), kind, np.random.default_rng(0), on_object)


def test_own_pictures_are_cropped_and_painted():
    data = Painted(24, {"ramp": PICTURES["grey"], "stripes": [PICTURES["stripes"]] * 2}, size=64, defect_share=0.5)
    samples = [data[index] for index in range(len(data))]
    assert {sample.category for sample in samples} == {"ramp", "stripes"} == set(data.categories)
    assert all(sample.image.shape == (64, 64, 3) and sample.mask.any() == sample.is_anomalous for sample in samples)
    assert {sample.is_anomalous for sample in samples} == {True, False}
    assert [(s.category, s.defect, s.source) for s in samples] == [
        (entry.category, entry.defect, entry.source) for entry in data.entries
    ]


def test_a_crop_depends_on_seed_and_index_alone():
    data = [Painted(count, PICTURES, size=64, seed=seed) for count, seed in ((9, 3), (5, 3), (9, 4))]
    assert np.array_equal(data[0][4].image, data[1][4].image)
    assert not np.array_equal(data[0][4].image, data[2][4].image)


def test_photographs_of_scikit_image():
    pytest.importorskip("skimage")
    data = Painted(len(PHOTOGRAPHS), size=48, defect_share=1)
    assert data.categories == tuple(PHOTOGRAPHS)
    for sample in (data[index] for index in range(len(data))):
        assert sample.mask.any()
        assert sample.image.std() > 1, sample.category
        assert sample.caption


def test_without_scikit_image_one_line_says_what_to_install(monkeypatch):
    from clipsam.data import photographs

    photographs.photograph.cache_clear()
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(ImportError, match="pip install scikit-image"):
        Painted(1)[0]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"images": {}}, "at least one category"),
        ({"size": 8}, "size=8"),
        ({"defect_share": 1.5}, "defect_share=1.5 is out of range"),
    ],
)
def test_bad_settings_of_painted(settings, said):
    with pytest.raises(ValueError, match=said):
        Painted(2, **{"images": PICTURES, **settings})


def test_index_out_of_range():
    with pytest.raises(IndexError, match="allowed: 0 to 1"):
        Painted(2, PICTURES)[2]
    assert Image.fromarray(Painted(2, PICTURES, size=32)[-1].image).size == (32, 32)
