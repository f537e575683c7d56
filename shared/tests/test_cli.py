import io
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import pytest

from frugal_shared.cli import run_cli
from frugal_shared.config import CommandConfig, RunConfig
from frugal_shared.errors import RunError, Terminated, UsageError


@dataclass(frozen=True, kw_only=True)
class PaintConfig(RunConfig):
    """Paint a wall."""

    wall: Path
    """Which wall."""
    colour: Literal["red", "green"] = "red"
    """What to paint it with."""
    coats: tuple[int, ...] = (1, 2)
    """Coats to try."""
    width: float = 1.0
    """Of the brush."""
    finish: Literal["matt", "gloss"] | None = None
    """None for as it comes."""

    def __post_init__(self):
        super().__post_init__()
        if self.width <= 0:
            raise UsageError(f"width={self.width!r} is not possible; allowed: above 0 ({self.wall})")


@dataclass(frozen=True, kw_only=True)
class LookConfig(CommandConfig):
    """Look at a wall."""


COMMANDS = {
    "paint": (PaintConfig, "painter:paint"),
    "look": (LookConfig, "painter:look"),
    "look-again": (LookConfig, "painter:look_again"),
}

PAINTER = """
import sys
done, error, says = [], None, ""
def paint(config): _work("paint", config)
def look(config): _work("look", config)
def look_again(config): _work("look_again", config)
def _work(name, config):
    done.append((name, config))
    sys.stdout.write(says)
    if error: raise error
"""


@pytest.fixture
def painter(tmp_path, monkeypatch):
    """The module with the commands' functions: what they did, and the error to raise."""
    (tmp_path / "painter.py").write_text(PAINTER)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "painter", raising=False)
    import painter

    yield painter
    monkeypatch.delitem(sys.modules, "painter")


@pytest.fixture
def run(painter, capsys):
    """Run a command line and return exit code, output and error output."""

    def run(*argv, commands=COMMANDS):
        code = run_cli("frugal-shared", commands, list(argv))
        return code, *capsys.readouterr()

    return run


def test_command_runs_with_its_options(run, painter):
    assert run("paint", "--wall", "north", "--coats", "1", "3", "--output-dir", "out", "--width=2") == (0, "", "")
    config = PaintConfig(wall=Path("north"), coats=(1, 3), output_dir=Path("out"), width=2.0)
    assert painter.done == [("paint", config)]


def test_commands_may_share_a_config(run, painter):
    assert run("look-again")[0] == 0
    assert painter.done == [("look_again", LookConfig())]


PAINT = ["paint", "--wall", "w"]
WRONG = [
    (["plaster"], "command='plaster' is unknown; allowed: paint, look, look-again"),
    (["--debg", "paint"], "command='--debg' is unknown; allowed: paint, look, look-again"),
    ([*PAINT, "--colour", "blue"], "colour='blue' is not possible; allowed: red, green"),
    ([*PAINT, "--finish", "wet"], "finish='wet' is not possible; allowed: matt, gloss or None"),
    ([*PAINT, "--seed", "x"], "seed='x' is not possible; allowed: a whole number"),
    ([*PAINT, "--seed=1=2"], "seed='1=2' is not possible; allowed: a whole number"),
    ([*PAINT, "--seed", "1", "--seed", "2.5"], "seed='2.5' is not possible; allowed: a whole number"),
    (["paint", "--wall", "seed", "--seed", "x", "--cpu"], "seed='x' is not possible; allowed: a whole number"),
    ([*PAINT, "--seed"], "seed='' is not possible; allowed: a whole number"),
    ([*PAINT, "--width", "y" * 200], f"width='{'y' * 200}' is not possible; allowed: a number"),
    ([*PAINT, "--coats", "1", "z"], "coats='1 z' is not possible; allowed: a whole number, or several"),
    ([*PAINT, "--num_processes", "x"], "num_processes='x' is not possible; allowed: a whole number or None"),
    ([*PAINT, "--device"], "device='' is not possible; allowed: a word or None"),
    ([*PAINT, "--output-dir"], "output_dir='' is not possible; allowed: a path"),
    ([*PAINT, "--cpu", "--device", "cuda"], "device='cuda' contradicts cpu=True; allowed: one of them"),
    ([*PAINT, "--timeout", "0"], "timeout=0.0 is not possible; allowed: above 0, up to 525600 minutes"),
    ([*PAINT, "--resume", "--overwrite"], "overwrite=True contradicts resume=True; allowed: one of them"),
    ([*PAINT, "--seed", "-1"], "seed=-1 is not possible; allowed: 0 or more"),
    (["paint", "--wall", "w" * 200, "--width", "0"], f"width=0.0 is not possible; allowed: above 0 ({'w' * 200})"),
    ([*PAINT, "--color", "red"], "'--color' is not an option of frugal-shared paint; did you mean --colour?"),
    (["look", "--xyz", "3"], "'--xyz' is not an option of frugal-shared look; allowed: --debug"),
    (["look", "around"], "'around' is not an option of frugal-shared look; allowed: --debug"),
]


@pytest.mark.parametrize("argv, complaint", WRONG, ids=[" ".join(argv)[:40] for argv, _ in WRONG])
def test_wrong_request_is_one_line(run, painter, argv, complaint):
    assert run(*argv) == (2, "", f"frugal-shared: error: {complaint}\n")
    assert painter.done == []


def test_missing_argument_is_one_line(run):
    code, output, errors = run("paint")
    assert (code, output) == (2, "")
    assert errors.startswith("frugal-shared: error: ")
    assert "--wall PATH" in errors
    assert errors.count("\n") == 1


def test_line_is_the_same_in_a_terminal(run, monkeypatch):
    """Where the output is a terminal, tyro colours its messages."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    complaint = "colour='blue' is not possible; allowed: red, green"
    assert run("paint", "--wall", "w", "--colour", "blue") == (2, "", f"frugal-shared: error: {complaint}\n")
    assert "\x1b" not in run("paint")[2]


ERRORS = [
    (UsageError("seed=-1 is not possible"), 2, "seed=-1 is not possible"),
    (ValueError("from the\n  library"), 2, "from the library"),
    (RunError("loss is NaN"), 1, "loss is NaN"),
    (OSError(28, "No space left on device"), 1, "[Errno 28] No space left on device"),
    (ModuleNotFoundError("No module named 'wandb'"), 1, "No module named 'wandb'"),
    (KeyError("layer"), 1, "KeyError: 'layer' (--debug shows where)"),
    (RuntimeError(), 1, "RuntimeError: RuntimeError (--debug shows where)"),
    (KeyboardInterrupt(), 130, "interrupted"),
    (Terminated(), 143, "terminated"),
]


@pytest.mark.parametrize("error, code, line", ERRORS, ids=[type(error).__name__ for error, _, _ in ERRORS])
def test_failure_is_one_line(run, painter, error, code, line):
    painter.error = error
    assert run("look") == (code, "", f"frugal-shared: error: {line}\n")


def test_debug_shows_where(run, painter):
    painter.error = UsageError("seed=-1 is not possible")
    code, _, errors = run("look", "--debug")
    assert code == 2
    assert "Traceback (most recent call last)" in errors
    assert "painter.py" in errors
    assert errors.endswith("frugal-shared: error: seed=-1 is not possible\n")


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"]])
@pytest.mark.parametrize("names", [["paint", "look"], ["look"]])
def test_help_lists_the_commands(run, argv, names):
    code, output, errors = run(*argv, commands={name: COMMANDS[name] for name in names})
    assert (code, errors) == (0, "")
    assert f"usage: frugal-shared [-h] {{{','.join(names)}}}" in output
    assert "Look at a wall." in output


@pytest.mark.parametrize("argv", [["paint", "--help"], ["paint", "-h"], ["paint", "--wall", "w", "--help"]])
def test_help_of_a_command_lists_its_options(run, painter, argv):
    code, output, errors = run(*argv)
    assert (code, errors, painter.done) == (0, "", [])
    for words in ("usage: frugal-shared paint", "Paint a wall.", "--colour {red,green}", "Which wall. (required)"):
        assert words in output


@pytest.mark.parametrize("encoding, errors", [("ascii", "strict"), ("cp1252", "strict"), ("ascii", "surrogateescape")])
@pytest.mark.parametrize("argv", [["--help"], ["paint", "--help"], ["look"], ["--version"]])
def test_what_an_output_cannot_show_is_no_error(painter, monkeypatch, encoding, errors, argv):
    """tyro's frames, and whatever a command prints; Python lets bytes through, but no letters, where LC_ALL=C."""
    output = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors=errors)
    monkeypatch.setattr("sys.stdout", output)
    monkeypatch.setattr(painter, "says", "loss → 0 after α Δt\n")
    assert run_cli("frugal-shared", COMMANDS, argv) == 0
    output.flush()
    text = output.buffer.getvalue().decode(encoding)
    assert text.strip()
    assert argv != ["look"] or text.splitlines() == ["loss ? 0 after ? ?t"]


def test_what_an_output_can_show_is_shown(painter, monkeypatch):
    """Bytes of a file's name that are no text come out as they were, where Python keeps them."""
    output = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="surrogateescape")
    monkeypatch.setattr("sys.stdout", output)
    monkeypatch.setattr(painter, "says", "α \udcff")
    assert run_cli("frugal-shared", COMMANDS, ["look"]) == 0
    output.flush()
    assert output.buffer.getvalue() == "α ".encode() + b"\xff"


def test_version(run):
    assert run("--version") == (0, f"frugal-shared {version('frugal-shared')}\n", "")


def test_no_command_needs_no_torch():
    """``--help`` answers at once."""
    program = (
        "import sys; import frugal_shared.cli; print([name for name in ('torch', 'numpy') if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=300)
    assert answer.stdout == "[]\n"
