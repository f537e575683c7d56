"""InfoBatch's manner: every epoch leaves out, at random, part of the samples that are learned well (arXiv 2303.04947).

A baseline behind the interface of :class:`~bdp_nas.pruner.BilevelPruner`. With the loss ℓ_i that sample i had when it
was last used, and the mean of a level's losses,

    sample i is left out of the next epoch with chance r, if ℓ_i < mean; else it stays
    those that stay although ℓ_i < mean weigh 1 / (1 − r): the gradient's expectation is that of all samples
    nothing is left out of the last (1 − δ) of the epochs

What is left out comes back, so the sets are not nested, and how much is left out follows from the losses, not from a
schedule. (Follows github.com/NUS-HPC-AI-Lab/InfoBatch; applying it at both levels of a search is ours.)
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from bdp_nas.processes import of_first
from bdp_nas.pruner import LEVELS, BilevelPruner, IndexedSubset
from bdp_nas.schedule import KeepSchedule

SHARE = 0.5
ANNEAL = 0.875


class InfoBatchPruner(BilevelPruner):
    """Prunes both levels in InfoBatch's manner.

    A loop that takes in :meth:`sample_weights` has InfoBatch's gradient; one that does not leans towards what is not
    yet learned.

    Args:
        data: yields a sample for an index.
        labels: ``(N,)``, the class of every sample of ``data``, integers from 0.
        weights: indices of the samples that train the weights.
        architecture: indices of the samples that train the architecture, others.
        make_loader: makes the loader of a data set, see :class:`~bdp_nas.pruner.BilevelPruner`.
        epochs: of the whole search.
        share: r in [0, 1), of the well-learned samples.
        anneal: δ in [0, 1], share of the epochs after which nothing is left out.
        seed: of the draws.

    Raises:
        ValueError: indices, labels or options that are not possible.
    """

    def __init__(
        self,
        data: Dataset[Any],
        labels: ArrayLike,
        weights: ArrayLike,
        architecture: ArrayLike,
        make_loader: Callable[[IndexedSubset], DataLoader[Any]],
        *,
        epochs: int,
        share: float = SHARE,
        anneal: float = ANNEAL,
        seed: int = 0,
    ) -> None:
        if not 0 <= share < 1:
            raise ValueError(f"share={share!r} is not possible; allowed: 0 to below 1")
        if not 0 <= anneal <= 1:
            raise ValueError(f"anneal={anneal!r} is not possible; allowed: 0 to 1")
        # a window of one epoch is the last loss
        everything, score = KeepSchedule(epochs, final=1.0), {"score": "loss", "window": 1}
        super().__init__(data, labels, weights, architecture, make_loader, schedule=everything, seed=seed, **score)
        self.epochs, self.share, self.anneal = epochs, share, anneal
        self._losses = torch.full((len(self.dynamics.scores()),), torch.nan)
        self._weights = torch.ones_like(self._losses)

    def relative_cost(self) -> float:
        """Return NaN: the losses decide how many samples are left out, so nobody knows before the run."""
        return float("nan")

    def sample_weights(self, indices: Tensor) -> Tensor:
        """Return what the losses of these samples weigh in the current epoch, ``(B,)``: 1 or 1 / (1 − r)."""
        return self._weights[indices.cpu()]

    def step(self) -> dict[str, int]:
        """End the epoch and draw the next one's samples. On N processes, all have to call it.

        Returns:
            How many samples each level uses in the next epoch.
        """
        self.dynamics.end_epoch()
        seen = self.dynamics.state_dict()["window"][:, 0]
        self._losses = torch.where(seen.isnan(), self._losses, seen)
        self._weights.fill_(1.0)
        for level, indices in self.sets.items():
            learned = self._learned(self._losses[indices])
            self._keeps[level] = of_first(self._draw(level, learned))
            self._weights[indices[learned & self._keeps[level]]] = 1 / (1 - self.share)
        return {level: int(keeps.sum()) for level, keeps in self._keeps.items()}

    def state_dict(self) -> dict[str, Tensor]:
        """Return everything that changes, as tensors."""
        own = {"last_losses": self._losses.clone(), "sample_weights": self._weights.clone()}
        return super().state_dict() | own

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on where a :meth:`state_dict` was taken.

        Raises:
            ValueError: it is of other sets of samples, or of another pruner.
        """
        if "last_losses" not in state:
            raise ValueError(f"a state with {', '.join(sorted(state))} is not of InfoBatch; allowed: its own")
        super().load_state_dict(state)
        self._losses, self._weights = state["last_losses"].clone(), state["sample_weights"].clone()

    def _learned(self, losses: Tensor) -> Tensor:
        """Return which samples may be left out, a mask; one that was never seen may not."""
        if self.epoch >= self.anneal * self.epochs:
            return torch.zeros(len(losses), dtype=torch.bool)
        return losses < losses.nanmean()

    def _draw(self, level: str, learned: Tensor) -> Tensor:
        # drawn from the epoch, not from a stream, so that nothing has to be kept for a resume
        generator = np.random.default_rng([self.seed, LEVELS.index(level), self.epoch])
        candidates = np.flatnonzero(learned.numpy())
        left_out = generator.choice(candidates, round(self.share * len(candidates)), replace=False)
        keeps = torch.ones(len(learned), dtype=torch.bool)
        keeps[torch.from_numpy(left_out)] = False
        return keeps
