"""What the processes of a run do together: they fail together, and they go on from the same checkpoint."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from accelerate.utils import gather_object

from frugal_shared.checkpoint import latest_checkpoint
from frugal_shared.errors import RunError

T = TypeVar("T")


def from_everybody(value: T) -> list[T]:
    """Return what each process has given, in their order: each must call this, and waits for the others."""
    return gather_object([value])


@contextmanager
def failing_together() -> Iterator[None]:
    """Let an error of one process end the block on all, so that nobody waits for one that has left."""
    mine = None
    try:
        yield
    except Exception as error:
        mine = error
    errors = [error for error in from_everybody(mine) if error is not None]
    if errors:
        raise mine or errors[0]


def restore_together(folder: Path) -> tuple[int, Any] | None:
    """Return ``(step, tree)`` of the newest checkpoint below ``folder``, or None: the same on all processes.

    Raises:
        RunError: it cannot be read (see :func:`frugal_shared.checkpoint.latest_checkpoint`), or not all processes see
            the same one.
    """
    with failing_together():
        found = latest_checkpoint(folder)
    steps = from_everybody(found[0] if found else None)
    if len(set(steps)) > 1:
        seen = ", ".join(f"rank {rank}: {step}" for rank, step in enumerate(steps))
        raise RunError(
            f"{str(folder)!r} holds another newest checkpoint for each process ({seen}); allowed: a folder on a disk "
            "that all machines share"
        )
    return found
