"""What the recipes of several packages share: going on after a kill, learning rates, who takes which samples."""

import math
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate import Accelerator

from frugal_shared.checkpoint import save_checkpoint
from frugal_shared.errors import UsageError
from frugal_shared.run import Run
from frugal_shared.together import restore_together

CHECKPOINTS = "checkpoints"

Rows = TypeVar("Rows", np.ndarray, torch.Tensor, list)


class Resumable(ABC):
    """A training in a folder of its own: a kill costs what was done since the last checkpoint, and changes nothing.

    ::

        training.restore(folder)
        training.train(run, folder, epochs)
        training.finish(folder, write)    # from here on the folder holds what `write` wrote, and no checkpoints

    Args:
        accelerator: the run's.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.done = 0
        """Steps, or epochs, that are done."""

    @abstractmethod
    def advance(self) -> dict[str, float]:
        """Do one more step (or epoch) and add it to ``done``; return what is to be logged of it, if anything."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return all that the next steps depend on, as a checkpoint can hold it."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned.

        Raises:
            UsageError: in another training.
        """

    def restore(self, folder: Path) -> None:
        """Go on from the newest checkpoint in a folder, if there is one.

        Raises:
            UsageError: it is of another training.
            RunError: it cannot be read, or not all processes see the same one.
        """
        if found := restore_together(folder / CHECKPOINTS):
            done, state = found
            self.load_state_dict(state)
            self.done = done

    def save(self, folder: Path) -> None:
        """Write a checkpoint into a folder (main process), and let everybody wait for it."""
        if self.accelerator.is_main_process:
            save_checkpoint(folder / CHECKPOINTS, self.done, self.state_dict(), keep=2)
        self.accelerator.wait_for_everyone()

    def train(self, run: Run, folder: Path, total: int, *, save_every: int = 1, log: bool = True) -> None:
        """Do what is left of ``total`` steps.

        Args:
            run: shows the progress, and keeps the log.
            folder: gets the checkpoints.
            total: steps (or epochs) in the end.
            save_every: steps between two checkpoints; the last step is always followed by one.
            log: whether the run's log is this training's.
        """
        steps = range(self.done, total)
        for _ in run.progress(steps, initial=self.done, total=total, desc=folder.name):
            values = self.advance()
            if values and log:
                run.log(self.done, **values)
            if self.done % save_every == 0 or self.done == total:
                self.save(folder)

    def finish(self, folder: Path, write: Callable[[], None]) -> None:
        """Let the main process write the result into a folder; then nobody needs the checkpoints any more."""
        if self.accelerator.is_main_process:
            write()
            shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
        self.accelerator.wait_for_everyone()


def warm_up_cosine(step: int, steps: int, warm_up: int) -> float:
    """Return the learning rate's factor at ``step`` of ``steps``: linear warm-up, then a cosine to zero."""
    warm = min(1.0, (step + 1) / max(1, min(warm_up, steps)))
    return warm * 0.5 * (1 + math.cos(math.pi * step / steps))


def share(accelerator: Accelerator, rows: Rows) -> Rows:
    """Return this process's part of a global batch.

    Equal parts, because the gradients' mean over the processes is only then that of the whole batch.

    Raises:
        UsageError: the batch does not divide evenly.
    """
    world = accelerator.num_processes
    if len(rows) % world:
        raise UsageError(f"batch_size={len(rows)} does not divide among {world} processes; allowed: multiples of it")
    return rows[accelerator.process_index :: world]
