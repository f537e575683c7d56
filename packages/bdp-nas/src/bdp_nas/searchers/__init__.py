"""Searchers. A new one is a file with a :class:`~bdp_nas.searchers.searcher.Searcher`, and a line here."""

from typing import TYPE_CHECKING

from bdp_nas.registry import look_up

if TYPE_CHECKING:  # a list of names needs no torch
    from bdp_nas.searchers.searcher import Searcher

SEARCHERS = {
    "darts": "bdp_nas.searchers.darts:Darts",
    "darts-2": "bdp_nas.searchers.darts:SecondOrderDarts",
    "pc-darts": "bdp_nas.searchers.pc_darts:PCDarts",
    "beta-darts": "bdp_nas.searchers.beta_darts:BetaDarts",
    "random": "bdp_nas.searchers.random_search:RandomSearch",
}


def get_searcher(name: str) -> "type[Searcher]":
    """Return the class of a searcher by its name; its options are its fields.

    Raises:
        ValueError: a name that is not in ``SEARCHERS``.
    """
    return look_up("searcher", name, SEARCHERS)
