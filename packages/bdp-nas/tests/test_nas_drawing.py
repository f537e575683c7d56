"""The pictures of a search: what they draw."""

import numpy as np
import pytest
import torch

from bdp_nas import drawing, get_space
from bdp_nas.spaces.space import Size

CELL = "|nor_conv_3x3~0|+|none~0|nor_conv_1x1~1|+|skip_connect~0|avg_pool_3x3~1|nor_conv_3x3~2|"


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
