"""Ctrl-C, SIGTERM and a worker that dies in a real world of processes: one line, the exit code, and nobody left.

That one process says so, too, and that its run goes on, is proved for every command in ``test_kill_and_resume.py``.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny import CELL

TOLD = {"interrupt": (130, "interrupted"), "terminate": (143, "terminated")}

MARK = "TESTED_IN"  # in the environment of all processes of a run
# imports the least
LONG = ["retrain", CELL, "--channels", "4", "--cells", "1", "--samples", "100", "--epochs", "10000"]


# what the threads of a group now and then say when a worker takes its leave in the ordinary way
SITE = """
import atexit, os
if "RANK" in os.environ:
    atexit.register(os.write, 2, b"terminate called without an active exception\\n")
"""


@pytest.fixture
def two_processes(tmp_path):
    """A launcher with two workers in the middle of a training."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SITE)
    options = [*LONG, "--cpu", "--num-processes", "2", "--output-dir", str(tmp_path / "run")]
    process = subprocess.Popen(
        [sys.executable, "-m", "bdp_nas", *options],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", MARK: str(tmp_path), "PYTHONPATH": str(tmp_path / "site")},
    )
    while not list(tmp_path.glob("run/checkpoints/step-*")):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.1)
    assert {b"RANK=0", b"RANK=1"} <= set().union(*family(tmp_path).values())
    yield process
    for pid in family(tmp_path):
        os.kill(pid, signal.SIGKILL)


def family(mark):
    """Return the environments of all processes that inherited a mark, by their number."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # it has just ended, or is somebody else's
            values = path.read_bytes().split(b"\0")
            if f"{MARK}={mark}".encode() in values:
                found[int(path.parent.name)] = values
    return found


def ends(process, mark):
    """Return how a launcher ends: its exit code, and what it says; with it everybody has to be gone."""
    _, errors = process.communicate(timeout=120)
    assert not family(mark)
    return process.returncode, errors


on_linux = pytest.mark.skipif(sys.platform != "linux", reason="processes are listed from /proc")


@on_linux
@pytest.mark.multiprocess
@pytest.mark.parametrize(("number", "action"), [(signal.SIGINT, "interrupt"), (signal.SIGTERM, "terminate")])
def test_two_processes_are_ended_together(two_processes, tmp_path, number, action):
    os.killpg(two_processes.pid, number)  # as a terminal does
    code, line = TOLD[action]
    assert ends(two_processes, tmp_path) == (code, f"bdp-nas: error: {line}\n")


@on_linux
@pytest.mark.multiprocess
def test_a_worker_that_is_killed_ends_the_whole_run(two_processes, tmp_path):
    [worker] = [pid for pid, values in family(tmp_path).items() if b"RANK=1" in values]
    os.kill(worker, signal.SIGKILL)
    assert ends(two_processes, tmp_path) == (1, "bdp-nas: error: worker 1 died with code -9\n")


@on_linux
@pytest.mark.multiprocess
def test_no_worker_outlives_a_launcher_that_is_killed(two_processes, tmp_path):
    two_processes.kill()
    two_processes.wait()
    until = time.monotonic() + 60
    while family(tmp_path) and time.monotonic() < until:
        time.sleep(0.1)
    assert not family(tmp_path)
