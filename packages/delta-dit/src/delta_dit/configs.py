"""The options of every command, and their only defaults. Nothing here imports torch."""

from dataclasses import dataclass
from pathlib import Path

from frugal_shared.config import RunConfig
from frugal_shared.errors import check_positive, check_range


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
        check_positive(self, "steps", "batch_size", "blocks", "heads", "save_every", "learning_rate")


@dataclass(frozen=True, kw_only=True)
class TrainJudgeConfig(RunConfig):
    """Train the judge: the classifier that reads the embedded model's pictures."""

    output_dir: Path = Path("runs/train-judge")
    """The run folder; the weights are its judge.safetensors."""
    steps: int = 1500
    """Optimizer steps."""
    batch_size: int = 128
    """Images per step."""
    learning_rate: float = 2e-3
    """Start of the cosine."""

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        check_positive(self, "steps", "batch_size", "learning_rate")


@dataclass(frozen=True, kw_only=True)
class DemoConfig(RunConfig):
    """Draw the same seeds uncached, with fewer steps, and with the Δ-cache, and compare."""

    output_dir: Path = Path("runs/delta-dit")
    """The run folder: results, samples and report.html."""
    samples: int = 400
    """Images per method."""
    batch_size: int = 40
    """Images drawn at once."""
    steps: int = 20
    """Sampling steps of the reference."""
    speedup: float = 1.6
    """How many times fewer block evaluations."""
    repeats: int = 4
    """Timed pairs per method."""

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        check_positive(self, "samples", "batch_size", "steps", "repeats")
        check_range("speedup", self.speedup, 1, self.steps)
