from importlib import import_module
from types import FunctionType

import pytest

import partial_finetune
from partial_finetune.commands.cli import COMMANDS, main


@pytest.mark.parametrize("name", ["anatomy", "angle", "freeze", "merge", "select"])
def test_a_module_does_not_hide_the_function_of_its_name(name):
    import_module(f"partial_finetune.{name}")
    assert isinstance(getattr(partial_finetune, name), FunctionType)


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
