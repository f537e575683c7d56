"""What heads were trained on, told so that a copy of it under another name is recognised."""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from clipsam.prompt_bank import OBJECT
from clipsam.samples import AnomalyData

DIGITS = 16  # of a file's hash: 2,000 of them take 40 KB in a checkpoint


def origin_of(data: AnomalyData) -> dict[str, list[str]]:
    """Return the names, the categories and the hashes of the image files of what is trained on."""
    return {
        "data": sorted(set(data.name.split("+"))),
        "categories": sorted({entry.category for entry in data.entries}),
        "files": file_hashes(data),
    }


def file_hashes(data: AnomalyData) -> list[str]:
    """Return the hashes of a data set's image files; drawn images have none."""
    paths = (Path(entry.source) for entry in data.entries)
    return sorted({hashlib.sha256(path.read_bytes()).hexdigest()[:DIGITS] for path in paths if path.is_file()})


def seen_in_training(data: AnomalyData, trained: Mapping[str, Any]) -> str | None:
    """Return what of a data set the heads have seen, in words; None if nothing that is known.

    Args:
        data: to be evaluated on.
        trained: :func:`origin_of` what was trained on; of older checkpoints the names alone.
    """
    if data.name in trained.get("data", ()):
        return "the data set"
    common = plain(data.categories) & plain(trained.get("categories", ()))
    if common:
        return f"the category {min(common)!r}"
    known = set(trained.get("files", ()))
    count = len(known.intersection(file_hashes(data))) if known else 0
    return f"{count} of its image files" if count else None


def plain(categories: Iterable[str]) -> set[str]:
    """Return categories as they are spoken; "object" is none."""
    return {category.lower().replace("_", " ").strip() for category in categories} - {OBJECT}
