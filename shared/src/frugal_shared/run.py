"""The run folder: who ran what with which seed (manifest), how it went (metrics), and what came out (results).

::

    manifest.json    config, versions, device, seed, world size, git commit
    metrics.jsonl    one line per logged step
    checkpoints/     atomic, newest few (see ``frugal_shared.checkpoint``)
    results.json     flat floats
"""

import contextlib
import dataclasses
import json
import platform
import subprocess
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from accelerate import Accelerator, DistributedDataParallelKwargs
from tqdm import tqdm

from frugal_shared.checkpoint import latest_checkpoint, save_checkpoint, write_bytes, write_json
from frugal_shared.config import RunConfig
from frugal_shared.errors import UsageError

T = TypeVar("T")

# may change between a run and its resumption without changing a byte of the result
_FREE_FIELDS = {"output_dir", "resume", "debug", "tracker", "num_processes", "cpu"}
_RECORDED = ("frugal-shared", "torch", "accelerate", "diffusers", "timm", "open-clip-torch", "numpy", "safetensors")


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
        UsageError: the folder holds a run and ``resume`` is off, or holds a run with other options; or the world is not
            as large as ``config.num_processes``.
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
        options: Any = {"log_with": config.tracker, "project_dir": str(self.folder), "mixed_precision": mixed_precision}
        options["kwargs_handlers"] = [DistributedDataParallelKwargs(find_unused_parameters=unused_parameters)]
        self.accelerator = Accelerator(cpu=config.cpu, **options)
        started = self.accelerator.num_processes
        if config.num_processes not in (None, started):
            raise UsageError(f"num_processes={config.num_processes!r} was asked for, but this run has {started}")
        self._made: list[Path] = []

    def __enter__(self) -> Self:
        """Claim the folder and write the manifest."""
        self._check_folder()
        self.accelerator.wait_for_everyone()  # nobody writes before everybody has looked
        try:
            self._claim_folder()
        except BaseException:
            self._release_folder()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the trackers; give back a folder in which nothing but the manifest was written."""
        if error is not None:
            self._release_folder()
        elif self.config.tracker is not None:
            self.accelerator.end_training()

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
        """Return ``(step, tree)`` of the newest whole checkpoint, or None; later lines of the metrics are dropped."""
        found = latest_checkpoint(self.folder / "checkpoints") if self.config.resume else None
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

    def _check_folder(self) -> None:
        path = self.folder / "manifest.json"
        if self.folder.exists() and not self.folder.is_dir():
            raise UsageError(f"output_dir={str(self.folder)!r} is a file; allowed: a new or an empty folder")
        if not path.exists():
            return
        if not self.config.resume:
            raise UsageError(
                f"output_dir={str(self.folder)!r} already holds a run; allowed: another folder, or --resume"
            )
        try:
            manifest = json.loads(path.read_text())
            before = {"package": manifest["package"], "command": manifest["command"], **manifest["config"]}
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UsageError(f"output_dir={str(self.folder)!r} holds an unreadable manifest.json") from error
        now = {"package": self.package, "command": type(self.config).__name__, **_plain(self.config)}
        for key, value in now.items():
            if key not in _FREE_FIELDS and before.get(key) != value:
                raise UsageError(f"{key}={value!r} cannot resume a run that was started with {before.get(key)!r}")

    def _claim_folder(self) -> None:
        if self.accelerator.is_main_process:
            self._made = _missing(self.folder)
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self.folder / "manifest.json", self._manifest())
        self.accelerator.wait_for_everyone()
        if self.config.tracker is not None:
            values = {key: str(value) for key, value in dataclasses.asdict(self.config).items()}
            self.accelerator.init_trackers(self.package, config=values)

    def _release_folder(self) -> None:
        if not self.accelerator.is_main_process:
            return
        if self.folder.is_dir() and [path.name for path in self.folder.iterdir()] == ["manifest.json"]:
            (self.folder / "manifest.json").unlink()
        for folder in self._made:
            with contextlib.suppress(OSError):  # by now it holds something, perhaps another run
                folder.rmdir()

    def _manifest(self) -> dict[str, Any]:
        accelerator = self.accelerator
        return {
            "package": self.package,
            "command": type(self.config).__name__,
            "config": _plain(self.config),
            "versions": {name: _version(name) for name in (self.package, *_RECORDED)}
            | {"python": platform.python_version()},
            "device": str(accelerator.device),
            "machine": platform.machine(),
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
        raise UsageError(
            f"tracker={name!r} is not installed; install it with: pip install 'frugal-shared[{name}]'"
        ) from error


def _plain(config: RunConfig) -> dict[str, Any]:
    """Return the config as it reads back from JSON."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


def _lines_until(path: Path, step: int) -> Iterable[str]:
    for line in path.read_text().splitlines(keepends=True):
        try:
            if json.loads(line)["step"] <= step:
                yield line
        except (ValueError, KeyError):
            continue  # the line that was being written when the run was killed


def _missing(folder: Path) -> list[Path]:
    """Return the folders that ``mkdir(parents=True)`` would make, the deepest first."""
    return [path for path in (folder.absolute(), *folder.absolute().parents) if not path.exists()]


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _git_commit(package: str) -> str | None:
    """Return the commit of the checkout the package is imported from, or None if it is not a checkout."""
    module = import_module(package.replace("-", "_"))
    folder = Path(str(module.__file__)).parent
    try:
        answer = subprocess.run(["git", "-C", folder, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None
