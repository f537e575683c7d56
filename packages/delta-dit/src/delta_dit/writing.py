"""Files that are whole or not there."""

import os
import secrets
from pathlib import Path


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file so that whoever reads it finds the old one or the whole new one."""
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
