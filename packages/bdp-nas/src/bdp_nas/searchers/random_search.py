"""Random search with shared weights, the control: what the search is worth beyond its supernet (arXiv 1902.07638)."""

from collections.abc import Iterable
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, ClassVar

import torch

from bdp_nas.searchers.searcher import Batch, Searcher, Step
from bdp_nas.spaces.space import Supernet


@dataclass
class RandomSearch(Searcher):
    """Before every step of the weights draws an architecture, which alone learns; in the end compares some.

    Args:
        seed: of the draws; they do not touch the global random state.
        samples: how many architectures :meth:`select` compares; 1 takes one unseen, which costs nothing.

    Raises:
        ValueError: an option that is not possible.
    """

    backward_passes: ClassVar[int] = 0

    _: KW_ONLY
    seed: int = 0
    samples: int = 100
    generator: torch.Generator = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        if self.samples < 1:
            raise ValueError(f"samples={self.samples!r} is not possible; allowed: 1 or more")
        self.generator = torch.Generator().manual_seed(self.seed)

    @torch.no_grad()
    def draw(self, supernet: Supernet) -> str:
        """Return an architecture, all equally likely, and fix the supernet to it.

        Independent equal α have no favourite, so neither has the genotype that follows from them.
        """
        for alpha in supernet.alphas():
            alpha.copy_(torch.randn(alpha.shape, generator=self.generator))
        genotype = supernet.genotype()
        supernet.fix(genotype)
        return genotype

    @torch.no_grad()
    def arch_step(
        self,
        supernet: Supernet,
        train: Batch,
        validation: Batch,
        alpha_optimizer: torch.optim.Optimizer,
        weight_optimizer: torch.optim.Optimizer,
        progress: float = 0.0,
    ) -> Step:
        """Draw an architecture; no optimizer steps."""
        self.draw(supernet)
        return self.evaluate(supernet, validation)

    @torch.no_grad()
    def select(self, supernet: Supernet, batches: Iterable[Batch]) -> str:
        """Return the architecture of the highest validation accuracy with the shared weights, the first of equal ones.

        Batches are normalised by their own statistics, since the running ones are those of all architectures at once.
        """
        drawn = [self.draw(supernet) for _ in range(self.samples)]
        if self.samples > 1:
            kept = list(batches)
            drawn.sort(key=lambda genotype: -self.accuracy(supernet, genotype, kept))
        supernet.fix(drawn[0])
        return drawn[0]

    def accuracy(self, supernet: Supernet, genotype: str, batches: Iterable[Batch]) -> float:
        """Return the share of samples on which an architecture is right, with the supernet's weights."""
        supernet.fix(genotype)
        counts = torch.zeros(2, dtype=torch.double)
        for batch in batches:
            hits = self.evaluate(supernet, batch).logits.argmax(1) == batch[1]
            counts += torch.tensor([hits.sum(), len(hits)])
        self.average([counts])
        return float(counts[0] / counts[1])

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the draws."""
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue the draws.

        Raises:
            ValueError: the state of another searcher.
        """
        if "generator" not in state:
            raise ValueError(f"a state with {sorted(state)} is not of random search; allowed: one with generator")
        self.generator.set_state(state["generator"])
