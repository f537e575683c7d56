"""Names that stand for classes in modules which are imported only when somebody asks for them."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any


def look_up(kind: str, name: str, registry: Mapping[str, str]) -> Any:
    """Return what ``name`` stands for.

    Args:
        kind: what the registry holds, for the error.
        name: a key of the registry.
        registry: name → ``"module:attribute"``.

    Raises:
        ValueError: a name that is not in the registry.
    """
    if name not in registry:
        raise ValueError(f"{kind} {name!r} is unknown; allowed: {', '.join(registry)}")
    module, _, attribute = registry[name].partition(":")
    return getattr(import_module(module), attribute)
