import json
import os
import signal
import subprocess
import sys

import pytest

from frugal_shared.config import ProcessConfig
from frugal_shared.errors import UsageError
from frugal_shared.launch import _worker_error, launch

WORKER = '''
import atexit, json, os, signal, sys, time
from dataclasses import dataclass
from frugal_shared.cli import run_cli
from frugal_shared.config import RunConfig
from frugal_shared.errors import UsageError

@dataclass(frozen=True, kw_only=True)
class WorkConfig(RunConfig):
    """Work."""
    fail: bool = False
    abort: bool = False
    signal: int | None = None

def work(config):
    if config.abort:  # as the threads of a group now and then do
        atexit.register(os.abort)
    if config.signal is not None:
        os.kill(os.getpid(), config.signal)
        time.sleep(60)
    if config.fail:
        raise UsageError("fail=True is not possible; allowed: False")
    from frugal_shared.run import Run
    with Run(config, "frugal-shared") as run:
        (run.folder / f"worker-{run.accelerator.process_index}").write_text(json.dumps(dict(os.environ)))

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in a shell's background
    if "PRETEND_GPUS" in os.environ and "RANK" not in os.environ:  # to the process that starts the workers
        import torch
        torch.cuda.device_count = lambda: int(os.environ["PRETEND_GPUS"])
    sys.exit(run_cli("worker", {"work": (WorkConfig, "worker:work")}))
'''


@pytest.fixture
def start(tmp_path):
    """Start the worker's command line in a fresh process, as from a checkout: its module is in the current folder."""
    (tmp_path / "worker.py").write_text(WORKER)
    (tmp_path / "home").mkdir()

    def start(*options, launcher=("-m",), **environment):
        return started_in(tmp_path, options, launcher, tmp_path, **environment)

    return start


def started_in(folder, options, launcher, cwd, **environment):
    command = [sys.executable, *launcher, "worker", "work", "--output-dir", str(folder / "out"), *options]
    # no GPU, and nobody's Accelerate configuration
    clean = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HOME": str(folder / "home"), **environment}
    return subprocess.run(command, cwd=cwd, env=clean, capture_output=True, text=True, timeout=500)


@pytest.fixture
def alone(monkeypatch):
    """No launcher around these tests."""
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


def started(folder):
    """Return the world size in the manifest and the workers that have worked."""
    manifest = json.loads((folder / "out" / "manifest.json").read_text())
    return manifest["world_size"], sorted(path.name for path in (folder / "out").glob("worker-*"))


def environment_of(folder, rank):
    """Return the environment that a worker has worked in."""
    return json.loads((folder / "out" / f"worker-{rank}").read_text())


def test_one_process_runs_here(start, tmp_path):
    answer = start("--cpu", "--num-processes", "1")
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, "", "")
    assert started(tmp_path) == (1, ["worker-0"])


@pytest.mark.multiprocess
def test_two_processes_on_the_cpu(start, tmp_path):
    answer = start("--cpu", "--num-processes", "2", OMP_NUM_THREADS="3")
    assert (answer.returncode, answer.stderr) == (0, "")
    assert started(tmp_path) == (2, ["worker-0", "worker-1"])
    assert environment_of(tmp_path, 1)["OMP_NUM_THREADS"] == "3"  # the user's own choice is kept


@pytest.mark.multiprocess
def test_failing_workers_are_one_line(start, tmp_path):
    answer = start("--cpu", "--num-processes", "2", "--fail", "--abort")
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


def test_gpus_that_are_not_there_are_refused(monkeypatch, alone):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(UsageError) as error:
        launch(lambda: pytest.fail("ran here"), ProcessConfig(num_processes=2), "delta_dit", ["demo"])
    assert str(error.value) == "num_processes=2 needs 2 GPUs and there are 0; allowed: --cpu, or 1"


# what a user may have answered to `accelerate config`, and a port that is taken
HOSTILE = """
compute_environment: LOCAL_MACHINE
distributed_type: MULTI_GPU
gpu_ids: "7"
main_process_port: 1
mixed_precision: fp16
num_machines: 3
machine_rank: 2
num_processes: 6
use_cpu: false
debug: true
downcast_bf16: "no"
fsdp_config: {fsdp_version: 2}
dynamo_config: {dynamo_backend: INDUCTOR}
"""


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A run on two GPUs, started by a user of that configuration in a folder where modules lie about.

    There is no GPU here: the process that starts the workers is made to believe in two, and they then find none.
    """
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "worker.py").write_text(WORKER)
    (folder / "home" / "accelerate").mkdir(parents=True)
    (folder / "home" / "accelerate" / "default_config.yaml").write_text(HOSTILE)
    (folder / "data").mkdir()
    for name in ("tyro", "random", "torch"):
        (folder / "data" / f"{name}.py").write_text("raise SystemExit('executed')")
    options = ["--num-processes", "2"]
    return folder, started_in(folder, options, ["-P", "-m"], folder / "data", PRETEND_GPUS="2", PYTHONPATH=str(folder))


@pytest.mark.multiprocess
def test_gpus_are_found_whatever_the_user_has_configured_for_accelerate(hostile):
    folder, answer = hostile
    assert (answer.returncode, answer.stderr) == (0, "")
    assert started(folder) == (2, ["worker-0", "worker-1"])
    environment = environment_of(folder, 0)
    told = {name: value for name, value in environment.items() if name.startswith("ACCELERATE_")}
    assert told == {"ACCELERATE_USE_CPU": "true"}
    assert environment["CUDA_VISIBLE_DEVICES"] == ""


@pytest.mark.multiprocess
def test_what_lies_in_the_current_folder_is_not_run(hostile):
    """It may be somebody's data."""
    folder, answer = hostile
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, "", "")
    assert "PYTHONSAFEPATH" not in environment_of(folder, 0)  # nor in that of what the workers start


@pytest.mark.parametrize("config", [ProcessConfig(num_processes=2), ProcessConfig(num_processes=2, device="cuda")])
def test_workers_on_gpus_are_started_by_torch(monkeypatch, alone, config):
    started = []
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.distributed.run.run", started.append)
    before = dict(os.environ)
    launch(lambda: pytest.fail("ran here"), config, "delta_dit", ["demo", "--seed", "3"])
    (options,) = started
    assert (options.nproc_per_node, options.standalone, options.training_script) == ("2", True, sys.executable)
    assert options.training_script_args == ["-P", "-u", "-m", "delta_dit", "demo", "--seed", "3"]
    assert dict(os.environ) == before


TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


@pytest.mark.multiprocess
def test_torchrun_without_gpus_is_one_run_on_the_cpu(start, tmp_path):
    answer = start(launcher=[*TORCHRUN, "2", "-m"], OMP_NUM_THREADS="1")
    assert answer.returncode == 0, answer.stderr
    assert started(tmp_path) == (2, ["worker-0", "worker-1"])


WORLD = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}  # as torchrun tells a worker
ENDINGS = [
    (["--fail"], 2, "fail=True is not possible; allowed: False"),
    (["--signal", str(int(signal.SIGINT))], 130, "interrupted"),
]


@pytest.mark.parametrize("options, code, line", ENDINGS, ids=["fail", "interrupt"])
def test_a_worker_that_fails_leaves_at_once(start, options, code, line):
    """What would abort it on its way out has no turn."""
    answer = start("--cpu", "--abort", *options, **WORLD)
    assert (answer.returncode, answer.stdout, answer.stderr) == (code, "", f"worker: error: {line}\n")


ALONE = {"WORLD_SIZE": "1", "FRUGAL_ERROR_FILE": "elsewhere"}  # as a scheduler may export it
ENDINGS_ALONE = [*ENDINGS, (["--signal", str(int(signal.SIGTERM))], 143, "terminated")]


@pytest.mark.parametrize("options, code, line", ENDINGS_ALONE, ids=["fail", "interrupt", "terminate"])
def test_a_world_of_one_is_no_worker(start, options, code, line):
    answer = start("--cpu", *options, **ALONE)
    assert (answer.returncode, answer.stdout, answer.stderr) == (code, "", f"worker: error: {line}\n")


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
