"""What can be evaluated on: by name, far from the training's seeds, solar cells in one exposure."""

import numpy as np
import pytest
from PIL import Image

from clipsam.data.cells import CELL, DEFECTIVE, preprocess, solar_cells
from clipsam.data.procedural import HELD_OUT_CATEGORIES, TRAIN_CATEGORIES
from clipsam.data.sources import EVAL_SEED, NAMES, open_data, open_references, training_data
from clipsam.samples import GOOD
from frugal_shared.datasets import CELL_BORDER, CELL_GREY
from frugal_shared.errors import UsageError
from frugal_shared.weights import package_file


@pytest.fixture
def elpv():
    labels = package_file("elpv-dataset", "elpv_dataset/data/labels.csv")
    return {parts[0]: (float(parts[1]), parts[2]) for parts in map(str.split, labels.read_text().splitlines())}


def test_drawn_images_are_of_held_out_categories():
    data = open_data("procedural", 30, 3)
    assert data.name == "procedural" and len(data) == 30 and data[0].image.shape == (256, 256, 3)
    assert set(data.categories) == set(HELD_OUT_CATEGORIES) and not set(data.categories) & set(TRAIN_CATEGORIES)


def test_the_same_seed_does_not_give_what_was_trained_on():
    train, val = training_data(("photographs",), 10, 10, seed=0)
    data = open_data("photographs", 10, 0)
    sources = {entry.source for entry in data.entries}
    assert not sources & {entry.source for part in (train, val) for entry in part.entries}
    assert all(f"/{EVAL_SEED}-" in source for source in sources)
    again = open_data("photographs", 10, 0)
    assert np.array_equal(data[3].image, again[3].image)


def test_a_folder_is_opened_as_a_data_set(tmp_path):
    for kind in ("good", "bent"):
        folder = tmp_path / "nuts" / "test" / kind
        folder.mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(folder / "0.png")
    data = open_data(str(tmp_path), 1, 0)
    assert data.name == tmp_path.name and data.categories == ("nuts",) and len(data) == 2


def test_what_is_no_name_and_no_folder_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"'procedurall' is unknown; allowed: procedural, .* a folder"):
        open_data("procedurall", 1, 0)
    with pytest.raises(ValueError, match="no data set in it"):
        open_data(str(tmp_path), 1, 0)


def test_cells_lose_their_border_and_their_exposure():
    dark = np.full((300, 300), 20, np.uint8)
    dark[:CELL_BORDER] = 255
    dark[100:104] = 4
    cell = preprocess(dark)
    assert cell.shape == (270, 270, 3) and cell.dtype == np.uint8
    assert np.median(cell) == CELL_GREY and cell.max() == CELL_GREY and cell.min() == 22
    bright = np.full((300, 300), 60, np.uint8)
    bright[50] = 250
    assert preprocess(bright).max() == 255  # clipped, not wrapped
    assert preprocess(np.zeros((300, 300), np.uint8)).max() == 0


@pytest.mark.parametrize("name", ["elpv-mono", "elpv-poly"])
def test_solar_cells_are_those_of_one_type_that_are_sure(elpv, name):
    data = open_data(name, 1, 0)
    kinds = {entry.defect for entry in data.entries}
    assert data.name == name and kinds == {GOOD, DEFECTIVE} and len(data) > 100
    for entry in data.entries:
        probability, cell_type = elpv["images/" + entry.source.rsplit("/", 1)[1]]
        assert cell_type == name.removeprefix("elpv-")
        assert (probability, entry.has_mask) == ((0.0, True) if entry.defect == GOOD else (1.0, False))
        assert entry.category == CELL
    sample = data[len(data) - 1]
    assert sample.is_anomalous and not sample.mask.any() and sample.image.shape == (270, 270, 3)
    assert np.median(sample.image) == pytest.approx(CELL_GREY, abs=1)


def test_solar_cells_can_be_limited(elpv):
    data = solar_cells("elpv-mono", limit=3)
    assert [entry.defect for entry in data.entries] == [GOOD] * 3 + [DEFECTIVE] * 3
    whole = {entry.source for entry in solar_cells("elpv-mono").entries}
    assert {entry.source for entry in data.entries} <= whole


def test_defects_are_painted_onto_functional_cells(elpv):
    data = open_data("cells", 12, 0)
    assert data.name == "cells" and data.categories == (CELL,) and len(data) == 12
    for entry, sample in zip(data.entries, map(data.__getitem__, range(12))):
        assert sample.mask.any() == entry.is_anomalous and entry.has_mask
        assert sample.image.shape == (256, 256, 3)
    assert {entry.is_anomalous for entry in data.entries} == {True, False}


@pytest.mark.parametrize("name", NAMES)
def test_references_are_other_images_as_many_of_every_category(name):
    data, references = open_data(name, 60, 0), open_references(name, 3, 0)
    count = {category: 0 for category in data.categories if category in references.categories}
    for entry in references.entries:
        count[entry.category] += 1
    assert set(count.values()) == {3} and set(count) == set(data.categories)
    assert not {entry.source for entry in references.entries} & {entry.source for entry in data.entries}
    again, others = open_references(name, 3, 0), open_references(name, 3, 1)
    assert np.array_equal(references[1].image, again[1].image)
    assert [entry.source for entry in others.entries] != [entry.source for entry in again.entries]


def test_names_are_what_the_options_say():
    assert NAMES == ("procedural", "photographs", "cells", "elpv-mono", "elpv-poly")
