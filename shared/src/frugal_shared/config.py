"""What every run of every package can be told: the fields that the command lines share.

A run's options are one frozen dataclass that inherits from these. It is the only source of defaults: the command line
is generated from it, the Python API takes it, and the run's manifest stores it. Nothing here imports torch.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from frugal_shared.errors import UsageError

Tracker = Literal["tensorboard", "wandb", "trackio"]

YEAR = 525_600  # minutes


@dataclass(frozen=True, kw_only=True)
class CommandConfig:
    """Options of every command."""

    debug: bool = False
    """Show the traceback of an error above its one line."""


@dataclass(frozen=True, kw_only=True)
class ProcessConfig(CommandConfig):
    """Options of every command that can run on several processes."""

    num_processes: int | None = None
    """Processes to run on: N CPU processes with --cpu, else N GPUs. Unset: 1, or whatever a launcher started."""
    cpu: bool = False
    """Run on the CPU even where there is a GPU: the same as --device cpu."""
    device: str | None = None
    """cpu, cuda, cuda:1 (the second GPU) or mps. Unset: a GPU if there is one."""
    timeout: float | None = None
    """Minutes that a process waits for the others before it gives up. Unset: PyTorch's own limit."""

    def __post_init__(self) -> None:
        """Check the values."""
        if self.num_processes is not None and self.num_processes < 1:
            raise UsageError(f"num_processes={self.num_processes!r} is not possible; allowed: 1 or more")
        if self.cpu and self.device not in (None, "cpu"):
            raise UsageError(f"device={self.device!r} contradicts cpu=True; allowed: one of them")
        if ":" in (self.device or "") and self.num_processes not in (None, 1):
            raise UsageError(
                f"device={self.device!r} is one for num_processes={self.num_processes!r}; allowed: cuda or cpu"
            )
        if self.timeout is not None and not 0 < self.timeout <= YEAR:
            raise UsageError(f"timeout={self.timeout!r} is not possible; allowed: above 0, up to {YEAR} minutes")

    @property
    def on_cpu(self) -> bool:
        """Whether the CPU was asked for."""
        return self.cpu or self.device == "cpu"


@dataclass(frozen=True, kw_only=True)
class RunConfig(ProcessConfig):
    """Options of every command that keeps a run folder."""

    output_dir: Path = Path("runs/run")
    """The run folder: manifest, metrics, checkpoints, results and report."""
    resume: bool = False
    """Continue the run that is already in the folder."""
    overwrite: bool = False
    """Replace the run that is already in the folder."""
    seed: int = 0
    """Every random number of the run follows from it."""
    tracker: Tracker | None = None
    """Also send the metrics to this experiment tracker."""

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        if self.seed < 0:
            raise UsageError(f"seed={self.seed!r} is not possible; allowed: 0 or more")
        if self.resume and self.overwrite:
            raise UsageError("overwrite=True contradicts resume=True; allowed: one of them")
