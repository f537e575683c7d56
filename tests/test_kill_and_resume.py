"""Every long command, killed again and again, ends with the bytes of a run that was not."""

import random
import signal

import pytest
from faults import differing
from tiny import COMMANDS

CHECKPOINTS = "checkpoints/"


def moments(events, seed):
    """Return when to kill, as (event, action), in the order in which a run comes by.

    Four events are drawn. Another is half of a file in a checkpoint, and another a checkpoint that is whole and not yet
    renamed; where a command has none, of any file.
    """
    renames = [event for event in events if event.startswith("rename ")]
    saved = [event for event in renames if CHECKPOINTS in event] or renames[1:]
    torn, whole = saved[0], saved[-1]
    others = random.Random(seed).sample([event for event in events if event not in (torn, whole)], 4)
    actions = dict.fromkeys(others, "kill") | {torn: "half", whole: "kill"}
    return sorted(actions.items(), key=lambda moment: events.index(moment[0]))


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_killed_runs_end_with_the_bytes_of_an_uninterrupted_one(laboratory, command, tmp_path):
    folder, untouched = tmp_path / "run", laboratory.answer(command)
    kills = [{"moments": dict([moment])} for moment in moments(untouched.events, str(command))]
    drawn = random.Random(str(command)).random()
    kills.append({"kill_after": drawn * untouched.seconds})  # from outside, wherever it is
    codes = [laboratory.run(command, folder, "--resume", **kill).code for kill in kills]
    assert codes[:-1].count(-signal.SIGKILL) >= 5, codes
    last = laboratory.run(command, folder, "--resume")
    assert (last.codes, last.errors) == ([0], [])
    assert differing(folder, laboratory.whole(command)) == []


TRAININGS = [command for command in COMMANDS if command.name in ("train-demo", "train", "search")]


@pytest.mark.multiprocess
@pytest.mark.parametrize("command", TRAININGS, ids=str)
def test_two_processes_of_which_one_is_killed_go_on_together(laboratory, command, tmp_path):
    folder, whole = tmp_path / "run", tmp_path / "whole"
    assert laboratory.run(command, whole, world=2).codes == [0, 0]
    *_, saved = (event for event in laboratory.answer(command).events if event.startswith(f"rename {CHECKPOINTS}"))
    codes = laboratory.run(command, folder, world=2, moments={saved: "kill"}).codes
    assert codes[0] == -signal.SIGKILL and codes[1] != 0  # only the first one writes
    assert laboratory.run(command, folder, "--resume", world=2).codes == [0, 0]
    assert differing(folder, whole) == []
