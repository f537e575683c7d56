"""No room, no right to write: one line, exit code 1, nothing half-written, and a run that goes on when there is room.

Here a disk is really full, a small tmpfs, where a process may mount one; that files may not grow from some moment on is
among the faults of ``test_kill_and_resume.py``.
"""

import tempfile
from pathlib import Path

import pytest
from faults import differing, leftovers
from tiny import COMMANDS

BY_NAME = {str(command): command for command in COMMANDS}


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_a_folder_that_cannot_be_made_is_told_at_once(laboratory, command, tmp_path):
    (tmp_path / "file").write_text("mine")
    for folder, code in ((tmp_path / "file", 2), (tmp_path / "file" / "run", 1)):
        answer = laboratory.run(command, folder, log=tmp_path / "log")
        assert answer.codes == [code], answer.errors
        [line] = answer.errors
        assert line.startswith(f"{command.package}: error: ") and str(tmp_path / "file") in line
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("command", [BY_NAME["delta-dit train-demo"], BY_NAME["bdp-nas search"]], ids=str)
def test_a_folder_without_the_right_to_write_is_told_at_once(laboratory, command, tmp_path):
    """As somebody else than root, whom no such right stops."""
    with tempfile.TemporaryDirectory() as parent:  # pytest's own may only be read by its owner
        Path(parent).chmod(0o555)
        answer = laboratory.run(command, Path(parent) / "run", log=tmp_path / "log", user=65534)
        assert not list(Path(parent).iterdir())
    assert answer.codes == [1]
    [line] = answer.errors
    assert line.startswith(f"{command.package}: error: ") and "Permission denied" in line


FULL = {"delta-dit train-demo": 0.6, "clipsam train": 0.3}  # share of what the run needs that there is room for


@pytest.mark.parametrize("command", [BY_NAME[name] for name in FULL], ids=str)
def test_a_disk_that_is_full_is_told_and_the_run_goes_on_elsewhere(laboratory, command, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    size = sum(path.stat().st_size for path in laboratory.whole(command).rglob("*") if path.is_file())
    answer = laboratory.run(command, folder, disk=int(FULL[str(command)] * size))
    if answer.codes == [77]:
        pytest.skip("no tmpfs can be mounted here")
    assert answer.codes == [1], answer.errors
    [line] = answer.errors
    assert line.startswith(f"{command.package}: error: ") and "No space left on device" in line
    left = tmp_path / "run.left"
    assert leftovers(left) == []
    assert laboratory.run(command, left, "--resume").codes == [0]
    assert differing(left, laboratory.whole(command)) == []
