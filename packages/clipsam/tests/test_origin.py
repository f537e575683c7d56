"""What heads have seen is recognised by category and by file, whatever a folder is called now."""

import shutil

import numpy as np
import pytest
from PIL import Image

from clipsam.data.folders import load_folder
from clipsam.data.origin import origin_of, seen_in_training
from clipsam.data.procedural import Procedural


def save(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 9, 3), dtype=np.uint8)).save(path)


@pytest.fixture
def trained(tmp_path):
    for number, kind in enumerate(("good", "good", "bad")):
        save(tmp_path / "mine" / "metal_nut" / "test" / kind / f"{number}.png", number)
    return tmp_path / "mine"


def test_a_copy_under_another_name_is_recognised_by_its_files(trained, tmp_path):
    origin = origin_of(load_folder(trained))
    shutil.copytree(trained / "metal_nut" / "test", tmp_path / "other" / "parts" / "test")
    save(tmp_path / "other" / "parts" / "test" / "good" / "new.png", 9)
    assert seen_in_training(load_folder(tmp_path / "other"), origin) == "3 of its image files"


def test_another_set_of_a_trained_category_is_recognised(trained, tmp_path):
    origin = origin_of(load_folder(trained))
    save(tmp_path / "other" / "Metal nut" / "test" / "good" / "0.png", 7)
    assert seen_in_training(load_folder(tmp_path / "other"), origin) == "the category 'metal nut'"
    assert seen_in_training(load_folder(tmp_path / "other", category="object"), origin_of(load_folder(trained, category="object"))) is None  # fmt: skip  # noqa: E501


def test_something_else_is_not(trained):
    origin = origin_of(load_folder(trained))
    assert seen_in_training(Procedural(2, ("bolt",), 32), origin) is None
    assert origin_of(Procedural(2, ("bolt",), 32))["files"] == []
    assert seen_in_training(load_folder(trained), {"data": ["mine"]}) == "the data set"  # an older checkpoint
    assert seen_in_training(load_folder(trained), {}) is None
