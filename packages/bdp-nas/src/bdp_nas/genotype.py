"""A cell as text: ``|op~0|+|op~0|op~1|+|op~0|op~1|op~2|``, the notation of NAS-Bench-201, for cells of any space.

Nodes are joined by ``+``; each lists the operations on its incoming edges, and after ``~`` the state each comes from.
"""

import re
from collections.abc import Iterable

Cell = tuple[tuple[tuple[str, int], ...], ...]
"""For every node its incoming edges, as (operation, source state), by falling age of the source."""

NONE = "none"
"""The operation that passes nothing on."""

NODE = re.compile(r"\|(?:\w+~\d+\|)*")
EDGE = re.compile(r"(\w+)~(\d+)")


def format_cell(cell: Cell) -> str:
    """Write a cell as text."""
    return "+".join("|" + "".join(f"{operation}~{source}|" for operation, source in node) for node in cell)


def parse_cell(text: str, operations: Iterable[str]) -> Cell:
    """Read a cell from text, its edges in order of their source.

    Args:
        text: a cell as :func:`format_cell` writes it.
        operations: the names that may occur.

    Raises:
        ValueError: the text is no cell, or names another operation.
    """
    nodes = text.strip().split("+")
    if not all(NODE.fullmatch(node) for node in nodes):
        raise ValueError(f"cell {text[:200]!r} does not parse; allowed: nodes as |operation~source|, joined by +")
    cell = tuple(tuple((name, int(source)) for name, source in EDGE.findall(node)) for node in nodes)
    check_names([name for node in cell for name, _ in node], operations)
    return sort_edges(cell)


def states_of(cell: Cell) -> int:
    """Return the number of states of a cell: those from outside are the sources of its first node."""
    return 1 + max(source for _, source in cell[0]) + len(cell)


def is_dead(cell: Cell) -> bool:
    """Return whether a cell passes nothing on, because ``none`` cuts its last node off from what comes in."""
    inputs = states_of(cell) - len(cell)
    reached = set(range(inputs))
    for node, edges in enumerate(cell, inputs):
        if any(operation != NONE and source in reached for operation, source in edges):
            reached.add(node)
    return states_of(cell) - 1 not in reached


def sort_edges(cell: Iterable[Iterable[tuple[str, int]]]) -> Cell:
    """Bring the edges of every node into the order of their source, so that equal cells are equal text."""
    return tuple(tuple(sorted(node, key=lambda edge: edge[1])) for node in cell)


def check_names(names: Iterable[str], operations: Iterable[str]) -> None:
    """Refuse operations that a space does not have.

    Raises:
        ValueError: names the first such operation.
    """
    allowed = tuple(operations)
    unknown = next((name for name in names if name not in allowed), None)
    if unknown is not None:
        raise ValueError(f"operation {unknown!r} is unknown; allowed: {', '.join(allowed)}")
