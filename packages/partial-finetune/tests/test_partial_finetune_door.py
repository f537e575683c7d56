import subprocess
import sys
from importlib import import_module
from importlib.metadata import metadata
from types import FunctionType

import pytest

import partial_finetune
from partial_finetune.cli import COMMANDS

ABOUT = metadata("partial-finetune")


def command(*argv):
    """Return exit code, stdout as one line, and stderr of ``python -m partial_finetune *argv``."""
    result = subprocess.run([sys.executable, "-m", "partial_finetune", *argv], capture_output=True, text=True)
    return result.returncode, " ".join(result.stdout.split()), result.stderr


def test_the_version_is_the_installed_one():
    assert partial_finetune.__version__ == ABOUT["Version"]
    assert command("--version") == (0, f"partial-finetune {ABOUT['Version']}", "")


def test_import_brings_in_neither_torch_nor_the_host_library():
    code = "import sys, partial_finetune, partial_finetune.cli; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "partial_finetune" in modules
    assert not {"torch", "timm"} & set(modules)


def test_everything_at_the_door_is_there():
    assert all(getattr(partial_finetune, name) for name in partial_finetune.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = partial_finetune.Nothing


@pytest.mark.parametrize("name", ["anatomy", "angle", "freeze", "merge", "select"])
def test_a_module_does_not_hide_the_function_of_its_name(name):
    import_module(f"partial_finetune.{name}")
    assert isinstance(getattr(partial_finetune, name), FunctionType)


def test_help_names_every_command():
    code, out, err = command("--help")
    assert (code, err) == (0, "")
    assert all(name in out for name in COMMANDS)


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["run"], f"command='run' is unknown; allowed: {', '.join(COMMANDS)}"),
        (["train", "--epochs", "0"], "epochs=0 is not possible; allowed: above 0"),
        (["train", "--ema", "1"], "ema=1.0 is out of range; allowed: 0 or more, below 1"),
        (["train", "--weights", "w.pth"], "weights='w.pth' with model='dinov2-vits14'; allowed: a model of timm's"),
        (["select", "--direction", "up"], "direction='up' is not possible; allowed: largest, smallest, auto"),
        (["eval"], "deltas=() is empty; allowed: one folder or more"),
        (["soup", "a", "b", "--kind", "wise-ft"], "2 deltas with kind='wise-ft'; allowed: one"),
        (["sweep", "--learning-rates"], "learning_rates=() is empty; allowed: one or more"),
    ],
)
def test_a_wrong_request_is_refused_in_one_line(argv, told):
    assert command(*argv) == (2, "", f"partial-finetune: error: {told}\n")
