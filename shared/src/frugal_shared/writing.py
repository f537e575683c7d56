"""Files and folders that are there as a whole or not at all: filled under a hidden name, flushed, and then renamed."""

import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import Any

_ASIDE = ".{}.replaced"


def write_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` so that a reader sees the old file or the whole new one, and nothing between.

    A link, a device or a pipe, such as /dev/stdout, is written to and stays what it is.
    """
    if path.is_symlink() or (path.exists() and not path.is_file()):
        path.write_bytes(data)
        return
    with _filled(path, data) as temporary:
        temporary.replace(path)


def write_new(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path``, as a whole, if there is no such file.

    Raises:
        FileExistsError: there is one, even if another process made it at this moment.
    """
    with _filled(path, data) as temporary:
        try:
            path.hardlink_to(temporary)  # which replaces nothing, as a rename would
        except FileExistsError:
            raise
        except OSError:  # a file system without links
            path.touch(exist_ok=False)
            temporary.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as JSON, atomically (see :func:`write_bytes`)."""
    write_bytes(path, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """Return ``value`` as the JSON that all files of a run are written in."""
    return (json.dumps(value, indent=2, default=str) + "\n").encode()


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield a hidden folder to fill, which then takes the place of ``path``; if filling it fails, it is removed.

    The old folder is moved aside and deleted when the new one is in its place. Where the process was killed between,
    :func:`put_back` brings it back.
    """
    put_back(path.parent, escape(path.name))
    new, old = _hidden(path), path.with_name(_ASIDE.format(path.name))
    new.mkdir(parents=True)
    try:
        yield new
        _open_as(new)
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)  # of a process that was killed while it deleted it
            path.rename(old)
        new.rename(path)
    except BaseException:
        put_back(path.parent, escape(path.name))
        shutil.rmtree(new, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)


def put_back(folder: Path, pattern: str) -> None:
    """Bring back the folders of such names that :func:`whole_folder` had moved aside when its process was killed."""
    for old in folder.glob(_ASIDE.format(pattern)):
        path = old.with_name(old.name.removeprefix(".").removesuffix(".replaced"))
        if not path.exists():
            with suppress(FileNotFoundError):  # another process was quicker
                old.rename(path)


def _open_as(folder: Path) -> None:
    """Let those read the files in a new folder who may read it by the umask: safetensors lets nobody but the owner."""
    mode = folder.stat().st_mode & 0o666
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(mode)


@contextmanager
def _filled(path: Path, data: bytes) -> Iterator[Path]:
    """Yield a hidden file that holds ``data`` and has reached the disk; what is left of it in the end is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _hidden(path)
    try:
        with temporary.open("xb") as file:  # not mkstemp, whose files the umask does not open to others
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _hidden(path: Path) -> Path:
    """Return a name beside ``path`` that nobody else has."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}")
