"""The options of one command: its config dataclass becomes a parser (tyro), a wrong option becomes one line."""

import contextlib
import dataclasses
import io
import re
from difflib import get_close_matches
from itertools import takewhile
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import tyro

from frugal_shared.config import CommandConfig
from frugal_shared.errors import UsageError

Config = TypeVar("Config", bound=CommandConfig)


def parse_options(program: str, kind: type[Config], options: list[str]) -> Config | None:
    """Return the config that ``options`` describe, or None if they asked for help, which is printed.

    Args:
        program: program and command, e.g. ``"delta-dit train-demo"``.
        kind: the command's config dataclass.
        options: what follows the command.

    Raises:
        UsageError: an option is unknown, lacks a value, or has one that is not possible.
    """
    complaint, config = io.StringIO(), None
    try:
        with contextlib.redirect_stderr(complaint):
            config, unknown = tyro.cli(kind, prog=program, args=options, return_unknown_args=True)
    except SystemExit as exit_:
        if not exit_.code:
            return None
        if isinstance(exit_.__context__, ValueError):  # the config's own check, which tyro has put into a frame
            raise exit_.__context__ from None
        unknown = _unknown(kind, options)  # tyro would take it for the value of a positional argument
        if not unknown:
            raise UsageError(_one_line(complaint.getvalue(), kind, options)) from None
    if unknown:
        raise UsageError(f"{unknown[0]!r} is not an option of {program}; {_suggestion(unknown[0], kind)}")
    return config


def _unknown(kind: type[CommandConfig], options: list[str]) -> list[str]:
    """Return the options that no field of the config is named after."""
    names = {field.name.replace("_", "-") for field in dataclasses.fields(kind)}
    given = {word: word[2:].partition("=")[0].replace("_", "-") for word in options if word.startswith("--")}
    return [word for word, name in given.items() if not {name, name.removeprefix("no-")} & names]


def _suggestion(word: str, kind: type[CommandConfig]) -> str:
    allowed = ["--" + field.name.replace("_", "-") for field in dataclasses.fields(kind)]
    near = get_close_matches(word.split("=")[0], allowed, n=1)
    return f"did you mean {near[0]}?" if near else f"allowed: {', '.join(allowed)}"


def _one_line(box: str, kind: type[CommandConfig], options: list[str]) -> str:
    """Return tyro's framed complaint as field, value and what is allowed; failing that, in tyro's own words."""
    text = re.sub(r"\x1b\[[\d;]*m", "", box)  # coloured where the output is a terminal
    body = re.split(r"[─-]{3,}", text)[:2][-1]  # between the title and the pointer to --help
    words = " ".join(re.sub(r"[╮│]", " ", body).split())
    found = re.search(r"(?:Error parsing|for argument)\W+--([\w-]+)", words)
    name = found[1].replace("-", "_") if found else ""
    hints = get_type_hints(kind)
    if name not in hints:
        return words
    return f"{name}={_given(name, options)!r} is not possible; allowed: {_allowed(hints[name])}"


def _given(name: str, options: list[str]) -> str:
    """Return what was written after the option of field ``name``, the last time it was written."""
    given: list[str] = []
    for index, word in enumerate(options):
        option, equals, value = word.partition("=")
        if option.replace("-", "_") == f"__{name}":
            rest = takewhile(lambda word: not word.startswith("--"), options[index + 1 :])
            given = [value] if equals else list(rest)
    return " ".join(given)


def _allowed(hint: Any) -> str:
    """Return in words what a field of type ``hint`` takes."""
    if get_origin(hint) is Literal:
        return ", ".join(map(str, get_args(hint)))
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(map(_allowed, get_args(hint)))
    if get_origin(hint) is tuple:
        return f"{_allowed(get_args(hint)[0])}, or several"
    words = {int: "a whole number", float: "a number", str: "a word", Path: "a path", NoneType: "None"}
    return words.get(hint, str(hint))
