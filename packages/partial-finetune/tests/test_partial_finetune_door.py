import subprocess
import sys
from importlib.metadata import metadata

import pytest

import partial_finetune

ABOUT = metadata("partial-finetune")


def command(*argv):
    """Return exit code, stdout as one line, and stderr of ``python -m partial_finetune *argv``."""
    result = subprocess.run([sys.executable, "-m", "partial_finetune", *argv], capture_output=True, text=True)
    return result.returncode, " ".join(result.stdout.split()), result.stderr


def test_the_version_is_the_installed_one():
    assert partial_finetune.__version__ == ABOUT["Version"]
    assert command("--version") == (0, f"partial-finetune {ABOUT['Version']}", "")


def test_import_brings_in_neither_torch_nor_the_host_library():
    code = "import sys, partial_finetune; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "partial_finetune" in modules
    assert not {"torch", "timm"} & set(modules)


@pytest.mark.parametrize("argv", [[], ["--help"]])
def test_help_says_what_it_is_for_and_that_no_method_has_landed(argv):
    code, out, err = command(*argv)
    assert (code, err) == (0, "")
    assert ABOUT["Summary"] in out
    assert "No method has landed yet" in out


@pytest.mark.parametrize("argument", ["run", "--speed"])
def test_anything_else_is_refused_in_one_line(argument):
    expected = f"partial-finetune: error: command={argument!r} is unknown; allowed: --help, --version\n"
    assert command(argument) == (2, "", expected)
