"""Pictures of a search: cells as graphs, α over time, kept samples per class.

    genotype_plot("nasbench201", supernet.genotype()).savefig("cell.svg")
    alpha_plot(panels(supernet, mixtures)).savefig("alpha.svg")  # mixtures: supernet.mixture() after every epoch

All of them need matplotlib.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Plot
from matplotlib.patches import FancyArrowPatch
from numpy.typing import ArrayLike, NDArray

from bdp_nas.genotype import NONE, Cell, states_of
from bdp_nas.spaces import get_space
from bdp_nas.spaces.cell import MixedCell
from bdp_nas.spaces.operations import BUILDERS
from bdp_nas.spaces.space import Supernet

COLOURS = [colormaps["tab10"](number) for number in range(10)]
BEND = 0.5  # how far an arc leaves the row of states, relative to its span
MANY, NARROW, WIDE = 9, 3, 7  # so many panels stand in narrow rows, more in wide ones


@dataclass(frozen=True, eq=False)
class Panel:
    """The mixture of one edge.

    Args:
        name: of the edge.
        operations: their names.
        weights: softmax(α) after every epoch, ``(T, operations)``.
    """

    name: str
    operations: Sequence[str]
    weights: NDArray[np.floating]


def genotype_plot(space: str, genotype: str) -> Plot:
    """Return a genotype as one graph for each of its cells, or as a row of blocks; ``none`` is not drawn.

    Raises:
        ValueError: an unknown space, or a genotype that does not parse.
    """
    cells = get_space(space).cells(genotype)
    if not cells:
        plot = Plot(figsize=(6.4, 1.6), layout="constrained")
        draw_chain(plot.subplots(), get_space(space).operations(genotype))
        return plot
    states = max(map(states_of, cells.values()))
    plot = Plot(figsize=(1.3 * states, 0.8 * states * len(cells)), layout="constrained")
    for axes, (name, cell) in zip(np.ravel(plot.subplots(len(cells))), cells.items()):
        draw_cell(axes, name, cell)
    return plot


def colours_of(operations: Iterable[str]) -> dict[str, tuple[float, ...]]:
    """Return a colour for each operation, those of cells always the same."""
    known = (NONE, *BUILDERS)
    order = (*known, *sorted(set(operations).difference(known)))
    return {name: COLOURS[order.index(name) % len(COLOURS)] for name in operations}


def draw_cell(axes: Axes, name: str, cell: Cell) -> None:
    """Draw the states of a cell in a row, and its edges as arcs with their operations: neighbours straight."""
    inputs, states = states_of(cell) - len(cell), states_of(cell)
    edges = [(source, inputs + node, op) for node, arriving in enumerate(cell) for op, source in arriving if op != NONE]
    colours = colours_of([op for *_, op in edges])
    sides = [1, -1] * len(edges)
    for source, node, operation in edges:
        span = node - source
        bend = sides.pop(0) * BEND if span > 1 else 0.0
        draw_arc(axes, source, node, bend, operation, colours[operation])
    axes.scatter(range(states), [0] * states, s=340, color="#eef1f5", edgecolor="#3a4553", zorder=3)
    for state in range(states):
        label = "in" if state < inputs else str(state - inputs + 1)
        axes.text(state, 0, label, ha="center", va="center", fontsize=9, zorder=4)
    limit = BEND * (states - 1) / 2 + 0.3
    axes.set(xlim=(-0.3, states - 0.7), ylim=(-limit, limit), aspect="equal")  # arcs are bent on the screen
    axes.set_title(name, loc="left", fontsize=9)
    axes.axis("off")


def draw_arc(axes: Axes, source: int, node: int, bend: float, operation: str, colour: tuple[float, ...]) -> None:
    """Draw an edge between two states of a row; its highest point is ``bend`` · span / 2 above them."""
    form = {"arrowstyle": "-|>", "mutation_scale": 12, "shrinkA": 11, "shrinkB": 11, "color": colour, "linewidth": 1.7}
    axes.add_patch(FancyArrowPatch((source, 0), (node, 0), connectionstyle=f"arc3,rad={-bend}", **form))
    box = {"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.9}
    middle, height = (source + node) / 2, bend * (node - source) / 2
    text = operation.replace("_", "_\n", 1) if node - source == 1 else operation
    axes.text(middle, height or 0.1, text, ha="center", va="center" if bend else "bottom", fontsize=7, bbox=box)


def draw_chain(axes: Axes, operations: Sequence[str]) -> None:
    """Draw the operations of a chain as a row of boxes."""
    colours = colours_of(operations)
    for place, operation in enumerate(operations):
        axes.bar(place, 1, width=0.9, color=colours[operation], alpha=0.6)
        axes.text(place, 0.5, operation, rotation=90, ha="center", va="center", fontsize=8)
    axes.axis("off")


def panels(supernet: Supernet, mixtures: Sequence[Mapping[str, ArrayLike]]) -> list[Panel]:
    """Return the mixture of every edge over time.

    Args:
        supernet: which was searched.
        mixtures: what its ``mixture`` gave after every epoch.
    """
    made = []
    for kind, operations in supernet.operations.items():
        weights = np.array([mixture[kind] for mixture in mixtures])  # (T, edges, operations)
        names = edge_names(supernet, kind, weights.shape[1])
        made += [Panel(name, operations, weights[:, edge]) for edge, name in enumerate(names)]
    return made


def edge_names(supernet: Supernet, kind: str, count: int) -> list[str]:
    """Return the names of the edges of a kind of cell; the states before the first node are called in."""
    graph = next((module.graph for module in supernet.modules() if isinstance(module, MixedCell)), None)
    if graph is None:
        return [kind] if count == 1 else [f"{kind} {number}" for number in range(count)]
    before = f"{kind} " if len(supernet.operations) > 1 else ""
    names = [f"in {number}" if graph.inputs > 1 else "in" for number in range(graph.inputs)]
    names += [str(node + 1) for node in range(graph.nodes)]
    return [f"{before}{names[source]} → {node + 1}" for source, node in graph.edges]


def alpha_plot(panels: Sequence[Panel]) -> Plot:
    """Return the mixture weights over time, a panel for each edge."""
    columns = min(len(panels), NARROW if len(panels) <= MANY else WIDE)
    rows = math.ceil(len(panels) / columns)
    colours = colours_of([name for panel in panels for name in panel.operations])
    plot = Plot(figsize=(2.3 * columns, 1.5 * rows + 0.7), layout="constrained")
    lines: dict[str, Any] = {}
    for number, axes in enumerate(plot.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat):
        if number >= len(panels):
            axes.axis("off")
            continue
        for name, weights in zip(panels[number].operations, panels[number].weights.T):
            [lines[name]] = axes.plot(weights, color=colours[name], linewidth=1.3)
        axes.set_title(panels[number].name, fontsize=8)
        axes.tick_params(labelsize=7)
    plot.supxlabel("epoch", fontsize=8)
    plot.supylabel("softmax(α)", fontsize=8)
    plot.legend(lines.values(), lines.keys(), loc="outside upper center", ncols=4, fontsize=7)
    return plot


def class_plot(kept: Mapping[str, NDArray[np.integer]], names: Sequence[str]) -> Plot:
    """Return how many samples of each class are used in each epoch, a panel for each level.

    Args:
        kept: level → ``(T, classes)``.
        names: of the classes.
    """
    plot = Plot(figsize=(6.8, 2.8), layout="constrained")
    panels = plot.subplots(1, len(kept), sharey=True, squeeze=False)
    for axes, (level, counts) in zip(panels.flat, kept.items()):
        axes.stackplot(range(len(counts)), counts.T, labels=names, colors=COLOURS, alpha=0.8)
        axes.set_title(level, fontsize=9)
        axes.set_xlabel("epoch", fontsize=8)
        axes.tick_params(labelsize=7)
    panels.flat[0].set_ylabel("samples", fontsize=8)
    plot.legend(*panels.flat[0].get_legend_handles_labels(), loc="outside right center", fontsize=7)
    return plot
