"""Which model a measurement or a plan is of: the hash of its configuration."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from torch import nn

KEY = "configs"  # in the provenance


def identity(transformer: nn.Module) -> str:
    """Return the hash of a transformer's configuration; weights, precision and adapters do not count."""
    config: Any = getattr(transformer, "config", {})
    told = {name: value for name, value in dict(config).items() if not name.startswith("_")}
    text = json.dumps([type(transformer).__name__, told], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def check_identity(transformer: nn.Module, about: Mapping[str, Any], what: str) -> None:
    """Raise ValueError if a provenance names models, and not this one.

    Args:
        transformer: to be used with it.
        about: the provenance.
        what: it is of.
    """
    known, found = about.get(KEY), identity(transformer)
    if known and found not in known:
        raise ValueError(
            f"the {what} is of another model ({about.get('transformer')}, configuration {', '.join(known)}) than this "
            f"{type(transformer).__name__} ({found}); allowed: one that was made for it"
        )
