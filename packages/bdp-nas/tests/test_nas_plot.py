"""The pictures of a search: what they draw, and that a command draws them all."""

import numpy as np
import pytest
import torch
from PIL import Image

from bdp_nas.commands import drawing, plot
from bdp_nas.commands.options import PlotConfig, SearchConfig
from bdp_nas.commands.search import search
from bdp_nas.spaces import get_space
from bdp_nas.spaces.space import Size
from frugal_shared.errors import RunError

CELL = "|nor_conv_3x3~0|+|none~0|nor_conv_1x1~1|+|skip_connect~0|avg_pool_3x3~1|nor_conv_3x3~2|"
EXAMPLES = {"nasbench201": CELL, "macro": "22212220"}


def texts(figure):
    return [text.get_text().replace("\n", "") for axes in figure.axes for text in axes.texts]


def test_a_cell_is_drawn_with_its_operations_but_none():
    [axes] = (figure := drawing.genotype_plot("nasbench201", CELL)).axes
    assert len(axes.patches) == 5
    assert sorted(texts(figure)) == sorted(
        ["nor_conv_3x3", "nor_conv_1x1", "skip_connect", "avg_pool_3x3", "nor_conv_3x3", "in", "1", "2", "3"]
    )


def test_a_darts_genotype_has_two_graphs():
    torch.manual_seed(0)
    genotype = get_space("darts").supernet(Size(2, 4, 3)).genotype()
    figure = drawing.genotype_plot("darts", genotype)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["normal", "reduce"]
    assert [len(axes.patches) for axes in figure.axes] == [8, 8]


def test_a_chain_is_a_row_of_blocks():
    figure = drawing.genotype_plot("macro", "22212220")
    assert texts(figure) == ["k5e6", "k5e6", "k5e6", "k3e3", "k5e6", "k5e6", "k5e6", "identity"]


def test_a_genotype_that_does_not_parse_is_refused():
    with pytest.raises(ValueError, match="does not parse"):
        drawing.genotype_plot("nasbench201", "|nor_conv_3x3")


@pytest.mark.parametrize("count", [1, 6, 28])
def test_every_edge_has_a_panel(count):
    panels = [drawing.Panel(str(edge), ("a", "b"), np.full((4, 2), 0.5)) for edge in range(count)]
    titles = [axes.get_title() for axes in drawing.alpha_plot(panels).axes]
    assert [title for title in titles if title] == [str(edge) for edge in range(count)]


def test_classes_are_stacked_for_each_level():
    counts = {"weights": np.array([[3, 4], [1, 2]]), "architecture": np.array([[3, 4], [2, 1]])}
    figure = drawing.class_plot(counts, ("cat", "dog"))
    assert [axes.get_title() for axes in figure.axes] == ["weights", "architecture"]


@pytest.mark.parametrize("channels", [1, 3])
def test_a_wall_shows_all_pictures_enlarged(channels):
    picture = drawing.wall(np.random.default_rng(0).random((5, channels, 8, 8)), columns=3)
    assert picture.size == (3 * 32 + 2 * 4, 2 * 32 + 4)


def test_rows_are_taken_evenly():
    assert plot.evenly(range(10), 4) == [0, 3, 6, 9]
    assert plot.evenly([5, 7], 4) == [5, 7]


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("plot") / "search"
    search(SearchConfig(samples=160, channels=4, cells=1, epochs=4, batch_size=16, output_dir=folder, cpu=True))
    return folder


def test_the_command_draws_everything(searched, tmp_path):
    plot.plot(PlotConfig(source=searched, output_dir=tmp_path, pictures=7, format="png"))
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

    monkeypatch.setattr(plot, "wall", keep)
    plot.plot(PlotConfig(source=searched, output_dir=tmp_path, pictures=1000))
    kept, pruned = shown.values()
    found = plot.read_found(searched)
    assert len(kept) == sum(map(len, found.kept.values())) < len(kept) + len(pruned) == 160


def test_a_folder_of_something_else_is_refused(tmp_path):
    with pytest.raises(RunError, match="allowed: the run folder of a search"):
        plot.plot(PlotConfig(source=tmp_path))
    assert not list(tmp_path.iterdir())
