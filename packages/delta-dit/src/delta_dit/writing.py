"""Files that are whole or not there."""

import os
import secrets
from pathlib import Path


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file so that whoever reads it finds the old one or the whole new one.

    A link, a device or a pipe, such as /dev/null, is written to and stays what it is.
    """
    if path.is_symlink() or (path.exists() and not path.is_file()):
        path.write_bytes(data)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with new.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # before it gets its name: after a loss of power it is one of the two
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)
