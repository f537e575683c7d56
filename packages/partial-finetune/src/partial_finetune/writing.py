"""A folder that is there as a whole or not at all."""

import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yield an empty folder that, once filled, takes the place of ``path``; on an error it goes, and ``path`` stays.

    The folder that was there stands aside, hidden, until the new one has its name; what was killed between the two, the
    next call puts back.
    """
    new = path.with_name(f".{path.name}.{secrets.token_hex(4)}")  # nobody else's
    new.mkdir(parents=True)
    try:
        yield new
        _put_back(path)
        shutil.rmtree(_aside(path), ignore_errors=True)
        if path.exists():
            path.rename(_aside(path))
        new.rename(path)
    finally:
        _put_back(path)
        shutil.rmtree(new, ignore_errors=True)
    shutil.rmtree(_aside(path), ignore_errors=True)


def _put_back(path: Path) -> None:
    """Give a folder its name again if the new one did not get it."""
    if _aside(path).exists() and not path.exists():
        _aside(path).rename(path)


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")
