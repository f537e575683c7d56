import hashlib
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from frugal_shared import weights
from frugal_shared.datasets import (
    CELL_BORDER,
    CELL_GREY,
    CELL_TYPES,
    SPLITS,
    TEXTURES,
    SolarCells,
    TexturedDigits,
    digits,
    elpv,
    normalise_cell,
)
from frugal_shared.errors import RunError, UsageError

needs_elpv = pytest.mark.skipif(find_spec("elpv_dataset") is None, reason="elpv-dataset (extra [demo]) is absent")


def sha256(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.numpy().tobytes()).hexdigest()[:16]


def test_digits_splits_share_no_image_and_cover_the_set():
    parts = {split: digits(split) for split in SPLITS}
    assert [len(labels) for _, labels in parts.values()] == [988, 629, 180]
    seen = [set(map(sha256, images)) for images, _ in parts.values()]
    assert sum(map(len, seen)) == len(set.union(*seen)) == 1797


@pytest.mark.parametrize("split", SPLITS)
def test_digits_are_stratified_and_in_range(split):
    images, labels = digits(split)
    assert images.dtype == torch.float32 and images.min() == 0 and images.max() == 1
    shares = torch.bincount(labels, minlength=10) / len(labels)
    assert (shares - 0.1).abs().max() < 0.01


def test_textured_digits_follow_from_seed_and_index_alone():
    data = TexturedDigits("train", seed=3)
    data.batch(0, 8)  # what was drawn before does not matter
    images, labels = data.batch(5, 16)
    again, labels_again = TexturedDigits("train", seed=3).batch(5, 16)
    assert torch.equal(images, again) and torch.equal(labels, labels_again)
    for other in (data.batch(6, 16), TexturedDigits("train", seed=4).batch(5, 16)):
        assert not torch.equal(images, other[0])


def test_the_sets_are_the_same_on_every_machine():
    # a change here changes what every recorded run was trained and evaluated on; colours may differ in the last bit
    assert [sha256(images) for images, _ in map(digits, SPLITS)] == [
        "13aa572cfffc43c6",
        "1af031321c5e8a5b",
        "3602878ac169e5ad",
    ]
    images, labels = TexturedDigits("train", seed=3).batch(5, 64)
    assert sha256(labels) == "7592a11899790c7b"
    assert images.double().mean().item() == pytest.approx(0.232090, abs=1e-6)


@pytest.mark.parametrize("split", SPLITS)
def test_textured_digits_ranges(split):
    images, labels = TexturedDigits(split).batch(0, 1000)
    assert images.shape == (1000, 3, 32, 32) and images.dtype == torch.float32
    assert images.min() >= 0 and images.max() <= 1
    assert set(labels.tolist()) == set(range(10 * len(TEXTURES))) == set(range(TexturedDigits.num_classes))


@pytest.mark.parametrize("load", [digits, TexturedDigits, elpv])
def test_an_unknown_split_is_named(load):
    with pytest.raises(UsageError, match=r"split='dev' is unknown; allowed: train, val, test"):
        load("dev")


def test_an_unknown_cell_type_is_named():
    with pytest.raises(UsageError, match=r"cell_type='thin' is unknown; allowed: None, mono, poly"):
        elpv("train", "thin")


def test_a_missing_package_is_one_line(monkeypatch):
    def absent(name):
        raise weights.PackageNotFoundError(name)

    monkeypatch.setattr(weights, "distribution", absent)
    with pytest.raises(RunError, match=r"^elpv-dataset is not installed; install it with: pip install elpv-dataset$"):
        elpv("train")


@needs_elpv
def test_elpv_splits_are_disjoint_cover_the_set_and_stay_the_same():
    parts = [elpv(split) for split in SPLITS]
    assert [len(part.paths) for part in parts] == [1574, 525, 525]
    assert len({path for part in parts for path in part.paths}) == 2624
    assert [part.paths for part in parts] == [elpv(split).paths for split in SPLITS]


@needs_elpv
@pytest.mark.parametrize("cell_type", CELL_TYPES)
@pytest.mark.parametrize("probability", [0, 1 / 3, 2 / 3, 1])
def test_elpv_splits_are_stratified(cell_type, probability):
    cells = [elpv(split, cell_type) for split in SPLITS]
    counts = np.array([(part.probability == torch.tensor(probability)).sum().item() for part in cells])
    assert np.abs(counts - counts.sum() * np.array([0.6, 0.2, 0.2])).max() <= 1


@needs_elpv
def test_elpv_by_cell_type_is_the_split_filtered():
    both, mono, poly = elpv("test"), elpv("test", "mono"), elpv("test", "poly")
    assert set(mono.cell_type) == {"mono"} and set(poly.cell_type) == {"poly"}
    assert mono.paths == tuple(path for path, kind in zip(both.paths, both.cell_type, strict=True) if kind == "mono")
    assert len(mono.paths) + len(poly.paths) == len(both.paths)


@needs_elpv
def test_elpv_images_are_read_by_number_mask_and_slice():
    cells = elpv("val", "mono")
    cells = SolarCells(cells.paths[:6], cells.probability[:6], cells.cell_type[:6])
    images = cells.images()
    assert images.shape == (6, 300, 300) and images.dtype == torch.uint8
    assert images.float().std(dim=(1, 2)).min() > 1  # photographs, not blanks
    mask = torch.tensor([False, True, False, False, True, False])
    assert torch.equal(cells.images(torch.tensor([4, 1])), images[[4, 1]])
    assert torch.equal(cells.images(mask), images[mask])
    assert torch.equal(cells.images(slice(2, 4)), images[2:4])
    assert cells.images(torch.zeros(6, dtype=torch.bool)).shape == (0, 300, 300)


def test_a_cell_loses_its_border_and_gets_the_common_exposure():
    photograph = np.full((300, 300), 40, np.uint8)
    photograph[:CELL_BORDER] = 255  # the gap to the neighbour
    photograph[100:110] = 8
    cell = normalise_cell(photograph)
    assert cell.shape == (270, 270) and cell.dtype == np.uint8
    assert np.median(cell) == CELL_GREY == cell.max() and cell.min() == round(8 * CELL_GREY / 40)


def test_a_black_cell_stays_black():
    assert not normalise_cell(np.zeros((300, 300), np.uint8)).any()
