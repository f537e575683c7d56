"""The command draws all pictures of a search that is done."""

import numpy as np
import pytest
import torch
from PIL import Image

from bdp_nas.commands import pictures, plot, search
from bdp_nas.commands.folders import read_found
from bdp_nas.commands.options import PlotConfig, SearchConfig
from frugal_shared.errors import RunError


@pytest.mark.parametrize("channels", [1, 3])
def test_a_wall_shows_all_pictures_enlarged(channels):
    picture = pictures.wall(np.random.default_rng(0).random((5, channels, 8, 8)), columns=3)
    assert picture.size == (3 * 32 + 2 * 4, 2 * 32 + 4)


def test_rows_are_taken_evenly():
    assert pictures.evenly(range(10), 4) == [0, 3, 6, 9]
    assert pictures.evenly([5, 7], 4) == [5, 7]


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("plot") / "search"
    search.main(SearchConfig(samples=160, channels=4, cells=1, epochs=4, batch_size=16, output_dir=folder, cpu=True))
    return folder


def test_the_command_draws_everything(searched, tmp_path):
    plot.main(PlotConfig(source=searched, output_dir=tmp_path, pictures=7, format="png"))
    assert {path.name for path in tmp_path.iterdir()} == {
        *("genotype.png", "alpha.png", "classes.png", "kept.png", "pruned.png")
    }
    with Image.open(tmp_path / "kept.png") as picture:
        assert picture.size[1] == 32


def test_pictures_are_of_the_samples_that_were_searched_on(searched, tmp_path, monkeypatch):
    shown = {}

    def keep(pixels, columns):
        shown[len(shown)] = pixels
        return Image.new("L", (1, 1))

    monkeypatch.setattr(pictures, "wall", keep)
    plot.main(PlotConfig(source=searched, output_dir=tmp_path, pictures=1000))
    kept, pruned = shown.values()
    found = read_found(searched)
    assert len(kept) == sum(map(len, found.kept.values())) < len(kept) + len(pruned) == 160


def test_a_folder_of_something_else_is_refused(tmp_path):
    with pytest.raises(RunError, match="allowed: the run folder of a search"):
        plot.main(PlotConfig(source=tmp_path))
    assert not list(tmp_path.iterdir())
