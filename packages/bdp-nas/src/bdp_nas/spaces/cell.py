"""A cell as a graph: every node takes an edge from every state before it.

``MixedCell`` has all operations on every edge, mixed; ``DerivedCell`` has those of a genotype. Edges are numbered node
by node, and by source within a node. Whatever leaves one state is computed together: the ReLU and the pools once, the
plain convolutions of all its edges as one, ``none`` not at all. The outcome is that of one module per edge.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bdp_nas.genotype import NONE, Cell
from bdp_nas.spaces.operations import BUILDERS, KERNELS, Activated, ReLUConvBN, channel_shuffle, drop_path
from bdp_nas.spaces.space import Derived, Mix, load


@dataclass(frozen=True)
class Graph:
    """The edges of a cell.

    Args:
        inputs: number of states that come from outside.
        nodes: number of states that the cell computes.
    """

    inputs: int
    nodes: int

    @cached_property
    def edges(self) -> tuple[tuple[int, int], ...]:
        """(Source state, node) of every edge."""
        return tuple((source, node) for node in range(self.nodes) for source in range(self.inputs + node))

    @property
    def arriving(self) -> tuple[int, ...]:
        """Number of edges that arrive at every node."""
        return tuple(self.inputs + node for node in range(self.nodes))

    def leaving(self, source: int) -> tuple[int, ...]:
        """Return the numbers of the edges that leave a state."""
        return tuple(edge for edge, (start, _) in enumerate(self.edges) if start == source)


class MixedEdges(nn.Module):
    """The mixtures Σ_k w_ek · op_k(x) on all edges e that leave one state x.

    Args:
        operations: their names, the columns of α.
        channels: C.
        stride: of all operations.
        edges: E, the number of edges.
        partial: K; only the first C/K channels are mixed, the others pass by (at stride 2 through a max pool), and all
            are shuffled (PC-DARTS, arXiv 1907.05737, §3.2).
        norm_pools: whether a batch norm follows every pool, as in the DARTS space.
    """

    def __init__(
        self, operations: Sequence[str], channels: int, stride: int, edges: int, partial: int, norm_pools: bool
    ) -> None:
        super().__init__()
        if channels % partial:
            raise ValueError(f"{channels} channels do not split into partial={partial!r} parts; allowed: a divisor")
        self.edges, self.partial, self.mixed, self.stride = edges, partial, channels // partial, stride
        self.columns = {name: column for column, name in enumerate(operations) if name != NONE}
        self.operations = nn.ModuleDict({name: self._operation(name, norm_pools) for name in self.columns})

    def _operation(self, name: str, norm_pools: bool) -> nn.Module:
        """Return one module for all edges, or a list of one for each."""
        if name in KERNELS:
            return ReLUConvBN(self.mixed, self.mixed, KERNELS[name], self.stride, affine=False, copies=self.edges)
        made = [BUILDERS[name](self.mixed, self.stride, affine=False) for _ in range(self.edges)]
        if any(True for _ in made[0].parameters()):
            return nn.ModuleList(made)
        if norm_pools and "pool" in name:
            return nn.Sequential(made[0], nn.BatchNorm2d(self.mixed, affine=False))
        return made[0]

    def forward(self, x: Tensor, weights: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        """Return the mixture of every edge.

        Args:
            x: ``(B, C, H, W)``.
            weights: for every edge the weight of each operation, scalars.
        """
        part, rest = x.split([self.mixed, x.shape[1] - self.mixed], dim=1) if self.partial > 1 else (x, None)
        activated = F.relu(part)
        outputs = {column: self._run(name, part, activated) for name, column in self.columns.items()}
        mixtures = [
            sum_of([row[k] * values[edge] for k, values in outputs.items()]) for edge, row in enumerate(weights)
        ]
        if rest is None:
            return mixtures
        if self.stride > 1:
            rest = F.max_pool2d(rest, 2, ceil_mode=True)
        return [channel_shuffle(torch.cat([mixture, rest], dim=1), self.partial) for mixture in mixtures]

    def _run(self, name: str, x: Tensor, activated: Tensor) -> Sequence[Tensor]:
        """Return an operation's output on every edge."""
        operation = self.operations[name]
        if isinstance(operation, ReLUConvBN):
            return operation.body(activated).chunk(self.edges, dim=1)
        if isinstance(operation, nn.ModuleList):
            return [one.body(activated) if isinstance(one, Activated) else one(x) for one in operation]
        return [operation(x)] * self.edges

    def weights_of(self, name: str, edge: int) -> dict[str, Tensor]:
        """Return the state of an operation on one edge."""
        operation = self.operations[name]
        if isinstance(operation, nn.ModuleList):
            return operation[edge].state_dict()
        if isinstance(operation, ReLUConvBN):
            state = operation.state_dict().items()
            return {key: value.chunk(self.edges)[edge] if value.ndim else value for key, value in state}
        return {}


class MixedCell(nn.Module):
    """All operations on every edge of a graph.

    Args:
        graph: its edges.
        operations: their names, the columns of α.
        channels: of every state.
        stride: stride of the edges that leave each state.
        partial: see :class:`MixedEdges`.
        norm_pools: see :class:`MixedEdges`.
    """

    def __init__(
        self,
        graph: Graph,
        operations: Sequence[str],
        channels: int,
        stride: Callable[[int], int] = lambda source: 1,
        partial: int = 1,
        norm_pools: bool = False,
    ) -> None:
        super().__init__()
        self.graph = graph
        self.sources = nn.ModuleList(
            MixedEdges(operations, channels, stride(source), len(graph.leaving(source)), partial, norm_pools)
            for source in range(graph.inputs + graph.nodes - 1)
        )

    def forward(self, states: Sequence[Tensor], mix: Mix) -> list[Tensor]:
        """Return the sum that arrives at every node.

        Args:
            states: those from outside, ``(B, C, H, W)`` each.
            mix: for every edge the weight of each operation; and the weight of every edge, or None for 1.
        """
        weights, edges = mix
        states, inputs = list(states), self.graph.inputs
        arrived: list[list[Tensor]] = [[] for _ in range(self.graph.nodes)]
        for source, mixed in enumerate(self.sources):
            if source >= inputs:
                states.append(sum_of(arrived[source - inputs]))
            leaving = self.graph.leaving(source)
            for edge, value in zip(leaving, mixed(states[source], [weights[edge] for edge in leaving])):
                arrived[self.graph.edges[edge][1]].append(value if edges is None else edges[edge] * value)
        return [*states[inputs:], sum_of(arrived[-1])]

    def weights_of(self, operation: str, source: int, node: int) -> dict[str, Tensor]:
        """Return the state of an operation on the edge from a state to a node."""
        edges = self.sources[source]
        assert isinstance(edges, MixedEdges)
        return edges.weights_of(operation, self.graph.leaving(source).index(self.graph.edges.index((source, node))))


class DerivedCell(Derived):
    """The operations of a genotype on the edges of a graph.

    Args:
        graph: its edges.
        cell: the genotype.
        channels: of every state.
        stride: stride of the edges that leave each state.
    """

    def __init__(
        self, graph: Graph, cell: Cell, channels: int, stride: Callable[[int], int] = lambda source: 1
    ) -> None:
        super().__init__()
        self.graph = graph
        self.chosen = [
            (operation, source, node)
            for node, edges in enumerate(cell)
            for operation, source in edges
            if operation != NONE
        ]
        self.operations = nn.ModuleList(
            BUILDERS[operation](channels, stride(source), affine=True) for operation, source, _ in self.chosen
        )

    def forward(self, states: Sequence[Tensor], drop: float) -> list[Tensor]:
        """Return the sum that arrives at every node, 0 if nothing does.

        Args:
            states: those from outside, ``(B, C, H, W)`` each.
            drop: chance to drop the output of an operation that is not the identity, for each sample.
        """
        states = list(states)
        for node in range(self.graph.nodes):
            arrived = [
                run(operation, states[source], drop)
                for operation, (_, source, end) in zip(self.operations, self.chosen)
                if end == node
            ]
            states.append(sum_of(arrived) if arrived else torch.zeros_like(states[0]))
        return states[self.graph.inputs :]

    def inherit(self, mixture: nn.Module) -> None:
        """Take the weights of the chosen operations from the supernet's cell."""
        assert isinstance(mixture, MixedCell)
        for operation, chosen in zip(self.operations, self.chosen):
            load(operation, mixture.weights_of(*chosen))


def run(operation: nn.Module, x: Tensor, drop: float) -> Tensor:
    """Run an operation, and drop its output with this chance unless it is the identity."""
    return x if isinstance(operation, nn.Identity) else drop_path(operation(x), drop)


def sum_of(values: Sequence[Tensor]) -> Tensor:
    """Add from first to last: unlike ``sum``, without beginning at 0."""
    total = values[0]
    for value in values[1:]:
        total = total + value
    return total
