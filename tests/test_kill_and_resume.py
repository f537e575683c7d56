"""Every long command, struck again and again, says so where it can, and ends with the bytes of a run that was not.

It is killed, interrupted, terminated, and left without room ("full": from some event on the kernel lets no file grow
beyond 1,000 bytes, RLIMIT_FSIZE, in the middle of a write).
"""

import random
import re
import signal

import pytest
from faults import differing, leftovers, some_of
from tiny import COMMANDS

CHECKPOINTS = "checkpoints/"
TOLD = {"interrupt": (130, "interrupted"), "terminate": (143, "terminated"), "full": (1, ".*File too large.*")}


def faults(events, seed):
    """Return what happens before which event, as (event, action), in the order in which a run comes by.

    Kills: at four events that are drawn, at half of a file in a checkpoint, and at a checkpoint that is whole and not
    yet renamed; where a command has none, at any file. Ctrl-C and SIGTERM come at two files that are drawn, and there
    is no more room when half of the run is over.
    """
    renames = [event for event in events if event.startswith("rename ")]
    saved = [event for event in renames if CHECKPOINTS in event] or renames[1:]
    torn, whole = saved[0], saved[-1]
    others = random.Random(seed).sample([event for event in events if event not in (torn, whole)], 4)
    *_, written = (event for event in events[: len(events) // 2] if event.startswith("open "))
    kills = dict.fromkeys(others, "kill") | {torn: "half", whole: "kill"}
    drawn = [*kills.items(), *zip(some_of(renames[1:], 2, seed), ("interrupt", "terminate")), (written, "full")]
    return sorted(drawn, key=lambda fault: events.index(fault[0]))


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_struck_runs_end_with_the_bytes_of_an_untouched_one(laboratory, command, tmp_path):
    folder, untouched, killed = tmp_path / "run", laboratory.answer(command), 0
    for event, action in faults(untouched.events, str(command)):
        before = set(leftovers(folder))  # of those that were killed
        answer = laboratory.run(command, folder, "--resume", moments={event: action})
        killed += answer.code == -signal.SIGKILL
        if action in TOLD:
            check_told(answer, command, action)
            assert set(leftovers(folder)) <= before, event
            assert laboratory.ask([], folder, call="tiny:count_torn", args=[str(folder)]).codes == [0], event
    assert killed >= 5
    drawn = random.Random(str(command)).random()  # from outside, wherever it is
    laboratory.run(command, folder, "--resume", kill_after=drawn * untouched.seconds)
    last = laboratory.run(command, folder, "--resume")
    assert (last.codes, last.errors) == ([0], [])
    assert differing(folder, laboratory.whole(command)) == []


def check_told(answer, command, action):
    """Fail unless a run ended with the code for what it met, and with one line that says it."""
    code, cause = TOLD[action]
    assert answer.codes == [code], (action, answer.errors)
    [line] = answer.errors
    assert re.fullmatch(f"{command.package}: error: {cause}", line), action


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
