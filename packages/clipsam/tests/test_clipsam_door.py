import subprocess
import sys
from importlib.metadata import metadata

import pytest

import clipsam

ABOUT = metadata("clipsam")


def command(*argv):
    """Return exit code, stdout as one line, and stderr of ``python -m clipsam *argv``."""
    result = subprocess.run([sys.executable, "-m", "clipsam", *argv], capture_output=True, text=True)
    return result.returncode, " ".join(result.stdout.split()), result.stderr


def test_the_version_is_the_installed_one():
    assert clipsam.__version__ == ABOUT["Version"]
    assert command("--version") == (0, f"clipsam {ABOUT['Version']}", "")


def test_import_brings_in_neither_torch_nor_the_host_library():
    code = "import sys, clipsam; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "clipsam" in modules
    assert not {"torch", "open_clip", "segment_anything"} & set(modules)


@pytest.mark.parametrize("argv", [[], ["--help"]])
def test_help_says_what_it_is_for_and_that_no_method_has_landed(argv):
    code, out, err = command(*argv)
    assert (code, err) == (0, "")
    assert ABOUT["Summary"] in out
    assert "No method has landed yet" in out


@pytest.mark.parametrize("argument", ["run", "--speed"])
def test_anything_else_is_refused_in_one_line(argument):
    expected = f"clipsam: error: command={argument!r} is unknown; allowed: --help, --version\n"
    assert command(argument) == (2, "", expected)
