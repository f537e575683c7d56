"""The command line of a package: its config dataclasses become subcommands, its errors become one line.

Exit codes: 0 done, 1 the run failed, 2 the request was wrong, 130 interrupted.
"""

import contextlib
import io
import re
import sys
from importlib import import_module
from importlib.metadata import version
from typing import Annotated, Any, Union

import tyro

from frugal_shared.config import CommandConfig, ProcessConfig
from frugal_shared.errors import RunError
from frugal_shared.launch import launch, report_worker_error

Commands = dict[str, tuple[type[CommandConfig], str]]


def run_cli(program: str, commands: Commands, argv: list[str] | None = None) -> int:
    """Parse ``argv``, run the command it names, return the exit code.

    Args:
        program: the distribution's name, e.g. ``"delta-dit"``; its module is started in workers.
        commands: name → (config dataclass, ``"module:function"`` that takes it). The function's module is imported
            only when its command runs, so that ``--help`` needs no torch.
        argv: arguments without the program's name; default: the process's own.
    """
    argv = sys.argv[1:] if argv is None else argv
    if argv == ["--version"]:
        sys.stdout.write(f"{program} {version(program)}\n")
        return 0
    try:
        return _run(program, commands, argv)
    except KeyboardInterrupt:
        return _fail(program, "interrupted", 130)
    except Exception as error:
        if "--debug" in argv:
            raise
        return _fail(program, *_describe(error))


def _run(program: str, commands: Commands, argv: list[str]) -> int:
    config = _parse(program, commands, argv)
    if isinstance(config, int):
        return config
    target = next(where for kind, where in commands.values() if kind is type(config))

    def command() -> None:
        module, function = target.split(":")
        getattr(import_module(module), function)(config)

    if isinstance(config, ProcessConfig):
        launch(command, config, program.replace("-", "_"), argv)
    else:
        command()
    return 0


def _parse(program: str, commands: Commands, argv: list[str]) -> Any:
    """Return the config, or an exit code where tyro has already answered (``--help``, a wrong option)."""
    kinds = [
        Annotated[kind, tyro.conf.subcommand(name, prefix_name=False, description=kind.__doc__)]
        for name, (kind, _) in commands.items()
    ]
    # with a single command tyro would drop its name
    kinds.append(Annotated[None, tyro.conf.subcommand("help", description="Show this help.")])
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            config = tyro.cli(Union[tuple(kinds)], prog=program, args=argv or ["--help"])  # type: ignore[call-overload]
            return config if config is not None else tyro.cli(Union[tuple(kinds)], prog=program, args=["--help"])  # type: ignore[call-overload]
    except SystemExit as exit_:
        if not exit_.code:
            return 0
        return _fail(program, _one_line(complaint.getvalue()), 2)


def _one_line(box: str) -> str:
    """Return the words of tyro's framed message as one line, without the pointers to ``--help`` below its rule."""
    lines = [re.sub(r"^[│|]\s?|\s*[│|]$", "", line).strip() for line in box.splitlines()]
    words: list[str] = []
    for line in lines:
        if re.match(r"^[─-]{8,}", line):
            break
        if line and not re.match(r"^[╭╰]", line):
            words.append(line)
    return " ".join(words)


def _describe(error: Exception) -> tuple[str, int]:
    message = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, ValueError):
        return message, 2
    if isinstance(error, RunError | OSError | ImportError):
        return message, 1
    return f"{type(error).__name__}: {message} (--debug shows where)", 1


def _fail(program: str, message: str, code: int) -> int:
    if not report_worker_error(message, code):
        sys.stderr.write(f"{program}: error: {message}\n")
    return code
