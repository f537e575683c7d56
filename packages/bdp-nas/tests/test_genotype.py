"""Cells as text, and what the text says of the graph."""

import pytest

from bdp_nas import get_space
from bdp_nas.genotype import format_cell, parse_cell, states_of


def test_cells_are_read_in_any_order_of_their_edges():
    cell = parse_cell("|b~1|a~0|", "ab")
    assert cell == ((("a", 0), ("b", 1)),) and format_cell(cell) == "|a~0|b~1|"


def test_states_are_those_from_outside_and_the_nodes():
    assert states_of(parse_cell("|a~0|+|a~0|a~1|+|a~0|a~1|a~2|", "a")) == 4
    assert states_of(parse_cell("|a~0|a~1|+|a~0|a~2|", "a")) == 4


def test_a_genotype_has_its_cells_by_name():
    cell = "|none~0|+|none~0|none~1|+|none~0|none~1|none~2|"
    assert {name: format_cell(each) for name, each in get_space("nasbench201").cells(cell).items()} == {"cell": cell}
    pair = "normal=CELL reduce=CELL".replace("CELL", "+".join(["|skip_connect~0|skip_connect~1|"] * 4))
    assert list(get_space("darts").cells(pair)) == ["normal", "reduce"]
    assert get_space("macro").cells("22212220") == {}


@pytest.mark.parametrize(
    ("genotype", "dead"),
    [
        ("|none~0|+|none~0|nor_conv_3x3~1|+|none~0|nor_conv_3x3~1|nor_conv_3x3~2|", True),
        ("|none~0|+|skip_connect~0|none~1|+|none~0|none~1|none~2|", True),
        ("|none~0|+|none~0|none~1|+|skip_connect~0|none~1|none~2|", False),
        ("|none~0|+|skip_connect~0|none~1|+|none~0|none~1|avg_pool_3x3~2|", False),
    ],
)
def test_a_cell_is_dead_if_nothing_reaches_its_last_node(genotype, dead):
    assert get_space("nasbench201").is_dead(genotype) == dead


def test_a_chain_is_never_dead():
    assert not get_space("macro").is_dead("00000000")
