"""Start a run on one or many processes: one option pair, ``--num-processes N`` and ``--cpu``, for every package.

==================  ==================================================================================
asked for           what happens
==================  ==================================================================================
1                   the command runs in this process
N with ``--cpu``    ``torch.distributed.run`` (gloo) starts N workers of the same command line
N without           ``accelerate launch`` starts one worker per GPU
under a launcher    (``accelerate launch -m delta_dit …``, ``torchrun``) this process is a worker: it runs
==================  ==================================================================================

``accelerate launch --cpu --num_processes 2`` starts one process only (accelerate issue 2741), hence the second row.
Both launchers run inside this process, so that a worker's failure comes back as an exception and is told in one line.
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
from pathlib import Path

from frugal_shared.config import ProcessConfig
from frugal_shared.errors import RunError, Terminated, UsageError

# where a worker leaves the one line that its parent prints, so that N workers do not print it N times
ERROR_FILE = "FRUGAL_ERROR_FILE"
LAUNCHER = "FRUGAL_LAUNCHER"  # the parent's process number
# what else starts processes together, and the variable that tells each of them how many they are
MPI_WORLDS = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
SLURM_WORLDS = ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS")
ALLOWED = "allowed: torchrun or accelerate launch, which also srun and mpirun can start, or --num-processes"
# how `accelerate launch` tells its workers to shard what our runs hold whole
PLUGINS = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism config",
}
PR_SET_PDEATHSIG = 1  # of Linux's prctl: a signal for when the parent has ended


def launch(command: Callable[[], None], config: ProcessConfig, module: str, argv: list[str]) -> None:
    """Run ``command`` here, or start ``python -m module *argv`` on ``config.num_processes`` processes.

    Args:
        command: what a single process, or a worker, does.
        config: holds ``num_processes`` and ``cpu``.
        module: the package to start workers with, e.g. ``"delta_dit"``.
        argv: the command line of this process, without the program's name.

    Raises:
        UsageError: a world size that cannot be had.
        RunError: a worker failed.
        KeyboardInterrupt: the workers were interrupted.
        Terminated: the process was told to end, and has ended the workers.
    """
    count = config.num_processes
    if "WORLD_SIZE" in os.environ:
        started = int(os.environ["WORLD_SIZE"])
        if count not in (None, started):
            raise UsageError(f"num_processes={count!r} was asked for, but the launcher started {started}")
        die_with_launcher()
        command()
        leave_group()
    elif count in (None, 1):
        command()
    else:
        if not config.cpu:
            _check_gpus(count)
        _start_workers(_run_on_cpu if config.cpu else _run_on_gpus, count, module, argv)


def started_world() -> int:
    """Return how many processes a launcher started together, of which this is one; 1 without a launcher."""
    return next((count for name in _world_variables() if (count := _number(name)) is not None), 1)


def check_launcher(mixed_precision: str) -> None:
    """Refuse what the launcher set up and no run supports; to be called before an Accelerator is made.

    Args:
        mixed_precision: what the command computes in: "no", "bf16" or "fp16".

    Raises:
        UsageError: FSDP, DeepSpeed, Megatron-LM, a parallelism config or XLA; or another precision than the command's.
    """
    from accelerate.utils import is_torch_xla_available

    for variable, name in PLUGINS.items():
        if os.environ.get(variable, "").lower() == "true":
            raise UsageError(f"{variable}=true: {name} is not supported; allowed: one whole model per process (DDP)")
    if is_torch_xla_available():
        raise UsageError("torch_xla is not supported; allowed: USE_TORCH_XLA=0 in the environment")
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if asked not in ("no", mixed_precision):
        raise UsageError(
            f"mixed_precision={asked!r} of the launcher is not what the command computes in ({mixed_precision!r}); "
            "allowed: --mixed_precision no for accelerate launch, and the command's own --precision or --dtype"
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
    if "WORLD_SIZE" in os.environ or threading.current_thread() is not threading.main_thread():
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
    """End this worker's part in the process group, whose threads else may abort a worker that is done and leaves."""
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


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


def _check_gpus(count: int) -> None:
    import torch

    found = torch.cuda.device_count()
    if found < count:
        allowed = f"--cpu, or 1 to {found}" if found else "--cpu, or 1"
        raise UsageError(f"num_processes={count} needs {count} GPUs and there are {found}; allowed: {allowed}")


def _run_on_cpu(count: int, module: str, argv: list[str]) -> None:
    import torch
    from torch.distributed.run import parse_args, run

    # as many threads per worker as there are cores for it; torch.distributed.run would give each just one
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, torch.get_num_threads() // count)))
    run(parse_args(["--standalone", "--nproc-per-node", str(count), "-m", module, *argv]))


def _run_on_gpus(count: int, module: str, argv: list[str]) -> None:
    from accelerate.commands.launch import launch_command, launch_command_parser

    # what is not said here, accelerate would take from its configuration file, or warn about
    options = ["--multi_gpu", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    options += ["--num_processes", str(count), "-m", module, *argv]
    launch_command(launch_command_parser().parse_args(options))


def _start_workers(start: Callable[[int, str, list[str]], None], count: int, module: str, argv: list[str]) -> None:
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    logging.disable(logging.CRITICAL)  # torch's own account of a failure; the one line below says it all
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {ERROR_FILE: f"{folder}/error.json", LAUNCHER: str(os.getpid())}
        try:
            start(count, module, argv)
        except ChildFailedError as error:
            codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
            raise _worker_error(Path(os.environ[ERROR_FILE]), codes) from error
        except SignalException as error:
            raise (Terminated if error.sigval == signal.SIGTERM else KeyboardInterrupt) from error
        finally:
            del os.environ[ERROR_FILE], os.environ[LAUNCHER]
            logging.disable(logging.NOTSET)


def report_worker_error(message: str, code: int) -> bool:
    """Leave a worker's error for the process that started it; return False if :func:`launch` did not start it."""
    path = os.environ.get(ERROR_FILE)
    if path is None or "WORLD_SIZE" not in os.environ:
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
