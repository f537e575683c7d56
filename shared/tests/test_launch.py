import json
import os
import subprocess
import sys

import pytest

from frugal_shared.config import ProcessConfig
from frugal_shared.launch import _worker_error, launch

WORKER = '''
import os, sys
from dataclasses import dataclass
from frugal_shared.cli import run_cli
from frugal_shared.config import RunConfig
from frugal_shared.errors import UsageError

@dataclass(frozen=True, kw_only=True)
class WorkConfig(RunConfig):
    """Work."""
    fail: bool = False

def work(config):
    if config.fail:
        raise UsageError("fail=True is not possible; allowed: False")
    from frugal_shared.run import Run
    with Run(config, "frugal-shared") as run:
        (run.folder / f"worker-{run.accelerator.process_index}").write_text(os.environ.get("OMP_NUM_THREADS", ""))

if __name__ == "__main__":
    sys.exit(run_cli("worker", {"work": (WorkConfig, "worker:work")}))
'''


@pytest.fixture
def start(tmp_path):
    """Start the worker's command line in a fresh process."""
    (tmp_path / "worker.py").write_text(WORKER)
    (tmp_path / "home").mkdir()

    def start(*options, launcher=("-m",), **environment):
        command = [sys.executable, *launcher, "worker", "work", "--output-dir", "out", *options]
        # no GPU, and nobody's Accelerate configuration
        clean = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HOME": str(tmp_path / "home"), **environment}
        return subprocess.run(command, cwd=tmp_path, env=clean, capture_output=True, text=True, timeout=500)

    return start


def started(folder):
    """Return the world size in the manifest and the workers that have worked."""
    manifest = json.loads((folder / "out" / "manifest.json").read_text())
    return manifest["world_size"], sorted(path.name for path in (folder / "out").glob("worker-*"))


def test_one_process_runs_here(start, tmp_path):
    answer = start("--cpu", "--num-processes", "1")
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, "", "")
    assert started(tmp_path) == (1, ["worker-0"])


@pytest.mark.multiprocess
def test_two_processes_on_the_cpu(start, tmp_path):
    answer = start("--cpu", "--num-processes", "2", OMP_NUM_THREADS="3")
    assert (answer.returncode, answer.stderr) == (0, "")
    assert started(tmp_path) == (2, ["worker-0", "worker-1"])
    assert (tmp_path / "out" / "worker-1").read_text() == "3"  # the user's own choice is kept


@pytest.mark.multiprocess
def test_failing_workers_are_one_line(start, tmp_path):
    answer = start("--cpu", "--num-processes", "2", "--fail")
    line = "worker: error: fail=True is not possible; allowed: False\n"
    assert (answer.returncode, answer.stdout, answer.stderr) == (2, "", line)
    assert not (tmp_path / "out").exists()


def test_accelerate_launch_of_one_cpu_process(start, tmp_path):
    """It sets no WORLD_SIZE."""
    options = ["--cpu", "--num_processes", "1", "--num_machines", "1", "--mixed_precision", "no", "-m"]
    answer = start("--cpu", launcher=["-m", "accelerate.commands.launch", *options])
    assert answer.returncode == 0, answer.stderr
    assert started(tmp_path) == (1, ["worker-0"])


@pytest.mark.parametrize("options", [["--num-processes", "2"], ["--num-processes", "1", "--cpu"]])
def test_world_of_another_size_is_refused(start, tmp_path, options):
    answer = start(*options, WORLD_SIZE="3")
    line = f"worker: error: num_processes={options[1]} was asked for, but the launcher started 3\n"
    assert (answer.returncode, answer.stdout, answer.stderr) == (2, "", line)
    assert not (tmp_path / "out").exists()


def test_gpus_that_are_not_there_are_refused(start, tmp_path):
    answer = start("--num-processes", "2")
    line = "worker: error: num_processes=2 needs 2 GPUs and there are 0; allowed: --cpu, or 1\n"
    assert (answer.returncode, answer.stdout, answer.stderr) == (2, "", line)
    assert not (tmp_path / "out").exists()


def test_gpus_are_left_to_accelerate_launch(monkeypatch):
    """No GPU here: what would be started is held against accelerate's own parser."""
    started = []
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("accelerate.commands.launch.launch_command", started.append)
    launch(lambda: pytest.fail("ran here"), ProcessConfig(num_processes=2), "delta_dit", ["demo", "--seed", "3"])
    (options,) = started
    assert (options.multi_gpu, options.num_processes, options.module) == (True, 2, True)
    assert (options.training_script, options.training_script_args) == ("delta_dit", ["demo", "--seed", "3"])


TOLD = {"message": "loss is NaN", "code": 1}


@pytest.mark.parametrize(
    "told, codes, line",
    [
        (TOLD, {0: 1}, "loss is NaN"),
        (TOLD, {0: 1, 1: 1}, "loss is NaN"),
        (TOLD, {0: -15, 1: 1}, "loss is NaN"),  # torch has ended worker 0, because worker 1 had failed
        (TOLD, {0: 1, 1: -9}, "worker 1 died with code -9"),  # worker 0 only tells that it lost worker 1
        (None, {0: -15, 1: -9}, "worker 1 died with code -9"),
        (None, {0: -15}, "worker 0 died with code -15"),
        (None, {0: -15, 1: 1}, "worker 1 died with code 1"),  # e.g. a module that cannot be imported
    ],
)
def test_the_cause_is_told(tmp_path, told, codes, line):
    path = tmp_path / "error.json"
    if told:
        path.write_text(json.dumps(told))
    assert str(_worker_error(path, codes)) == line
