"""PC-DARTS: mixes a share of the channels, and normalises edges (arXiv 1907.05737)."""

from dataclasses import KW_ONLY, dataclass

from bdp_nas.searchers.darts import Darts
from bdp_nas.spaces.space import Size, Space, Supernet


@dataclass
class PCDarts(Darts):
    """First-order DARTS on partial channels; α and β rest while the weights warm up.

    Published: weights with batch 256 and a learning rate of 0.1 → 0, 50 epochs, of which 15 warm up.

    Args:
        learning_rate: of Adam for α and β.
        partial: K; the first 1/K of the channels are mixed. Larger is faster; must divide the channels.
        warm_up: share of the epochs before the architecture learns, in [0, 1).

    Raises:
        ValueError: an option that is not possible.
    """

    _: KW_ONLY
    learning_rate: float = 6e-4
    partial: int = 4
    warm_up: float = 0.3

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        if self.partial < 2:
            raise ValueError(f"partial={self.partial!r} is not possible; allowed: 2 or more")
        if not 0 <= self.warm_up < 1:
            raise ValueError(f"warm_up={self.warm_up!r} is not possible; allowed: 0 to below 1")

    def supernet(self, space: Space, size: Size) -> Supernet:
        """Return a supernet with partial channels and edge normalisation."""
        return space.supernet(size, self.partial)

    def active(self, progress: float) -> bool:
        """Return whether the weights are warm."""
        return progress >= self.warm_up
