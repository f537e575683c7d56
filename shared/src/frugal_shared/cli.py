"""The command line of a package: its config dataclasses become subcommands, its errors become one line.

Exit codes: 0 done, 1 the run failed, 2 the request was wrong, 130 interrupted, 143 terminated.
"""

import contextlib
import io
import sys
import traceback
from importlib import import_module
from importlib.metadata import metadata, version
from typing import Annotated, Any, Union

import tyro

from frugal_shared.config import CommandConfig, ProcessConfig
from frugal_shared.errors import RunError, Terminated, check_choice
from frugal_shared.launch import heeding_sigterm, launch, leave_now, report_worker_error, started_world
from frugal_shared.options import parse_options

Commands = dict[str, tuple[type[CommandConfig], str]]


def run_cli(program: str, commands: Commands, argv: list[str] | None = None) -> int:
    """Parse ``argv``, run the command it names, return the exit code.

    Args:
        program: the distribution's name, e.g. ``"delta-dit"``; its module is started in workers.
        commands: name → (config dataclass, ``"module:function"`` that takes it). The function's module is imported
            only when its command runs, so that ``--help`` needs no torch.
        argv: arguments without the program's name; default: the process's own.
    """
    _print_what_can_be_printed()
    code = _outcome(program, commands, sys.argv[1:] if argv is None else argv)
    if code and argv is None and started_world() > 1:
        leave_now(code)
    return code


def _print_what_can_be_printed() -> None:
    """Let a question mark stand for what the output cannot show, e.g. Δ where Windows writes to a file.

    The standard error needs no help: it never refuses a letter.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        try:  # a letter, and a byte of a file's name
            "Δ\udcff".encode(sys.stdout.encoding, sys.stdout.errors or "strict")
        except UnicodeEncodeError:
            sys.stdout.reconfigure(errors="replace")


def _outcome(program: str, commands: Commands, argv: list[str]) -> int:
    """Return the exit code of a command line, whatever happens."""
    if argv == ["--version"]:
        sys.stdout.write(f"{program} {version(program)}\n")
        return 0
    try:
        with heeding_sigterm():
            return _run(program, commands, argv)
    except KeyboardInterrupt:
        return _fail(program, "interrupted", 130)
    except Terminated:
        return _fail(program, "terminated", 143)
    except Exception as error:
        if "--debug" in argv:
            traceback.print_exc()
        return _fail(program, *_describe(error))


def _run(program: str, commands: Commands, argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        _print_help(program, commands)
        return 0
    name, *options = argv
    check_choice("command", name, commands or ("--help", "--version"))
    kind, target = commands[name]
    config = parse_options(f"{program} {name}", kind, options)
    if config is None:
        return 0

    def command() -> None:
        module, function = target.split(":")
        getattr(import_module(module), function)(config)

    if isinstance(config, ProcessConfig):
        launch(command, config, program.replace("-", "_"), argv)
    else:
        command()
    return 0


def _print_help(program: str, commands: Commands) -> None:
    if not commands:
        summary = metadata(program)["Summary"]
        sys.stdout.write(f"usage: {program} [-h] [--version]\n\n{summary}.\nNo method has landed yet.\n")
        return
    kinds: list[Any] = [
        Annotated[kind, tyro.conf.subcommand(name, description=kind.__doc__)] for name, (kind, _) in commands.items()
    ]
    kinds.append(Annotated[None, tyro.conf.Suppress])  # of a single command tyro would not show the name
    choice: Any = Union[tuple(kinds)]  # noqa: UP007 (a | b needs to know them here)
    with contextlib.suppress(SystemExit):
        tyro.cli(choice, prog=program, args=["--help"])


def _describe(error: Exception) -> tuple[str, int]:
    # a file's name may hold anything, also what moves the terminal's cursor
    visible = "".join(letter if letter.isprintable() else " " for letter in str(error))
    message = " ".join(visible.split()) or type(error).__name__
    if isinstance(error, ValueError):
        return message, 2
    if isinstance(error, RunError | OSError | ImportError):
        return message, 1
    return f"{type(error).__name__}: {message} (--debug shows where)", 1


def _fail(program: str, message: str, code: int) -> int:
    if not report_worker_error(message, code):
        sys.stderr.write(f"{program}: error: {message}\n")
    return code
