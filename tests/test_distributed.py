"""N processes make what one makes, for every command that takes ``--num-processes``.

The processes are forked as workers of a launcher (RANK, WORLD_SIZE, gloo); that ``--num-processes`` itself starts them
is proved in ``shared/tests/test_launch.py`` and, with faults, in ``test_interrupts.py``.
"""

import json
from importlib import import_module

import numpy as np
import pytest
from faults import differing, outputs
from safetensors.numpy import load
from tiny import COMMANDS

from frugal_shared.config import ProcessConfig

BY_NAME = {str(command): command for command in COMMANDS}

EXACT = [  # the same bytes, on 2 and on 3 processes, of data that divide evenly by neither
    "delta-dit train-judge",
    "delta-dit generate",
    "delta-dit calibrate",
    "delta-dit plan",
    "delta-dit analyze",
    "delta-dit demo",
    "clipsam eval",
    "clipsam segment",
    "clipsam refine",
    "partial-finetune soup",
    "partial-finetune eval",
    "partial-finetune angles",
]
CLOSE = [  # gradients are summed in another order: weights and figures agree within a tolerance
    "delta-dit train-demo",
    "delta-dit train-demo-lcm",
    "clipsam train",
    "clipsam train-sam",
    "partial-finetune train",
    "partial-finetune select",
    "partial-finetune sweep",
    "partial-finetune demo",
]
NAS = "packages/bdp-nas/tests/test_nas_processes.py"
ELSEWHERE = {  # proved by a test of its own package
    "clipsam calibrate": "packages/clipsam/tests/test_verdicts.py::test_two_processes_see_what_one_sees",
    "bdp-nas search": f"{NAS}::test_two_processes_keep_the_samples_that_one_keeps",
    "bdp-nas retrain": f"{NAS}::test_two_processes_train_one_network",
}
ALONE = {"clipsam train-text": "num_processes=2 would split the contrast; allowed: 1"}
APART = {  # nothing to compare
    "delta-dit bench": "times",
    "clipsam bench": "times",
    "clipsam demo": "evaluates as eval does",
    "clipsam export": "refuses several",
    "partial-finetune bench": "times",
    "bdp-nas bench": "times",
    "bdp-nas ablate": "searches and retrains",
    "bdp-nas demo": "searches and retrains",
}


def distributed_commands():
    """Return "package command" of everything that takes ``--num-processes``."""
    for package in ("delta-dit", "clipsam", "partial-finetune", "bdp-nas"):
        commands = import_module(f"{package.replace('-', '_')}.commands.cli").COMMANDS
        yield from (f"{package} {name}" for name, (kind, _) in commands.items() if issubclass(kind, ProcessConfig))


def test_every_command_that_takes_num_processes_is_in_one_list():
    listed = [*EXACT, *CLOSE, *ELSEWHERE, *ALONE, *APART]
    assert sorted(listed) == sorted(distributed_commands())


@pytest.mark.parametrize("name", [*ELSEWHERE])
def test_what_is_proved_elsewhere_is(name, root):
    path, test = ELSEWHERE[name].split("::")
    assert f"def {test}(" in (root / path).read_text()


@pytest.mark.multiprocess
@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("command", [BY_NAME[name] for name in EXACT], ids=str)
def test_n_processes_make_the_bytes_of_one(laboratory, command, world, tmp_path):
    answer = laboratory.run(command, tmp_path / "run", world=world)
    assert answer.codes == [0] * world, answer.errors
    assert differing(tmp_path / "run", laboratory.whole(command)) == []


@pytest.mark.multiprocess
@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("command", [BY_NAME[name] for name in CLOSE], ids=str)
def test_n_processes_train_what_one_trains(laboratory, command, world, tmp_path):
    folder = tmp_path / "run"
    answer = laboratory.run(command, folder, world=world)
    assert answer.codes == [0] * world, answer.errors
    one, several = outputs(laboratory.whole(command)), outputs(folder)
    assert one.keys() == several.keys()
    for name in one:
        if name.endswith(".safetensors"):
            check_weights(load(several[name]), load(one[name]))
        elif name.endswith(".json"):
            check_figures(several[name], one[name], name)


def check_weights(found, expected):
    """Compare number by number; but where a gradient is all but 0, Adam makes a step of what rounding left of it."""
    assert found.keys() == expected.keys()
    near = {name: np.isclose(found[name], values, rtol=1e-3, atol=1e-4) for name, values in expected.items()}
    assert np.concatenate([each.ravel() for each in near.values()]).mean() >= 0.999
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-3, atol=1e-3, err_msg=name)


def check_figures(found, expected, where):
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key in expected.keys() - {"sha256", "activation_bytes"}:  # a process sees its share of a batch
            check_figures(found[key], expected[key], f"{where}/{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for index, (mine, theirs) in enumerate(zip(found, expected)):
            check_figures(mine, theirs, f"{where}/{index}")
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-2, abs=1e-4, nan_ok=True), where
    else:
        assert found == expected, where


@pytest.mark.multiprocess
def test_three_processes_keep_the_samples_that_one_keeps(laboratory, tmp_path):
    command, found = BY_NAME["bdp-nas search"], []
    options = ["--samples", "260", "--epochs", "5", "--batch-size", "48", "--parts", "3"]
    for world in (1, 3):  # halves of 130 images, which 3 does not divide, in batches of 3 parts
        folder = tmp_path / str(world)
        answer = laboratory.run(command, folder, *options, world=world)
        assert answer.codes == [0] * world, answer.errors
        found.append(json.loads((folder / "found.json").read_text()))
    one, three = found
    assert (three["genotype"], three["kept"], three["samples"]) == (one["genotype"], one["kept"], one["samples"])
    assert sum(map(len, one["kept"].values())) < 260
    check_figures(three["history"], one["history"], "history")


@pytest.mark.multiprocess
@pytest.mark.parametrize("command", [BY_NAME[name] for name in ALONE], ids=str)
def test_what_would_be_another_training_is_refused(laboratory, command, tmp_path):
    answer = laboratory.run(command, tmp_path / "run", "--num-processes", "2", world=2)
    assert answer.codes == [2, 2]
    assert not (tmp_path / "run").exists()
