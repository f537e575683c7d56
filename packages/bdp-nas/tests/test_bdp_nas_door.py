import subprocess
import sys
from importlib.metadata import metadata

import pytest

import bdp_nas

ABOUT = metadata("bdp-nas")


def command(*argv):
    """Return exit code, stdout as one line, and stderr of ``python -m bdp_nas *argv``."""
    result = subprocess.run([sys.executable, "-m", "bdp_nas", *argv], capture_output=True, text=True)
    return result.returncode, " ".join(result.stdout.split()), result.stderr


def test_the_version_is_the_installed_one():
    assert bdp_nas.__version__ == ABOUT["Version"]
    assert command("--version") == (0, f"bdp-nas {ABOUT['Version']}", "")


def test_import_brings_in_neither_torch_nor_the_host_library():
    code = "import sys, bdp_nas; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "bdp_nas" in modules
    assert not {"torch", "torchvision"} & set(modules)


@pytest.mark.parametrize("argv", [[], ["--help"]])
def test_help_says_what_it_is_for_and_that_no_method_has_landed(argv):
    code, out, err = command(*argv)
    assert (code, err) == (0, "")
    assert ABOUT["Summary"] in out
    assert "No method has landed yet" in out


@pytest.mark.parametrize("argument", ["run", "--speed"])
def test_anything_else_is_refused_in_one_line(argument):
    expected = f"bdp-nas: error: command={argument!r} is unknown; allowed: --help, --version\n"
    assert command(argument) == (2, "", expected)
