import pkgutil
import subprocess
import sys
from importlib import import_module
from types import FunctionType

import pytest

import partial_finetune
from partial_finetune.commands.cli import COMMANDS, main

FUNCTIONS = [name for name in partial_finetune.__all__ if name[0].islower()]


def test_no_module_hides_a_name_at_the_door():
    for module in pkgutil.walk_packages(partial_finetune.__path__, "partial_finetune."):
        if not module.name.endswith("__main__"):
            import_module(module.name)
    assert {name: type(getattr(partial_finetune, name)) for name in FUNCTIONS} == dict.fromkeys(FUNCTIONS, FunctionType)
    assert {"anatomy", "angle", "freeze", "merge", "predict", "select"} <= set(FUNCTIONS)


def test_the_door_opens_without_torch():
    code = "import partial_finetune, sys; dir(partial_finetune); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_main_in_the_file_of_its_name(name):
    assert COMMANDS[name][1] == f"partial_finetune.commands.{name}:main"
    assert isinstance(import_module(f"partial_finetune.commands.{name}").main, FunctionType)


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
def test_a_wrong_request_is_refused_in_one_line(argv, told, capsys):
    assert main(argv) == 2
    assert capsys.readouterr() == ("", f"partial-finetune: error: {told}\n")
