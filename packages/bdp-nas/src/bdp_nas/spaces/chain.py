"""Spaces in which a network is a chain of blocks, one operation of several in each."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from bdp_nas.spaces.cell import sum_of
from bdp_nas.spaces.space import Derived, Mix, Network, Size, Space, Supernet, first_largest, load, refuse_auxiliary


@dataclass(frozen=True)
class Place:
    """Where a block stands.

    Args:
        inputs: channels.
        outputs: channels.
        stride: of the block.
        operations: those that it may be.
    """

    inputs: int
    outputs: int
    stride: int
    operations: tuple[str, ...]


class MixedBlock(nn.Module):
    """The mixture Σ_k w_k · op_k(x)."""

    def __init__(self, operations: dict[str, nn.Module]) -> None:
        super().__init__()
        self.operations = nn.ModuleDict(operations)

    def forward(self, x: Tensor, mix: Mix) -> Tensor:
        """Map ``(B, C, H, W)`` to ``(B, C', H', W')``."""
        (weights,), _ = mix
        return sum_of([weight * operation(x) for weight, operation in zip(weights, self.operations.values())])


class ChosenBlock(Derived):
    """The operation of a genotype."""

    def __init__(self, name: str, operation: nn.Module) -> None:
        super().__init__()
        self.name, self.operation = name, operation

    def forward(self, x: Tensor, drop: float) -> Tensor:
        """Map ``(B, C, H, W)`` to ``(B, C', H', W')``."""
        return self.operation(x, drop)

    def inherit(self, mixture: nn.Module) -> None:
        """Take the weights of this operation from the supernet's block."""
        assert isinstance(mixture, MixedBlock)
        load(self.operation, mixture.operations[self.name].state_dict())


class ChainSkeleton(nn.Module):
    """Stem, blocks, head with the classifier."""

    def __init__(self, stem: nn.Module, blocks: Sequence[nn.Module], head: nn.Module) -> None:
        super().__init__()
        self.stem, self.blocks, self.head = stem, nn.ModuleList(blocks), head

    def forward(self, x: Tensor, *choices: Mix | float) -> Tensor:
        """Map images to logits; blocks are told a mix each, or all of them the chance to drop a path."""
        x = self.stem(x)
        for number, block in enumerate(self.blocks):
            x = block(x, choices[number % len(choices)])
        return self.head(x)


class ChainSpace(Space):
    """A space of chains; says what blocks there are, and how stem, operations and head are built."""

    @abstractmethod
    def places(self, size: Size) -> list[Place]:
        """Return the blocks to be chosen, from first to last."""

    @abstractmethod
    def operation(self, name: str, place: Place, affine: bool) -> nn.Module:
        """Return an operation at a place; it takes its input and a chance to drop a path."""

    @abstractmethod
    def stem(self, size: Size) -> nn.Module:
        """Return what comes before the blocks."""

    @abstractmethod
    def head(self, size: Size) -> nn.Module:
        """Return what comes after them, down to the logits."""

    @abstractmethod
    def genotype(self, operations: Sequence[str]) -> str:
        """Write one operation for each block as text."""

    def chosen(self, genotype: str, size: Size) -> list[str]:
        """Return the operation of each block.

        Raises:
            ValueError: not a genotype of this space and size.
        """
        operations, places = self.operations(genotype), self.places(size)
        if len(operations) != len(places):
            raise ValueError(f"genotype {genotype!r} has {len(operations)} blocks; allowed: {len(places)}")
        for number, (operation, place) in enumerate(zip(operations, places)):
            if operation not in place.operations:
                allowed = ", ".join(place.operations)
                raise ValueError(f"block {number} of genotype {genotype!r} is {operation!r}; allowed: {allowed}")
        return list(operations)

    def supernet(self, size: Size, partial: int = 1) -> "ChainSupernet":
        """Return a new supernet.

        Raises:
            ValueError: ``partial`` above 1: blocks change the number of channels, so none of them can pass by.
        """
        if partial != 1:
            raise ValueError(f"partial={partial!r} is not defined in the space {self.name}; allowed: 1")
        return ChainSupernet(self, size)

    def network(self, genotype: str, size: Size, auxiliary: bool = False) -> Network:
        """Return the new network of a genotype."""
        refuse_auxiliary(self, auxiliary)
        names = self.chosen(genotype, size)
        blocks = [
            ChosenBlock(name, self.operation(name, place, affine=True)) for name, place in zip(names, self.places(size))
        ]
        return Network(ChainSkeleton(self.stem(size), blocks, self.head(size)), self.genotype(names))


class ChainSupernet(Supernet):
    """All chains in one network: every block is the mixture of its operations."""

    def __init__(self, space: ChainSpace, size: Size) -> None:
        places = space.places(size)
        super().__init__(space, size, {f"block{number}": (p.operations, 1) for number, p in enumerate(places)})
        self.chain, self.places = space, places
        blocks = [
            MixedBlock({name: space.operation(name, place, affine=False) for name in place.operations})
            for place in self.places
        ]
        self.body = ChainSkeleton(space.stem(size), blocks, space.head(size))

    def genotype(self) -> str:
        """Return the operation with the largest α in every block."""
        columns = [first_largest(alpha[0].tolist()) for alpha in self.alpha.values()]
        return self.chain.genotype([place.operations[column] for place, column in zip(self.places, columns)])

    def choices(self, genotype: str) -> dict[str, list[int]]:
        """Return the number of the operation in every block."""
        names = self.chain.chosen(genotype, self.size)
        columns = [place.operations.index(name) for place, name in zip(self.places, names)]
        return {name: [column] for name, column in zip(self.alpha, columns)}
