"""The image files that a command line stands for: files, folders with all below them, and what comes into these."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from clipsam.commands.options import SegmentConfig
from frugal_shared.images import image_files

SECONDS = 2.0  # between two looks into the watched folders


def with_files(config: SegmentConfig) -> SegmentConfig:
    """Return options whose images are files: those given, and those below the folders given, without the outputs.

    A folder without any stays, to be told of with what else cannot be read, unless it is watched.
    """
    found = {path: files_of([path], config.output_dir) or ([] if config.watch else [path]) for path in config.images}
    return replace(config, images=tuple(dict.fromkeys(file for files in found.values() for file in files)))


def files_of(paths: Sequence[Path], output_dir: Path) -> list[Path]:
    """Return files as they are, and the image files below folders, sorted; each once, and none of the outputs."""
    below = [image_files(path) if path.is_dir() else [path] for path in paths]
    outputs = output_dir.resolve()
    found = {
        file: None
        for path, files in zip(paths, below)
        for file in files
        if not path.is_dir() or outputs not in file.resolve().parents
    }
    return list(found)


def arrivals(
    folders: Sequence[Path],
    known: Sequence[Path],
    output_dir: Path,
    pause: Callable[[float], object] = time.sleep,
) -> Iterator[list[Path]]:
    """Yield the image files that come into folders, whenever some have come, until Ctrl-C.

    A file counts once it has stayed as it is between two looks: one that is still being written is left alone.

    Args:
        folders: that are watched, with all below them.
        known: files that are done.
        output_dir: of the command, whose pictures are none that have come.
        pause: waits for some seconds.
    """
    seen, before = set(known), {}
    try:
        while True:
            now = {file: state(file) for file in files_of(folders, output_dir) if file not in seen}
            ready = [file for file, size in now.items() if size is not None and before.get(file) == size]
            if ready:
                seen.update(ready)
                yield ready
            before = now
            pause(SECONDS)
    except KeyboardInterrupt:  # the way to end it
        return


def state(file: Path) -> tuple[int, int] | None:
    """Return what changes while a file is being written; None of one that has gone."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns
