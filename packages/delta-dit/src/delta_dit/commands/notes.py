"""What a run has measured, kept in its checkpoints, so that a resumed one need not measure it again."""

from typing import Any

from frugal_shared.errors import UsageError
from frugal_shared.run import Run


class KeptNotes(dict[str, Any]):
    """Measurements by name; each new one is saved at once, by the main process, while the others wait.

    Args:
        run: the run; resumed, it has its notes from before.
        about: hash of what was measured with, if that is a file that may have changed.

    Raises:
        UsageError: it has changed.
        RunError: the notes cannot be read.
    """

    def __init__(self, run: Run, about: str = "") -> None:
        kept: Any = (run.restore() or (0, {"about": about, "notes": {}}))[1]
        if kept["about"] != about:
            raise UsageError("resume=True: the calibration has changed since the run began; allowed: the same one")
        super().__init__(kept["notes"])
        self.run, self.about = run, about

    def __setitem__(self, name: str, value: Any) -> None:
        """Note, and save all notes."""
        super().__setitem__(name, value)
        self.run.save(len(self), {"about": self.about, "notes": dict(self)}, keep=1)
