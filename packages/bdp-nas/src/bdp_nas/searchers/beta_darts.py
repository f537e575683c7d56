"""β-DARTS: keeps α from growing apart early (arXiv 2203.01665)."""

from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from bdp_nas.searchers.darts import Darts
from bdp_nas.spaces.space import Supernet


@dataclass
class BetaDarts(Darts):
    """First-order DARTS with L_val + λ · mean over edges of log Σ_k exp(α_ek); λ grows from 0 with the epochs.

    The gradient of the penalty is λ · softmax(α) / edges: the larger an operation's weight, the more it is held back.

    Args:
        strength: λ at the end. Published: 50 · epoch / 100 over 100 epochs on NAS-Bench-201.

    Raises:
        ValueError: an option that is not possible.
    """

    _: KW_ONLY
    strength: float = 50.0

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        if self.strength < 0:
            raise ValueError(f"strength={self.strength!r} is not possible; allowed: 0 or more")

    def penalty(self, supernet: Supernet, progress: float) -> Tensor:
        """Return λ times the mean over the edges of all cells."""
        edges = torch.cat([alpha.logsumexp(-1) for alpha in supernet.alpha.values()])
        return self.strength * progress * edges.mean()
