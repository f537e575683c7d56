"""What every search space offers: a supernet to search in, and the network that a genotype stands for."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bdp_nas.genotype import Cell, is_dead

ONE_HOT = -1e4
"""α of the operations that are not chosen: its exponential is 0, and unlike −∞ it survives an optimizer's decay."""


@dataclass(frozen=True)
class Size:
    """How large a supernet or a network is.

    Args:
        classes: number of classes.
        channels: width, as the space defines it.
        cells: depth, as the space defines it.
        in_channels: channels of the images.

    Raises:
        ValueError: a number below 1.
    """

    classes: int
    channels: int
    cells: int
    in_channels: int = 3

    def __post_init__(self) -> None:
        """Check the values."""
        for name, value in asdict(self).items():
            if value < 1:
                raise ValueError(f"{name}={value!r} is not possible; allowed: 1 or more")


class Network(nn.Module):
    """The network that a genotype stands for, to be trained from scratch.

    Args:
        body: what runs; takes the images and the chance to drop a path.
        genotype: what it was made from.
    """

    drop_path: float = 0.0
    """Chance with which, in training, an operation's output is dropped for a sample; a schedule may raise it."""

    def __init__(self, body: nn.Module, genotype: str) -> None:
        super().__init__()
        self.body = body
        self.genotype = genotype

    def forward(self, images: Tensor) -> Any:
        """Map images ``(B, C, H, W)`` to logits ``(B, classes)``, in training with an auxiliary head to both logits."""
        return self.body(images, self.drop_path if self.training else 0.0)


class Derived(nn.Module, ABC):
    """The part of a network that a genotype decides; it stands where the supernet has its mixture."""

    @abstractmethod
    def inherit(self, mixture: nn.Module) -> None:
        """Take the weights of the chosen operations from the supernet's mixture."""


Mix = tuple[Sequence[Sequence[Tensor]], Sequence[Tensor] | None]
"""Weights of a cell's mixture: of every operation on every edge, and of every edge, if edges are normalised."""


class Supernet(nn.Module, ABC):
    """A network whose operations are mixed with the weights softmax(α), row by row.

    A subclass sets ``body``, which takes the images and the mix of every kind of cell.

    Args:
        space: where it searches.
        size: of the supernet.
        operations: name of each kind of cell → operations on each of its edges; α has a row per edge.
        partial: K, the share 1/K of channels that is mixed (PC-DARTS); above 1 it needs ``nodes``.
        nodes: the edges that arrive at each node, for edge normalisation (β) if ``partial`` is above 1.
    """

    body: nn.Module

    def __init__(
        self,
        space: "Space",
        size: Size,
        operations: Mapping[str, tuple[tuple[str, ...], int]],
        partial: int = 1,
        nodes: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.space, self.size, self.partial, self.nodes = space, size, partial, tuple(nodes)
        self.operations = {name: names for name, (names, _) in operations.items()}
        # pairs, because a ParameterDict sorts the names of a dict
        self.alpha = nn.ParameterDict(
            [(name, 1e-3 * torch.randn(edges, len(names))) for name, (names, edges) in operations.items()]
        )
        normed = operations.items() if partial > 1 else ()
        self.beta = nn.ParameterDict([(name, 1e-3 * torch.randn(edges)) for name, (_, edges) in normed])

    def alphas(self) -> list[nn.Parameter]:
        """Return the architecture's parameters: every α ``(edges, operations)``, then every β ``(edges,)``."""
        return [*self.alpha.values(), *self.beta.values()]

    def named_weights(self) -> dict[str, nn.Parameter]:
        """Return all other parameters by name; an optimizer of the weights must get these alone."""
        return {name: value for name, value in self.named_parameters() if not name.startswith(("alpha.", "beta."))}

    def weights(self) -> list[nn.Parameter]:
        """Return all parameters that are not the architecture's."""
        return list(self.named_weights().values())

    def mixture(self) -> dict[str, Tensor]:
        """Return softmax(α) of each kind of cell, ``(edges, operations)``, rows that sum to 1."""
        return {name: alpha.softmax(-1) for name, alpha in self.alpha.items()}

    def edge_mixture(self) -> dict[str, Tensor]:
        """Return softmax(β) within each node, of each kind of cell, ``(edges,)``; empty without edge normalisation."""
        return {
            name: torch.cat([part.softmax(0) for part in beta.split(self.nodes)]) for name, beta in self.beta.items()
        }

    def mixes(self) -> list[Mix]:
        """Return the mixture in the form that cells take: unbound once, since a view per edge costs a kernel each."""
        edges = {name: weights.unbind() for name, weights in self.edge_mixture().items()}
        return [
            ([row.unbind() for row in weights.unbind()], edges.get(name)) for name, weights in self.mixture().items()
        ]

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``(B, C, H, W)`` to logits ``(B, classes)``."""
        return self.body(images, *self.mixes())

    @abstractmethod
    def genotype(self) -> str:
        """Return the architecture that α stands for, equal weights decided in favour of what comes first."""

    @abstractmethod
    def choices(self, genotype: str) -> dict[str, list[int]]:
        """Return which operation a genotype has on every edge, by kind of cell, as columns of α."""

    @torch.no_grad()
    def fix(self, genotype: str) -> None:
        """Make softmax(α) one-hot, so that the supernet computes one architecture with the weights it has.

        Raises:
            ValueError: the genotype is none of this supernet.
        """
        for name, columns in self.choices(genotype).items():
            alpha = self.alpha[name]
            alpha.fill_(ONE_HOT)
            alpha[range(len(columns)), columns] = 0.0

    def derive(self, genotype: str | None = None) -> Network:
        """Return the network of a genotype, by default of this supernet's, with the supernet's weights.

        Its batch norms have a scale and a shift, 1 and 0; their running statistics are those of the mixture, so they
        need :func:`calibrate` or training before the network is evaluated.

        Raises:
            ValueError: the genotype is none of this supernet, or its operations have fewer channels (``partial``).
        """
        if self.partial > 1:
            raise ValueError(f"operations with partial={self.partial} have other weights; allowed: 1")
        network = self.space.network(genotype or self.genotype(), self.size)
        own = self.state_dict()
        load(network, {name: own[name] for name in network.state_dict() if name in own})
        for name, part in network.named_modules():
            if isinstance(part, Derived):
                part.inherit(self.get_submodule(name))
        return network.to(next(self.parameters()))


class Space(ABC):
    """A set of architectures."""

    name: ClassVar[str]
    skip: ClassVar[str]
    """The operation that does nothing; too many of it mean that the search has collapsed."""

    @abstractmethod
    def operations(self, genotype: str) -> tuple[str, ...]:
        """Return the operation on every edge of a genotype, in the order of its text.

        Raises:
            ValueError: a genotype that does not parse.
        """

    def cells(self, genotype: str) -> dict[str, Cell]:
        """Return the cells of a genotype by name; none where it is a chain of blocks.

        Raises:
            ValueError: a genotype that does not parse.
        """
        return {}

    def is_dead(self, genotype: str) -> bool:
        """Return whether a cell of a genotype passes nothing on.

        Raises:
            ValueError: a genotype that does not parse.
        """
        return any(map(is_dead, self.cells(genotype).values()))

    @abstractmethod
    def supernet(self, size: Size, partial: int = 1) -> Supernet:
        """Return a new supernet.

        Args:
            size: of the supernet.
            partial: K: mix the first 1/K of the channels only, and normalise edges (PC-DARTS); 1: all.

        Raises:
            ValueError: the channels do not split into K parts.
        """

    @abstractmethod
    def network(self, genotype: str, size: Size, auxiliary: bool = False) -> Network:
        """Return the new network of a genotype.

        Args:
            genotype: what to build.
            size: of the network.
            auxiliary: whether, in training, a second head returns logits too.

        Raises:
            ValueError: a genotype that does not parse, or an auxiliary head where the space has none.
        """


@torch.no_grad()
def calibrate(network: nn.Module, images: Tensor, batch_size: int = 64) -> None:
    """Replace the running statistics of batch norms by their means over batches of these images.

    Args:
        network: as :meth:`Supernet.derive` returns it; afterwards in training mode.
        images: as the network takes them, ``(N, C, H, W)``.
        batch_size: images in a batch.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over batches
    network.train()
    for batch in images.split(batch_size):
        network(batch)
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum


def load(module: nn.Module, state: dict[str, Tensor]) -> None:
    """Load what a supernet has: all but the scales and shifts of batch norms, which it searches without."""
    module.load_state_dict(state, strict=False)


def first_largest(values: Sequence[float]) -> int:
    """Return the index of the largest value, the first of equal ones on every device."""
    return max(range(len(values)), key=values.__getitem__)


def refuse_auxiliary(space: Space, auxiliary: bool) -> None:
    """Refuse an auxiliary head for a space that was published without."""
    if auxiliary:
        raise ValueError(f"auxiliary=True is not defined in the space {space.name}; allowed: False")
