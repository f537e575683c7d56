import subprocess
import sys
from importlib.metadata import metadata

import pytest

import bdp_nas
from bdp_nas.cli import COMMANDS

ABOUT = metadata("bdp-nas")


def command(*argv):
    """Return exit code, stdout as one line, and stderr of ``python -m bdp_nas *argv``."""
    result = subprocess.run([sys.executable, "-m", "bdp_nas", *argv], capture_output=True, text=True)
    return result.returncode, " ".join(result.stdout.split()), result.stderr


def test_the_version_is_the_installed_one():
    assert bdp_nas.__version__ == ABOUT["Version"]
    assert command("--version") == (0, f"bdp-nas {ABOUT['Version']}", "")


def test_import_brings_in_neither_torch_nor_the_host_library():
    code = "import sys, bdp_nas, bdp_nas.cli; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "bdp_nas" in modules
    assert not {"torch", "torchvision", "sklearn", "numpy"} & set(modules)


def test_everything_at_the_door_is_there():
    assert all(getattr(bdp_nas, name) for name in bdp_nas.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = bdp_nas.Nothing


def test_help_names_every_command():
    code, out, err = command("--help")
    assert (code, err) == (0, "")
    assert all(name in out for name in COMMANDS)


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["run"], f"command='run' is unknown; allowed: {', '.join(COMMANDS)}"),
        (
            ["search", "--searcher", "x"],
            "searcher='x' is unknown; allowed: darts, darts-2, pc-darts, beta-darts, random",
        ),
        (["search", "--keep-final", "0"], "keep_final=0.0 is not possible; allowed: above 0, at most 1"),
        (["search", "--tau", "-1"], "tau=-1.0 is out of range; allowed: 0 to inf"),
        (["retrain", "--epochs", "0"], "epochs=0 is not possible; allowed: above 0"),
        (["ablate", "--seeds", "0"], "seeds=0 is not possible; allowed: above 0"),
    ],
)
def test_a_wrong_request_is_refused_in_one_line(argv, told):
    assert command(*argv) == (2, "", f"bdp-nas: error: {told}\n")
