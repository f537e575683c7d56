"""The options of every command, and their only defaults. Nothing here imports torch."""

from dataclasses import dataclass
from pathlib import Path

from frugal_shared.config import RunConfig
from frugal_shared.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class TrainDemoConfig(RunConfig):
    """Train the embedded model: a small class-conditional DiT on textured digits."""

    output_dir: Path = Path("runs/train-demo")
    """The run folder; the finished pipeline is its subfolder "pipeline"."""
    steps: int = 6000
    """Optimizer steps."""
    batch_size: int = 128
    """Global batch: the processes share it."""
    learning_rate: float = 1.2e-3
    """Peak of the cosine, after the warm-up."""
    blocks: int = 12
    """Transformer blocks."""
    heads: int = 4
    """Attention heads, 32 wide each."""
    save_every: int = 200
    """Steps between checkpoints."""

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        for name in ("steps", "batch_size", "blocks", "heads", "save_every"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name}={getattr(self, name)!r} is not possible; allowed: 1 or more")
        if not 0 < self.learning_rate < 1:
            raise UsageError(f"learning_rate={self.learning_rate!r} is not possible; allowed: above 0, below 1")
