"""The world that a launcher started is the world that runs, or one line says what is allowed."""

import signal

import pytest
import torch
from accelerate.state import PartialState

from frugal_shared.config import ProcessConfig
from frugal_shared.errors import UsageError
from frugal_shared.launch import (
    PLUGINS,
    TRAINING,
    check_launcher,
    check_world,
    heeding_sigterm,
    launch,
    started_world,
    use_device,
)

TOLD = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
SLURM = ("SLURM_NTASKS", "SLURM_PROCID", "SLURM_STEP_ID", "SLURM_STEP_NUM_TASKS", "SLURM_PTY_PORT")


@pytest.fixture
def tell(monkeypatch):
    """Set the variables by which a launcher tells a process about its world, and none besides."""

    def tell(variables):
        for name in (*TOLD, *SLURM, *PLUGINS, *TRAINING, "ACCELERATE_MIXED_PRECISION"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return tell


def runs(config):
    """Return whether the command runs in this process."""
    done = []
    launch(lambda: done.append(True), config, "delta_dit", [])
    return done == [True]


STEP = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2"}
TORCH = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}
APART = {
    "srun": (STEP | {"SLURM_PROCID": "0"}, "SLURM_STEP_NUM_TASKS=2"),
    "srun of an old Slurm": ({"SLURM_NTASKS": "2", "SLURM_PROCID": "1"}, "SLURM_NTASKS=2"),
    "srun with an address": (STEP | {"MASTER_ADDR": "node1"}, "SLURM_STEP_NUM_TASKS=2"),
    "Open MPI": ({"OMPI_COMM_WORLD_SIZE": "2"}, "OMPI_COMM_WORLD_SIZE=2"),
    "MPICH": ({"PMI_SIZE": "2"}, "PMI_SIZE=2"),
    "a size and no rank": ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2"),
    "no rank on the machine": ({"WORLD_SIZE": "2", "RANK": "0"}, "WORLD_SIZE=2"),
}


@pytest.mark.parametrize("variables, field", APART.values(), ids=APART)
@pytest.mark.parametrize("count", [None, 2])
def test_processes_that_would_each_run_alone_are_refused(tell, variables, field, count):
    tell(variables)
    with pytest.raises(UsageError, match=f"{field} processes were started.*LOCAL_RANK.*allowed: torchrun") as error:
        runs(ProcessConfig(num_processes=count, cpu=True))
    assert "\n" not in str(error.value)


ONE = {
    "no launcher": {},
    "the shell of salloc": {"SLURM_NTASKS": "2"},
    "the script of sbatch": {"SLURM_NTASKS": "2", "SLURM_PROCID": "0"},
    "srun of one task": STEP | {"SLURM_STEP_NUM_TASKS": "1"},
    "a terminal of srun": STEP | {"SLURM_PTY_PORT": "40000"},
    "tasks of srun that are meant to be alone": STEP | {"WORLD_SIZE": "1"},
    "a size of 1": {"WORLD_SIZE": "1"},
    "mpirun of one": {"PMI_SIZE": "1"},
    "a size that is none": {"WORLD_SIZE": ""},
}
ALONE_FOR_US = {
    "mpirun of tasks that are meant to be alone": {"WORLD_SIZE": "1", "OMPI_COMM_WORLD_SIZE": "2"},
    "a worker's number and no launcher": {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"},
    "a size that is none": {"WORLD_SIZE": ""},
}
WORKERS = {
    "torchrun": TORCH,
    "torchrun once per machine under srun": STEP | TORCH,
    "accelerate launch with a --mpirun_hostfile": {"OMPI_COMM_WORLD_SIZE": "2", "MASTER_ADDR": "node1"},
}


@pytest.mark.parametrize("variables", ONE.values(), ids=ONE)
def test_a_process_that_is_alone_runs(tell, variables):
    tell(variables)
    assert started_world() == 1
    assert runs(ProcessConfig())
    check_world(1)


@pytest.fixture
def apart():
    """Accelerate as in a new process."""
    PartialState._reset_state()
    yield
    PartialState._reset_state()


@pytest.mark.parametrize("variables", ALONE_FOR_US.values(), ids=ALONE_FOR_US)
def test_what_we_take_for_one_process_is_one_for_accelerate(tell, apart, variables):
    tell(variables)
    with use_device(ProcessConfig(cpu=True)):
        assert PartialState(cpu=True).num_processes == started_world() == 1
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize("variables", WORKERS.values(), ids=WORKERS)
@pytest.mark.parametrize("count", [None, 2])
def test_a_worker_runs(tell, variables, count):
    tell(variables)
    assert started_world() == 2
    assert runs(ProcessConfig(num_processes=count, cpu=True))
    check_world(2)


def test_a_run_that_is_smaller_than_its_world_is_refused(tell):
    tell(TORCH)
    with pytest.raises(UsageError, match="the launcher started 2 processes, but this run has 1; allowed: torchrun"):
        check_world(1)


def test_a_worker_ends_at_once_on_sigterm_and_a_world_of_one_says_so(tell):
    handlers = {}
    for size in ("1", "2"):
        tell(TORCH | {"WORLD_SIZE": size})
        with heeding_sigterm():
            handlers[size] = signal.getsignal(signal.SIGTERM)
    assert handlers["2"] == signal.getsignal(signal.SIGTERM) != handlers["1"]


@pytest.mark.parametrize("variable", PLUGINS)
def test_what_shards_a_model_is_refused(tell, variable):
    tell({variable: "true"})
    with pytest.raises(UsageError, match=rf"{variable}=true: .* is not supported; allowed: "):
        check_launcher("no")
    tell({variable: "false"})
    check_launcher("no")


@pytest.mark.parametrize(
    "variable, value, neutral",
    [("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", "1"), ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", "NO")],
)
def test_what_would_train_otherwise_is_refused(tell, variable, value, neutral):
    """Accelerate would divide every loss by 4, or compile the model, whose tensors then have other names."""
    tell({variable: value})
    with pytest.raises(
        UsageError, match=f"{variable}={value} of the launcher is not what .*; allowed: {neutral.lower()}"
    ):
        check_launcher("no")
    tell({variable: neutral})
    check_launcher("no")


def test_xla_is_refused(tell, monkeypatch):
    tell({})
    monkeypatch.setattr("accelerate.utils.is_torch_xla_available", lambda: True)
    with pytest.raises(UsageError, match="torch_xla is not supported; allowed: USE_TORCH_XLA=0"):
        check_launcher("no")


@pytest.mark.parametrize("asked, own", [("bf16", "no"), ("fp16", "bf16"), ("fp8", "no")])
def test_another_precision_than_the_commands_is_refused(tell, asked, own):
    tell({"ACCELERATE_MIXED_PRECISION": asked})
    with pytest.raises(UsageError, match=f"mixed_precision='{asked}' of the launcher .*'{own}'.*allowed: .*--dtype"):
        check_launcher(own)


@pytest.mark.parametrize("asked, own", [("no", "bf16"), ("bf16", "bf16"), ("no", "no")])
def test_the_commands_own_precision_is_fine(tell, asked, own):
    """``accelerate launch`` says "no" where its user says nothing."""
    tell({"ACCELERATE_MIXED_PRECISION": asked})
    check_launcher(own)
