"""JSON files that somebody may have damaged or edited; as dataclasses, every field is checked against its type."""

import json
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from frugal_shared.errors import RunError

T = TypeVar("T")


def read_json(path: Path, kind: type = dict) -> Any:
    """Return the object (or what ``kind`` says: the list) that a JSON file holds.

    Raises:
        RunError: the file is missing, torn, or holds something else; the message names it.
    """
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise RunError(f"{str(path.parent)!r} has no {path.name}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path.name} in {str(path.parent)!r} cannot be read: {error}") from error
    if not isinstance(value, kind):
        raise RunError(f"{path.name} in {str(path.parent)!r} holds no {'object' if kind is dict else kind.__name__}")
    return value


def read_dataclass(path: Path, kind: type[T]) -> T:
    """Return the dataclass ``kind`` that was written to a JSON file as ``asdict(value)``.

    Args:
        path: the file; lists in it become tuples where a field is one, and texts become paths.
        kind: its fields may be plain values, paths, literals, lists, tuples and dicts, and unions of them.

    Raises:
        RunError: the file is missing, torn, lacks a field, or holds something else in it; the message names it.
    """
    values, hints = read_json(path), get_type_hints(kind)
    try:
        return kind(**{name: _fit(hints[name], value, name) for name, value in values.items()})
    except (LookupError, TypeError, ValueError) as error:
        raise RunError(f"{str(path)!r} is no {kind.__name__}: {' '.join(str(error).split())}") from error


def _fit(hint: Any, value: Any, name: str) -> Any:
    """Return a JSON value as a field of type ``hint`` holds it; raise ``TypeError`` if it is of another type."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, UnionType):
        return _fit_any(inner, value, name)
    if origin is Literal and value in inner:
        return value
    if origin is list and isinstance(value, list):
        return [_fit(inner[0], item, name) for item in value]
    if origin is dict and isinstance(value, dict):
        return {key: _fit(inner[1], item, name) for key, item in value.items()}
    if origin is tuple and isinstance(value, list):
        kinds = [inner[0]] * len(value) if inner[-1] is Ellipsis else inner
        if len(kinds) == len(value):
            return tuple(_fit(kind, item, name) for kind, item in zip(kinds, value))
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint in (int, bool, str, NoneType) and type(value) is hint:
        return value
    raise TypeError(f"{name}={repr(value)[:60]}")


def _fit_any(hints: tuple[Any, ...], value: Any, name: str) -> Any:
    for hint in hints:
        try:
            return _fit(hint, value, name)
        except TypeError:
            continue
    raise TypeError(f"{name}={repr(value)[:60]}")
