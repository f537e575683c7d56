"""Start a run on one or many processes: one option pair, ``--num-processes N`` and ``--device``, for every package.

==================  ==================================================================================
asked for           what happens
==================  ==================================================================================
1                   the command runs in this process
N with ``--cpu``    ``torch.distributed.run`` starts N workers of the same command line (gloo)
N without           the same, with one GPU for each worker (NCCL)
under a launcher    (``accelerate launch -m delta_dit …``, ``torchrun``) this process is a worker: it runs
==================  ==================================================================================

``accelerate launch`` itself is left to users: with ``--cpu --num_processes 2`` it starts one process only (accelerate
issue 2741), and what is not said to it, as the GPUs' numbers and the port, it takes from its user's configuration file.

The launcher runs inside this process, so that a worker's failure comes back as an exception and is told in one line.
"""

import contextlib
import ctypes
import json
import logging
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

from frugal_shared.config import ProcessConfig
from frugal_shared.errors import RunError, Terminated, UsageError

# where a worker leaves the one line that its parent prints, so that N workers do not print it N times
ERROR_FILE = "FRUGAL_ERROR_FILE"
LAUNCHER = "FRUGAL_LAUNCHER"  # the parent's process number
# what else starts processes together, and the variable that tells each of them how many they are
MPI_WORLDS = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
SLURM_WORLDS = ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS")
ALLOWED = "allowed: torchrun or accelerate launch, once per machine under srun or mpirun; or --num-processes"
# how `accelerate launch` tells its workers to shard what our runs hold whole
PLUGINS = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism config",
}
# how it tells an Accelerator to train otherwise than the command says, and what says nothing
TRAINING = {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1", "ACCELERATE_DYNAMO_BACKEND": "no"}
PR_SET_PDEATHSIG = 1  # of Linux's prctl: a signal for when the parent has ended


def launch(command: Callable[[], None], config: ProcessConfig, module: str, argv: list[str]) -> None:
    """Run ``command`` here, or start ``python -m module *argv`` on ``config.num_processes`` processes.

    Args:
        command: what a single process, or a worker, does.
        config: holds ``num_processes`` and the device.
        module: the package to start workers with, e.g. ``"delta_dit"``.
        argv: the command line of this process, without the program's name.

    Raises:
        UsageError: a world size or a device that cannot be had.
        RunError: a worker failed.
        KeyboardInterrupt: the workers were interrupted.
        Terminated: the process was told to end, and has ended the workers.
    """
    count, world = config.num_processes, started_world()
    if world > 1:
        if count not in (None, world):
            raise UsageError(f"num_processes={count!r} was asked for, but the launcher started {world}")
        _check_ranks(world)
        die_with_launcher()
    if world > 1 or count in (None, 1):
        with use_device(config):
            command()
        leave_group()
        return
    if config.on_cpu:
        _start_workers(count, module, argv)
    else:
        _check_gpus(count)
        with _environment(**_for_old_gpus()):
            _start_workers(count, module, argv)


def started_world() -> int:
    """Return how many processes a launcher started together, of which this is one; 1 without a launcher."""
    return next((count for name in _world_variables() if (count := _number(name)) is not None), 1)


def check_launcher(mixed_precision: str) -> None:
    """Refuse what the launcher set up and no run supports; to be called before an Accelerator is made.

    Args:
        mixed_precision: what the command computes in: "no", "bf16" or "fp16".

    Raises:
        UsageError: FSDP, DeepSpeed, Megatron-LM, a parallelism config or XLA; gradient accumulation or torch.compile;
            or another precision than the command's.
    """
    from accelerate.utils import is_torch_xla_available

    for variable, name in PLUGINS.items():
        if os.environ.get(variable, "").lower() == "true":
            raise UsageError(f"{variable}=true: {name} is not supported; allowed: one whole model per process (DDP)")
    for variable, neutral in TRAINING.items():
        if (value := os.environ.get(variable, neutral)).lower() != neutral:
            raise UsageError(f"{variable}={value} of the launcher is not what the command does; allowed: {neutral}")
    if is_torch_xla_available():
        raise UsageError("torch_xla is not supported; allowed: USE_TORCH_XLA=0 in the environment")
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if asked not in ("no", mixed_precision):
        raise UsageError(
            f"mixed_precision={asked!r} of the launcher is not what the command computes in ({mixed_precision!r}); "
            "allowed: --mixed_precision no for accelerate launch, and the command's own --dtype where it has one"
        )


def check_world(num_processes: int) -> None:
    """Raise :class:`UsageError` unless a run has as many processes as the launcher started.

    Args:
        num_processes: of the run's Accelerator.
    """
    started = started_world()
    if num_processes != started:
        raise UsageError(f"the launcher started {started} processes, but this run has {num_processes}; {ALLOWED}")


@contextlib.contextmanager
def heeding_sigterm() -> Iterator[None]:
    """Let SIGTERM raise :class:`Terminated`, so that a batch system's notice leaves nothing half-written.

    Not in a worker: it ends at once, as is the default, for where it waits for the others no Python handler is heard.
    """
    if started_world() > 1 or threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminate(*_: object) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def die_with_launcher() -> None:
    """Let the kernel kill this worker when its launcher is killed, which then can end nobody; on Linux.

    Not under a launcher of the user's own, who knows best.
    """
    if LAUNCHER in os.environ and sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != int(os.environ[LAUNCHER]):  # it was killed before that was said
            os.kill(os.getpid(), signal.SIGKILL)


def leave_group() -> None:
    """End this process's part in the process group, whose threads else may abort one that is done and leaves."""
    distributed = sys.modules.get("torch.distributed")
    if distributed and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def leave_now(code: int) -> NoReturn:
    """End a worker that has failed, and has said so: the threads of its group abort an ordinary end now and then."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # nobody reads it any more, or it is closed
            stream.flush()
    os._exit(code)


@contextlib.contextmanager
def use_device(config: ProcessConfig) -> Iterator[None]:
    """Let an Accelerator that is made in this ``with`` block compute where the config says.

    Nothing is done where Accelerate finds the device itself: one process takes the GPU if there is one, and each of
    several its own.

    Args:
        config: holds the device.

    Raises:
        UsageError: the device is not there, or is one for several processes.
    """
    device, world = "cpu" if config.on_cpu else config.device, started_world()
    if device is None and world > 1 and not _many_gpus():
        device = "cpu"  # Accelerate would let each process run alone
    with contextlib.ExitStack() as undo:
        if world == 1:  # nor does Accelerate look for others, by MPI's first variable and that of a worker
            undo.enter_context(_environment(PMI_SIZE="1", LOCAL_RANK="-1"))
        if device == "cpu":
            undo.enter_context(_environment(ACCELERATE_USE_CPU="true"))
        elif device is not None:
            _check_device(device, world)
            undo.enter_context(_one_device(device))
        yield


@contextlib.contextmanager
def _one_device(device: str) -> Iterator[None]:
    """Let Accelerate compute on a device that may have a number, and make it PyTorch's current one.

    The current one is where ``torch.cuda.synchronize`` and the like look. To hide the others by CUDA_VISIBLE_DEVICES
    would come too late where CUDA has been looked at.
    """
    import torch

    index = torch.device(device).index
    if index is None:  # Accelerate's own choice is the same
        yield
        return
    before = torch.accelerator.current_device_index()
    torch.accelerator.set_device_index(index)
    try:
        with _environment(ACCELERATE_TORCH_DEVICE=device):
            yield
    finally:
        torch.accelerator.set_device_index(before)


def _check_device(device: str, world: int) -> None:
    from accelerate.utils import parse_flag_from_env

    found = ["cpu", *_gpus()]
    if device not in found:
        raise UsageError(f"device={device!r} is not there; allowed: {', '.join(found)}")
    if parse_flag_from_env("ACCELERATE_USE_CPU"):
        raise UsageError(f"device={device!r} contradicts --cpu of accelerate launch; allowed: one of them")
    if world > 1 and ":" in device:
        kind = device.partition(":")[0]
        raise UsageError(f"device={device!r} is one for {world} processes; allowed: {kind}, one for each, or cpu")


def _gpus() -> list[str]:
    """Return the names of the GPUs, or of whatever else accelerates, as ``cuda``, ``cuda:0``, ``cuda:1``."""
    import torch

    found = torch.accelerator.current_accelerator(check_available=True)
    if found is None:
        return []
    return [found.type, *(f"{found.type}:{index}" for index in range(torch.accelerator.device_count()))]


def _many_gpus() -> bool:
    """Return whether there is what several processes can compute on, each on its own."""
    return bool({*_gpus()} - {"mps", "mps:0"})


@contextlib.contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Set variables of the environment for a while."""
    before = {name: os.environ.get(name) for name in values}
    os.environ |= values
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _world_variables() -> tuple[str, ...]:
    """Return the variables that tell how many processes were started together, the most telling first."""
    return ("WORLD_SIZE", *MPI_WORLDS, *(SLURM_WORLDS if _in_slurm_step() else ()))


def _in_slurm_step() -> bool:
    """Return whether srun started this process.

    The shell of salloc and the script of sbatch are one process each, and know SLURM_NTASKS all the same; so is what
    ``srun --pty`` gives a terminal to.
    """
    stepped = "SLURM_STEP_ID" in os.environ or _number("SLURM_PROCID") not in (None, 0)
    return stepped and "SLURM_PTY_PORT" not in os.environ


def _number(name: str) -> int | None:
    value = os.environ.get(name, "")
    return int(value) if value.isdecimal() else None


def _check_ranks(world: int) -> None:
    """Raise unless each process can know which of them it is; those that cannot would all be the first."""
    # with MPI's variables Accelerate makes do, for `accelerate launch --mpirun_hostfile`
    by_mpi = "MASTER_ADDR" in os.environ and any(name in os.environ for name in MPI_WORLDS)
    missing = [name for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK") if name not in os.environ]
    if missing and not by_mpi:
        name = next(name for name in _world_variables() if _number(name) == world)
        raise UsageError(
            f"{name}={world} processes were started, but without {', '.join(missing)} each would run alone; {ALLOWED}, "
            "or WORLD_SIZE=1 where each is meant to"
        )


def _check_gpus(count: int) -> None:
    import torch

    found = torch.cuda.device_count()
    if found < count:
        allowed = f"--cpu, or 1 to {found}" if found else "--cpu, or 1"
        raise UsageError(f"num_processes={count} needs {count} GPUs and there are {found}; allowed: {allowed}")


def _start_workers(count: int, module: str, argv: list[str]) -> None:
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    # -P: what lies in the current folder, which may be somebody's data, is no module of ours
    python = [sys.executable, "-P", "-u", "-m", module, *argv]
    logging.disable(logging.CRITICAL)  # torch's own account of a failure; the one line below says it all
    with tempfile.TemporaryDirectory() as folder, _environment(**_for_workers(count, module, folder)):
        try:
            run(parse_args(["--standalone", "--nproc-per-node", str(count), "--no-python", *python]))
        except ChildFailedError as error:
            codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
            raise _worker_error(Path(os.environ[ERROR_FILE]), codes) from error
        except SignalException as error:
            raise (Terminated if error.sigval == signal.SIGTERM else KeyboardInterrupt) from error
        finally:
            logging.disable(logging.NOTSET)


def _for_workers(count: int, module: str, folder: str) -> dict[str, str]:
    """Return the variables that workers find in their environment."""
    import torch

    # as many threads per worker as there are cores for it; torch.distributed.run would give each just one
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, torch.get_num_threads() // count))
    told = {"OMP_NUM_THREADS": threads, ERROR_FILE: f"{folder}/error.json", LAUNCHER: str(os.getpid())}
    return told | _search_path(module)


def _for_old_gpus() -> dict[str, str]:
    """Return what Accelerate asks for, and ``accelerate launch`` sets, on RTX 4000 GPUs with a driver of 2023."""
    from accelerate.utils import check_cuda_p2p_ib_support

    unsaid = {"NCCL_P2P_DISABLE", "NCCL_IB_DISABLE"} - os.environ.keys()
    return {} if check_cuda_p2p_ib_support() else dict.fromkeys(unsaid, "1")


def _search_path(module: str) -> dict[str, str]:
    """Return where workers look for the module that this process found in the current folder: a checkout, say."""
    spec = find_spec(module)
    place = spec and (spec.submodule_search_locations or [spec.origin])[0]
    if place is None or Path(place).parent != Path.cwd():
        return {}
    given = os.environ.get("PYTHONPATH")
    return {"PYTHONPATH": os.pathsep.join([str(Path.cwd()), *([given] if given else [])])}


def report_worker_error(message: str, code: int) -> bool:
    """Leave a worker's error for the process that started it; return False if :func:`launch` did not start it."""
    path = os.environ.get(ERROR_FILE)
    if path is None or started_world() == 1:
        return False
    try:
        with open(path, "x") as file:  # noqa: PTH123 (the first worker to fail tells)
            file.write(json.dumps({"message": message, "code": code}))
    except FileExistsError:
        pass
    return True


def _worker_error(path: Path, codes: dict[int, int]) -> Exception:
    """Return what made the workers fail, given the exit codes of those that did (rank → code)."""
    # once one has failed, torch ends the others
    failed = {rank: code for rank, code in codes.items() if code != -signal.SIGTERM} or codes
    for rank, code in failed.items():
        # a worker that was killed tells nothing, and what the others tell is only that they lost it
        if code not in (1, 2) or not path.exists():
            return RunError(f"worker {rank} died with code {code}")
    told = json.loads(path.read_text())
    return UsageError(told["message"]) if told["code"] == 2 else RunError(told["message"])
