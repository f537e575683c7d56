"""NAS-Bench-201: one cell of 4 nodes and 6 edges with 5 operations, 15,625 architectures (arXiv 2001.00326).

A genotype is the benchmark's own text, ``|op~0|+|op~0|op~1|+|op~0|op~1|op~2|``, its index the benchmark's own number.
``Size.channels`` is the width of the first stage (published: 16), ``Size.cells`` the cells in each of the three stages
(published: 5). Follows github.com/D-X-Y/AutoDL-Projects (MIT).
"""

import functools
import itertools
import random
from collections.abc import Callable

from torch import Tensor, nn

from bdp_nas.genotype import Cell, format_cell, parse_cell
from bdp_nas.spaces.cell import DerivedCell, Graph, MixedCell
from bdp_nas.spaces.operations import ReLUConvBN, conv
from bdp_nas.spaces.space import Mix, Network, Size, Space, Supernet, first_largest, refuse_auxiliary

OPERATIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
GRAPH = Graph(inputs=1, nodes=3)
CELL = "cell"


@functools.cache
def benchmark_order() -> tuple[tuple[int, ...], ...]:
    """Return the operations of all architectures by index: the benchmark shuffled all products with the seed 88."""
    architectures = list(itertools.product(range(len(OPERATIONS)), repeat=len(GRAPH.edges)))
    random.Random(88).shuffle(architectures)
    return tuple(architectures)


@functools.cache
def benchmark_index() -> dict[tuple[int, ...], int]:
    """Return the index of every architecture's operations."""
    return {operations: index for index, operations in enumerate(benchmark_order())}


def columns_to_genotype(columns: tuple[int, ...]) -> str:
    """Write the operations on the 6 edges as text."""
    edges = [(OPERATIONS[column], source) for column, (source, _) in zip(columns, GRAPH.edges)]
    return format_cell((tuple(edges[:1]), tuple(edges[1:3]), tuple(edges[3:])))


def genotype_to_columns(genotype: str) -> tuple[int, ...]:
    """Return the number of the operation on each of the 6 edges.

    Raises:
        ValueError: not a genotype of this space.
    """
    cell = parse_cell(genotype, OPERATIONS)
    if tuple((source, node) for node, edges in enumerate(cell) for _, source in edges) != GRAPH.edges:
        raise ValueError(f"cell {genotype!r} has other edges; allowed: |op~0|+|op~0|op~1|+|op~0|op~1|op~2|")
    return tuple(OPERATIONS.index(operation) for edges in cell for operation, _ in edges)


def index_to_genotype(index: int) -> str:
    """Return the genotype with the benchmark's number ``index``.

    Raises:
        ValueError: no such number.
    """
    if not 0 <= index < len(benchmark_order()):
        raise ValueError(f"index {index!r} is not in the space; allowed: 0 to {len(benchmark_order()) - 1}")
    return columns_to_genotype(benchmark_order()[index])


def genotype_to_index(genotype: str) -> int:
    """Return the benchmark's number of a genotype.

    Raises:
        ValueError: not a genotype of this space.
    """
    return benchmark_index()[genotype_to_columns(genotype)]


def parameter_count(genotype: str, size: Size) -> int:
    """Return the number of parameters of a genotype's network, without building it.

    Every convolution with its batch norm, k²·C·C' + 2C', over the stem, the cells of three stages and the two blocks
    between them (two 3×3 convolutions and a shortcut without batch norm), then a batch norm and the classifier. For the
    published size and 10 classes: 73,306 + 28,000 for each 1×1 and 243,040 for each 3×3 convolution in the cell.
    """
    chosen = [OPERATIONS[column] for column in genotype_to_columns(genotype)]
    ones, threes = chosen.count("nor_conv_1x1"), chosen.count("nor_conv_3x3")
    widths = [size.channels * 2**stage for stage in range(3)]
    stem = 9 * size.in_channels * size.channels + 2 * size.channels
    cells = size.cells * sum(ones * (c * c + 2 * c) + threes * (9 * c * c + 2 * c) for c in widths)
    between = sum((9 * c * d + 2 * d) + (9 * d * d + 2 * d) + c * d for c, d in itertools.pairwise(widths))
    return stem + cells + between + 2 * widths[-1] + (widths[-1] + 1) * size.classes


class ReducingBlock(nn.Module):
    """The residual block between stages: halves the size, changes the width."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            ReLUConvBN(inputs, outputs, 3, 2, affine=True), ReLUConvBN(outputs, outputs, 3, affine=True)
        )
        self.shortcut = nn.Sequential(nn.AvgPool2d(2, ceil_mode=True), conv(inputs, outputs, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, C, H, W)`` to ``(B, C', ⌈H/2⌉, ⌈W/2⌉)``."""
        return self.body(x) + self.shortcut(x)


class NASBench201Skeleton(nn.Module):
    """Stem, three stages of cells with a reducing block before the second and third, classifier."""

    def __init__(self, size: Size, cell: Callable[[int], nn.Module]) -> None:
        super().__init__()
        width = size.channels
        self.stem = nn.Sequential(conv(size.in_channels, width, 3), nn.BatchNorm2d(width))
        self.layers = nn.ModuleList(cell(width) for _ in range(size.cells))
        for _ in range(2):
            self.layers.append(ReducingBlock(width, 2 * width))
            width = 2 * width
            self.layers.extend(cell(width) for _ in range(size.cells))
        self.last = nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.classifier = nn.Linear(width, size.classes)

    def forward(self, x: Tensor, choice: Mix | float) -> Tensor:
        """Map images to logits; every cell is told its mix, or the chance to drop a path."""
        x = self.stem(x)
        for layer in self.layers:
            x = layer(x) if isinstance(layer, ReducingBlock) else layer([x], choice)[-1]
        return self.classifier(self.last(x))


class NASBench201Supernet(Supernet):
    """All architectures of the space in one network; batch norms in cells have no scale of their own beside α."""

    def __init__(self, space: Space, size: Size, partial: int = 1) -> None:
        super().__init__(space, size, {CELL: (OPERATIONS, len(GRAPH.edges))}, partial, GRAPH.arriving)
        self.body = NASBench201Skeleton(size, lambda width: MixedCell(GRAPH, OPERATIONS, width, partial=partial))

    def genotype(self) -> str:
        """Return the operation with the largest α on every edge, ``none`` included."""
        return columns_to_genotype(tuple(first_largest(row) for row in self.alpha[CELL].tolist()))

    def choices(self, genotype: str) -> dict[str, list[int]]:
        """Return the number of the operation on every edge."""
        return {CELL: list(genotype_to_columns(genotype))}


class NASBench201Space(Space):
    """The space of NAS-Bench-201."""

    name = "nasbench201"
    skip = "skip_connect"

    def operations(self, genotype: str) -> tuple[str, ...]:
        """Return the operations on the 6 edges."""
        return tuple(OPERATIONS[column] for column in genotype_to_columns(genotype))

    def cells(self, genotype: str) -> dict[str, Cell]:
        """Return the one cell."""
        return {CELL: parse_cell(columns_to_genotype(genotype_to_columns(genotype)), OPERATIONS)}

    def supernet(self, size: Size, partial: int = 1) -> NASBench201Supernet:
        """Return a new supernet."""
        return NASBench201Supernet(self, size, partial)

    def network(self, genotype: str, size: Size, auxiliary: bool = False) -> Network:
        """Return the new network of a genotype; it has the parameters of the benchmark's, dead edges included."""
        refuse_auxiliary(self, auxiliary)
        cell = self.cells(genotype)[CELL]
        return Network(NASBench201Skeleton(size, lambda width: DerivedCell(GRAPH, cell, width)), format_cell(cell))
