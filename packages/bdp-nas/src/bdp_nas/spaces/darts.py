"""The DARTS space: a normal and a reduction cell, 4 nodes each, 8 operations (arXiv 1806.09055, §2 and §3).

A genotype is ``normal=CELL reduce=CELL``, each node with two edges; state 0 is the cell before the last, 1 the last, 2
to 5 are the cell's own nodes. The text that the authors' code prints, ``Genotype(normal=[('sep_conv_3x3', 1), …``, is
read too. ``Size.channels`` is the width of the first cells (published: 16 to search, 36 to train), ``Size.cells`` the
number of all (8 and 20). Follows github.com/quark0/darts (Apache-2.0).
"""

import re
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bdp_nas.genotype import NONE, Cell, check_names, format_cell, parse_cell, sort_edges
from bdp_nas.spaces.cell import DerivedCell, Graph, MixedCell
from bdp_nas.spaces.operations import FactorizedReduce, ReLUConvBN, conv
from bdp_nas.spaces.space import Mix, Network, Size, Space, Supernet, first_largest

OPERATIONS = (
    "none",
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
)
GRAPH = Graph(inputs=2, nodes=4)
CELLS = ("normal", "reduce")
STEM = 3  # times the width of the first cells


def derive_cell(weights: Tensor) -> Cell:
    """Return the cell that a mixture stands for.

    Of each node the two edges with the largest weight of any operation but ``none``, on each its largest operation but
    ``none``; equal weights are decided in favour of what comes first.

    Args:
        weights: softmax(α), ``none`` included, ``(14, 8)``; with edge normalisation times softmax(β).
    """
    scores = [row[1:] for row in weights.tolist()]  # without none, the first
    cell = []
    for node in range(GRAPH.nodes):
        edges = [(edge, source) for edge, (source, end) in enumerate(GRAPH.edges) if end == node]
        kept = sorted(edges, key=lambda pair: -max(scores[pair[0]]))[:2]
        cell.append([(OPERATIONS[1 + first_largest(scores[edge])], source) for edge, source in kept])
    return sort_edges(cell)


def parse(genotype: str) -> tuple[Cell, Cell]:
    """Return the normal and the reduction cell.

    Raises:
        ValueError: not a genotype of this space.
    """
    if genotype.strip().startswith("Genotype("):
        cells = _parse_published(genotype)
    elif found := re.fullmatch(r"\s*normal=(\S+)\s+reduce=(\S+)\s*", genotype):
        cells = tuple(parse_cell(text, OPERATIONS[1:]) for text in found.groups())
    else:
        raise ValueError(f"genotype {genotype!r} does not parse; allowed: normal=CELL reduce=CELL")
    for cell in cells:
        _check(cell)
    return cells[0], cells[1]


def _parse_published(genotype: str) -> tuple[Cell, ...]:
    cells = []
    for name in CELLS:
        listed = re.search(rf"{name}=\[(.*?)\]", genotype)
        edges = re.findall(r"\(\s*'(\w+)',\s*(\d+)\s*\)", listed[1]) if listed else []
        check_names([operation for operation, _ in edges], OPERATIONS[1:])
        pairs = [(operation, int(source)) for operation, source in edges]
        cells.append(sort_edges(pairs[start : start + 2] for start in range(0, len(pairs), 2)))
    return tuple(cells)


def _check(cell: Cell) -> None:
    """Refuse a cell of another shape."""
    two_each = [len({source for _, source in node}) == len(node) == 2 for node in cell]
    if len(cell) != GRAPH.nodes or not all(two_each):
        raise ValueError(
            f"cell {format_cell(cell)!r} has other edges; allowed: {GRAPH.nodes} nodes with 2 sources each"
        )
    for node, edges in enumerate(cell):
        if max(source for _, source in edges) >= GRAPH.inputs + node:
            raise ValueError(f"node {node} of cell {format_cell(cell)!r} has a source that comes after it")


def format_genotype(normal: Cell, reduce: Cell) -> str:
    """Write both cells as text."""
    return f"normal={format_cell(normal)} reduce={format_cell(reduce)}"


class PairCell(nn.Module):
    """Brings the two states before a cell to its width, runs its graph, and joins the nodes."""

    def __init__(self, before: tuple[int, int], width: int, halve: bool, reduction: bool, affine: bool, make: Callable):
        super().__init__()
        self.older = (
            FactorizedReduce(before[0], width, affine=affine)
            if halve
            else ReLUConvBN(before[0], width, 1, affine=affine)
        )
        self.newer = ReLUConvBN(before[1], width, 1, affine=affine)
        self.graph = make(width, reduction)

    def forward(self, older: Tensor, newer: Tensor, choice: Mix | float) -> Tensor:
        """Map two states to one, ``(B, 4C, H, W)``."""
        return torch.cat(self.graph([self.older(older), self.newer(newer)], choice), dim=1)


class AuxiliaryHead(nn.Module):
    """The second classifier, two thirds up the network.

    At 8×8, the size with CIFAR, it averages windows of 5 at a distance of 3, as published; at other sizes quarters.
    """

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv(inputs, 128, 1),
            nn.BatchNorm2d(128),
            nn.ReLU(),
            nn.Conv2d(128, 768, 2, bias=False),
            nn.BatchNorm2d(768),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(768, classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, C, H, W)`` to logits ``(B, classes)``."""
        x = F.relu(x)
        return self.body(F.avg_pool2d(x, 5, 3) if x.shape[-2:] == (8, 8) else F.adaptive_avg_pool2d(x, 2))


class DartsSkeleton(nn.Module):
    """Stem, cells of which those at one and two thirds reduce, classifier.

    Args:
        size: of the network.
        make: (width, whether it reduces) → the graph of a cell.
        affine: whether the batch norms in cells have a scale and a shift.
        auxiliary: whether there is a second head.
    """

    def __init__(
        self, size: Size, make: Callable[[int, bool], nn.Module], affine: bool, auxiliary: bool = False
    ) -> None:
        super().__init__()
        self.thirds = (size.cells // 3, 2 * size.cells // 3)
        width = size.channels
        before = (STEM * width, STEM * width)
        self.stem = nn.Sequential(conv(size.in_channels, STEM * width, 3), nn.BatchNorm2d(STEM * width))
        self.cells, halve = nn.ModuleList(), False
        self.auxiliary = None
        for layer in range(size.cells):
            reduction = layer in self.thirds
            width = 2 * width if reduction else width
            self.cells.append(PairCell(before, width, halve, reduction, affine, make))
            before, halve = (before[1], GRAPH.nodes * width), reduction
            if auxiliary and layer == self.thirds[1]:
                self.auxiliary = AuxiliaryHead(before[1], size.classes)
        self.classifier = nn.Linear(before[1], size.classes)

    def forward(self, x: Tensor, *choices: Mix | float) -> Tensor | tuple[Tensor, Tensor]:
        """Map images to logits; cells are told the mix of their kind, or all of them the chance to drop a path."""
        older = newer = self.stem(x)
        second = None
        for layer, cell in enumerate(self.cells):
            older, newer = newer, cell(older, newer, choices[-1] if layer in self.thirds else choices[0])
            if self.training and self.auxiliary is not None and layer == self.thirds[1]:
                second = self.auxiliary(newer)
        logits = self.classifier(newer.mean((2, 3)))
        return logits if second is None else (logits, second)


def stride(reduction: bool) -> Callable[[int], int]:
    """Return the stride of the edges that leave each state: 2 from outside a reduction cell."""
    return lambda source: 2 if reduction and source < GRAPH.inputs else 1


class DartsSupernet(Supernet):
    """All architectures of the space in one network; a batch norm without scale follows every pool."""

    def __init__(self, space: Space, size: Size, partial: int = 1) -> None:
        cells = {name: (OPERATIONS, len(GRAPH.edges)) for name in CELLS}
        super().__init__(space, size, cells, partial, GRAPH.arriving)

        def make(width: int, reduction: bool) -> MixedCell:
            return MixedCell(GRAPH, OPERATIONS, width, stride(reduction), partial, norm_pools=True)

        self.body = DartsSkeleton(size, make, affine=False)

    def genotype(self) -> str:
        """Return the cells of the mixture, with edge normalisation of the product with softmax(β)."""
        mixture, edges = self.mixture(), self.edge_mixture()
        return format_genotype(
            *(derive_cell(mixture[name] * edges[name][:, None] if edges else mixture[name]) for name in CELLS)
        )

    def choices(self, genotype: str) -> dict[str, list[int]]:
        """Return the number of the operation on every edge, that of ``none`` where the genotype has no edge."""
        chosen: dict[str, list[int]] = {}
        for name, cell in zip(CELLS, parse(genotype)):
            names = {(source, node): operation for node, edges in enumerate(cell) for operation, source in edges}
            chosen[name] = [OPERATIONS.index(names.get(edge, NONE)) for edge in GRAPH.edges]
        return chosen


class DartsSpace(Space):
    """The space of DARTS."""

    name = "darts"
    skip = "skip_connect"

    def operations(self, genotype: str) -> tuple[str, ...]:
        """Return the 8 operations of the normal cell, then those of the reduction cell."""
        return tuple(operation for cell in parse(genotype) for node in cell for operation, _ in node)

    def cells(self, genotype: str) -> dict[str, Cell]:
        """Return the normal and the reduction cell."""
        return dict(zip(CELLS, parse(genotype)))

    def supernet(self, size: Size, partial: int = 1) -> DartsSupernet:
        """Return a new supernet."""
        return DartsSupernet(self, size, partial)

    def network(self, genotype: str, size: Size, auxiliary: bool = False) -> Network:
        """Return the new network of a genotype; pools have no batch norm here, unlike in the supernet."""
        normal, reduce = parse(genotype)

        def make(width: int, reduction: bool) -> DerivedCell:
            return DerivedCell(GRAPH, reduce if reduction else normal, width, stride(reduction))

        body = DartsSkeleton(size, make, affine=True, auxiliary=auxiliary)
        return Network(body, format_genotype(normal, reduce))
