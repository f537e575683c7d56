"""The claim of a run folder: one run at a time writes into it, and never among the files of another."""

import json
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Any

from frugal_shared.config import RunConfig
from frugal_shared.errors import UsageError
from frugal_shared.writing import json_bytes, write_json, write_new

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

MANIFEST = "manifest.json"
LOCK = ".lock"
REPLACED = ".replaced"
ALONE = "alone"  # of a manifest: whether there was nothing else in the folder before the run
# may change between a run and its resumption without changing a byte of the result
_FREE_FIELDS = {"output_dir", "resume", "overwrite", "debug", "tracker", "num_processes", "cpu", "device", "timeout"}


def take(folder: Path, manifest: dict[str, Any], config: RunConfig, held: ExitStack, claiming: ExitStack) -> None:
    """Take a folder for a run, and write its manifest.

    Args:
        folder: new, empty, or with a run that goes on (``resume``) or is replaced (``overwrite``).
        manifest: the run's.
        config: the run's options.
        held: gets what is to be undone when the run ends.
        claiming: gets what is to be finished as soon as the claim is sure, and to be undone if it fails.

    Raises:
        UsageError: the folder holds something else, or another process works in it.
        OSError: it cannot be written.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"output_dir={str(folder)!r} is a file; allowed: a new or an empty folder")
    held.enter_context(made(folder))
    held.enter_context(locked(folder))
    settle(folder)
    path, before = folder / MANIFEST, _manifest_before(folder, config)
    manifest[ALONE] = before.get(ALONE, True) if before else not _strangers(folder)
    held.push(lambda error, *_: _withdraw(path, manifest["id"]) if error else None)
    if config.resume and before is not None:
        _check_options(before, manifest)
        write_json(path, manifest)
        return
    if config.overwrite:
        claiming.enter_context(replaced(folder))
    try:
        write_new(path, json_bytes(manifest))
    except FileExistsError as error:
        raise _taken(folder) from error


def is_of(manifest: Path, start: str) -> bool:
    """Return whether the manifest in a folder was written at this start of a run, by its ``id``."""
    try:
        return json.loads(manifest.read_text())["id"] == start
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return False


def _manifest_before(folder: Path, config: RunConfig) -> dict[str, Any] | None:
    """Return the manifest of the run in a folder that goes on or is replaced; None if there is none."""
    path, where = folder / MANIFEST, f"output_dir={str(folder)!r}"
    if not path.exists():
        if config.overwrite and content(folder):
            raise UsageError(f"{where} holds no run to overwrite, but other files; allowed: a new or an empty folder")
        return None
    if not (config.resume or config.overwrite):
        raise _taken(folder)
    try:
        manifest = json.loads(path.read_text())
        if "frugal-shared" not in manifest["versions"] or not _options(manifest):
            raise ValueError("no run of ours")
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise UsageError(f"{where} holds an unreadable manifest.json; allowed: another folder") from error
    if config.overwrite and not manifest.get(ALONE, True):
        raise UsageError(f"{where} held other files before its run, which would be lost; allowed: another folder")
    return manifest


def _taken(folder: Path) -> UsageError:
    where = f"output_dir={str(folder)!r}"
    return UsageError(f"{where} already holds a run; allowed: another folder, --resume, or --overwrite")


def _options(manifest: dict[str, Any]) -> dict[str, Any]:
    return {"package": manifest["package"], "command": manifest["command"], **manifest["config"]}


def _check_options(before: dict[str, Any], now: dict[str, Any]) -> None:
    old = _options(before)
    for key, value in _options(now).items():
        if key not in _FREE_FIELDS and old.get(key) != value:
            raise UsageError(f"{key}={value!r} cannot resume a run that was started with {old.get(key)!r}")


def _withdraw(path: Path, start: str) -> None:
    """Remove a manifest if there is nothing else yet."""
    if is_of(path, start) and content(path.parent) == [path]:
        path.unlink()


@contextmanager
def made(folder: Path) -> Iterator[None]:
    """Make a folder; what was made is removed again by an error, as far as it is empty."""
    missing = [path for path in (folder.absolute(), *folder.absolute().parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for path in missing:
            with suppress(OSError):  # by now it holds something, perhaps another run
                path.rmdir()
        raise


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other runs out of a folder; the kernel lets them in again however this process ends.

    Without such locks, as on Windows and on some network file systems, two runs that resume the same one at the same
    time are not noticed.

    Raises:
        UsageError: another process keeps it.
    """
    if fcntl is None:
        yield
        return
    file = _lock(folder / LOCK)
    try:
        yield
    finally:
        (folder / LOCK).unlink(missing_ok=True)  # before it is closed, so that it is nobody else's
        file.close()


def _lock(path: Path) -> FileIO:
    """Return a hidden file that this process has locked."""
    while True:
        file = FileIO(str(path), "a+")  # of a path itself, an error would show its class
        try:
            _take(file, path)
            if _is_at(file, path):  # and not that of a run that has ended meanwhile
                break
        except BaseException:
            file.close()
            raise
        file.close()
    os.register_at_fork(after_in_child=file.close)  # a child that outlives this process must not keep the lock
    with suppress(OSError):  # it is only for whoever is kept out
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
    return file


def _take(file: FileIO, path: Path) -> None:
    assert fcntl is not None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().decode(errors="replace") or "another run"
        message = f"output_dir={str(path.parent)!r} is in use by {holder}; allowed: another folder"
        raise UsageError(message) from None
    except OSError:
        pass  # a file system without locks


def _is_at(file: FileIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


@contextmanager
def replaced(folder: Path) -> Iterator[None]:
    """Move what is in a folder aside, then delete it; an error puts it back.

    It is moved into the folder's own ``.replaced``, which is on the same disk whatever the folder is: a link, a mounted
    disk, the current one. The manifest goes first and comes back last, so that after a kill :func:`settle` knows what
    to do.
    """
    aside = folder / REPLACED
    aside.mkdir()
    try:
        for path in sorted(content(folder), key=lambda path: path.name != MANIFEST):
            if path != aside:
                path.rename(aside / path.name)
        yield
    except BaseException:
        if (aside / MANIFEST).exists():
            (folder / MANIFEST).unlink(missing_ok=True)  # the new run's
        settle(folder)
        raise
    settle(folder)


def settle(folder: Path) -> None:
    """Bring to an end what :func:`replaced` has begun: delete the old run if there is a new one, or put it back."""
    aside = folder / REPLACED
    if not aside.exists():
        return
    if (folder / MANIFEST).exists():
        shutil.rmtree(aside)
        return
    for path in sorted(aside.iterdir(), key=lambda path: path.name == MANIFEST):
        path.rename(folder / path.name)
    aside.rmdir()


def _strangers(folder: Path) -> list[Path]:
    """Return what no run has put into a folder without a manifest: a killed one may leave its unfinished manifest."""
    return [path for path in content(folder) if not path.name.startswith(f".{MANIFEST}.")]


def content(folder: Path) -> list[Path]:
    """Return what is in a folder besides the lock."""
    return [path for path in folder.iterdir() if path.name != LOCK]
