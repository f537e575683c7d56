"""What each of two processes does, for ``test_shared_disk.py``; runs in the processes themselves."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def make(root: str) -> None:
    """Start runs and look for checkpoints, with folders that both processes see or only one; write what comes of it."""
    from frugal_shared import run as run_module
    from frugal_shared.config import RunConfig
    from frugal_shared.run import Run
    from frugal_shared.together import restore_together

    def start(folder: Path, **options: Any) -> list[str]:
        with Run(RunConfig(output_dir=folder, cpu=True, timeout=2, **options), "frugal-shared") as run:
            run.save(7, {})
            return sorted(path.name for path in folder.iterdir() if path.name[0] != ".")

    run_module.PATIENCE = 0  # a network disk may show a file late
    place = Path(root)
    rank = Run(RunConfig(cpu=True, timeout=2), "frugal-shared").accelerator.process_index
    attempts: dict[str, Callable[[], Any]] = {
        "apart": lambda: start(place / f"disk-{rank}" / "run"),
        "taken": lambda: start(place / "old"),
        "overwritten": lambda: start(place / "old", overwrite=True),
        "other steps": lambda: restore_together(place / f"checkpoints-{rank}"),
        "one torn": lambda: restore_together(place / f"torn-{rank}"),
        "same": lambda: restore_together(place / "checkpoints-0"),
    }
    found = {}
    for name, act in attempts.items():
        try:
            found[name] = act()
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"
    (place / f"{rank}.json").write_text(json.dumps(found))
