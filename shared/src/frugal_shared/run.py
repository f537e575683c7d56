"""The run folder: who ran what with which seed (manifest), how it went (metrics), and what came out (results).

::

    manifest.json    config, versions, device, seed, world size, git commit
    metrics.jsonl    one line per logged step
    checkpoints/     atomic, newest few (see ``frugal_shared.checkpoint``)
    results.json     flat floats
"""

import dataclasses
import json
import socket
import subprocess
import time
from collections.abc import Iterable
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from uuid import uuid4

from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from tqdm import tqdm

from frugal_shared.checkpoint import save_checkpoint
from frugal_shared.claim import MANIFEST, is_of, take
from frugal_shared.config import RunConfig
from frugal_shared.errors import UsageError
from frugal_shared.launch import check_launcher, check_world, use_device
from frugal_shared.machine import machine, versions
from frugal_shared.together import failing_together, from_everybody, restore_together
from frugal_shared.writing import write_bytes, write_json

T = TypeVar("T")

PATIENCE = 10.0  # seconds until a network disk must show a file that another machine wrote


class Run:
    """A run and its folder, as a context manager.

    Leaving it with an exception before anything was measured or saved removes its manifest again, and the folders that
    were made for it.

    Args:
        config: the run's options; stored in the manifest.
        package: distribution name of the package that runs, e.g. ``"delta-dit"``.
        mixed_precision: Accelerate's: "no", "bf16" or "fp16".
        unused_parameters: whether a step may leave trained parameters out, for which several processes else wait.

    Raises:
        UsageError: the folder holds a run, and neither ``resume`` nor ``overwrite`` is on; another run is in it at this
            moment; it holds a run with other options; not all processes see it; or the world is not as large as
            ``config.num_processes``.
        OSError: the folder cannot be written.
    """

    def __init__(
        self, config: RunConfig, package: str, *, mixed_precision: str = "no", unused_parameters: bool = False
    ) -> None:
        self.config = config
        self.package = package
        self.folder = Path(config.output_dir)
        if config.tracker is not None:
            require_tracker(config.tracker)
        check_launcher(mixed_precision)
        options: Any = {"log_with": config.tracker, "project_dir": str(self.folder), "mixed_precision": mixed_precision}
        options["kwargs_handlers"] = [DistributedDataParallelKwargs(find_unused_parameters=unused_parameters)]
        if config.timeout is not None:
            options["kwargs_handlers"].append(InitProcessGroupKwargs(timeout=timedelta(minutes=config.timeout)))
        with use_device(config):
            self.accelerator = Accelerator(cpu=config.on_cpu, **options)
        started = self.accelerator.num_processes
        check_world(started)
        if config.num_processes not in (None, started):
            raise UsageError(f"num_processes={config.num_processes!r} was asked for, but this run has {started}")
        self._held = ExitStack()

    def __enter__(self) -> Self:
        """Claim the folder and write the manifest."""
        with ExitStack() as held:
            held.enter_context(use_device(self.config))
            with ExitStack() as claiming:
                manifest = self._manifest()
                with failing_together():
                    if self.accelerator.is_main_process:
                        take(self.folder, manifest, self.config, held, claiming)
                with failing_together():
                    self._check_shared(from_everybody(manifest["id"])[0])
            if self.config.tracker is not None:
                values = {key: str(value) for key, value in dataclasses.asdict(self.config).items()}
                self.accelerator.init_trackers(self.package, config=values)
            self._held = held.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the trackers; give back a folder in which nothing but the manifest was written."""
        try:
            if error is None and self.config.tracker is not None:
                self.accelerator.end_training()
        finally:
            self._held.__exit__(kind, error, trace)

    def log(self, step: int, **values: float) -> None:
        """Append one line to ``metrics.jsonl`` and send it to the tracker."""
        if self.accelerator.is_main_process:
            with (self.folder / "metrics.jsonl").open("a") as file:
                file.write(json.dumps({"step": step, **values}) + "\n")
        if self.config.tracker is not None:
            self.accelerator.log(values, step=step)

    def save(self, step: int, tree: Any, *, keep: int = 3) -> None:
        """Save a checkpoint atomically (main process) and let everybody wait for it."""
        if self.accelerator.is_main_process:
            save_checkpoint(self.folder / "checkpoints", step, tree, keep=keep)
        self.accelerator.wait_for_everyone()

    def restore(self) -> tuple[int, Any] | None:
        """Return ``(step, tree)`` of the newest checkpoint, or None; later lines of the metrics are dropped.

        Raises:
            RunError: there are checkpoints, and none to go on from, or not the same one for all processes.
        """
        found = restore_together(self.folder / "checkpoints") if self.config.resume else None
        metrics = self.folder / "metrics.jsonl"
        if self.config.resume and self.accelerator.is_main_process and metrics.exists():
            step = found[0] if found else -1
            write_bytes(metrics, "".join(_lines_until(metrics, step)).encode())
        self.accelerator.wait_for_everyone()
        return found

    def finish(self, results: dict[str, Any]) -> None:
        """Write ``results.json``."""
        if self.accelerator.is_main_process:
            write_json(self.folder / "results.json", results)
        self.accelerator.wait_for_everyone()

    def progress(self, items: Iterable[T], **options: Any) -> Iterable[T]:
        """Wrap an iterable in a progress bar on the main process; silent where nobody watches."""
        disable = None if self.accelerator.is_main_process else True  # None: silent unless a terminal
        return tqdm(items, disable=disable, dynamic_ncols=True, **options)

    def _check_shared(self, start: str) -> None:
        """Raise unless this process sees the manifest that the main process wrote at this start."""
        until = time.monotonic() + PATIENCE
        while not is_of(self.folder / MANIFEST, start):
            if time.monotonic() > until:
                rank, host = self.accelerator.process_index, socket.gethostname()
                raise UsageError(
                    f"output_dir={str(self.folder)!r} is not the same folder for all processes: rank {rank} on {host} "
                    "does not see the manifest of rank 0; allowed: a folder on a disk that all machines share"
                )
            time.sleep(0.1)

    def _manifest(self) -> dict[str, Any]:
        accelerator = self.accelerator
        return {
            "id": uuid4().hex,  # of this start
            "package": self.package,
            "command": type(self.config).__name__,
            "config": json.loads(json.dumps(dataclasses.asdict(self.config), default=str)),
            "versions": versions(self.package),
            "device": str(accelerator.device),
            "machine": machine(),
            "seed": self.config.seed,
            "world_size": accelerator.num_processes,
            "git_commit": _git_commit(self.package),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
        }


def require_tracker(name: str) -> None:
    """Raise :class:`UsageError` with the package to install unless the tracker ``name`` can be imported."""
    try:
        import_module(name)
    except ImportError as error:
        raise UsageError(f"tracker={name!r} is not installed; install it with: pip install {name}") from error


def _lines_until(path: Path, step: int) -> Iterable[str]:
    for line in path.read_text().splitlines(keepends=True):
        try:
            if json.loads(line)["step"] <= step:
                yield line
        except (ValueError, KeyError):
            continue  # the line that was being written when the run was killed


def _git_commit(package: str) -> str | None:
    """Return the commit of the checkout the package is imported from, or None if it is not a checkout.

    A package that is installed somewhere below a user's own project is not part of that.
    """
    file = Path(str(import_module(package.replace("-", "_")).__file__))
    if _git(file.parent, "ls-files", "--error-unmatch", file.name) is None:
        return None
    return _git(file.parent, "rev-parse", "HEAD")


def _git(folder: Path, *arguments: str) -> str | None:
    """Return what git says in a folder, or None if it fails or is not there."""
    command = ["git", "-C", str(folder), *arguments]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None
