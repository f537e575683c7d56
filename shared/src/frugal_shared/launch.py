"""Start a run on one or many processes: one option pair, ``--num-processes N`` and ``--cpu``, for every package.

=====================  ==============================================================================
asked for              what happens
=====================  ==============================================================================
1                      the command runs in this process
N with ``--cpu``       ``torch.distributed.run`` (gloo) starts N workers of the same command line
N without              ``accelerate launch`` starts one worker per GPU
under a launcher       (``accelerate launch -m delta_dit …``, ``torchrun``) this process is a worker: it runs
=====================  ==============================================================================

``accelerate launch --cpu --num_processes 2`` starts one process only (accelerate issue 2741), hence the second row.
Every worker checks that the world is as large as asked for.
"""

import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from frugal_shared.config import ProcessConfig
from frugal_shared.errors import RunError, UsageError

# where a worker leaves the one line that its parent prints, so that N workers do not print it N times
ERROR_FILE = "FRUGAL_ERROR_FILE"


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
    """
    if "WORLD_SIZE" in os.environ:
        _check_world_size(config)
        command()
    elif config.num_processes in (None, 1):
        command()
    elif config.cpu:
        _launch_cpu(config.num_processes or 1, module, argv)
    else:
        _launch_gpus(config.num_processes or 1, module, argv)


def _check_world_size(config: ProcessConfig) -> None:
    started = int(os.environ["WORLD_SIZE"])
    if config.num_processes not in (None, started):
        raise UsageError(f"num_processes={config.num_processes!r} was asked for, but the launcher started {started}")


def _launch_cpu(count: int, module: str, argv: list[str]) -> None:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)  # the one line below says it all
    # as many threads per worker as there are cores for it; torch.distributed.run would give each just one
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // count)))
    with tempfile.TemporaryDirectory() as folder:
        os.environ[ERROR_FILE] = f"{folder}/error.json"
        try:
            run(parse_args(["--standalone", "--nproc-per-node", str(count), "-m", module, *argv]))
        except ChildFailedError as error:
            _, failure = error.get_first_failure()
            raise _worker_error(Path(os.environ[ERROR_FILE]), failure.local_rank, failure.exitcode) from error
        finally:
            del os.environ[ERROR_FILE]


def _launch_gpus(count: int, module: str, argv: list[str]) -> None:
    import torch

    found = torch.cuda.device_count()
    if found < count:
        raise UsageError(f"num_processes={count} needs {count} GPUs and there are {found}; allowed: --cpu, or 1 to {found}")
    arguments = ["--multi_gpu", "--num_processes", str(count), "-m", module, *argv]
    code = subprocess.run([sys.executable, "-m", "accelerate.commands.launch", *arguments]).returncode
    if code != 0:
        raise RunError(f"num_processes={count}: a worker ended with code {code}")


def report_worker_error(message: str, code: int) -> bool:
    """Leave a worker's error for the process that started it; return False if :func:`launch` did not start it."""
    path = os.environ.get(ERROR_FILE)
    if path is None or "WORLD_SIZE" not in os.environ:
        return False
    try:
        with open(path, "x") as file:  # noqa: PTH123 (the first worker to fail tells)
            json.dump({"message": message, "code": code}, file)
    except FileExistsError:
        pass
    return True


def _worker_error(path: Path, rank: int, code: int) -> Exception:
    try:
        told = json.loads(path.read_text())
    except (OSError, ValueError):
        return RunError(f"worker {rank} died with code {code}")
    return UsageError(told["message"]) if told["code"] == 2 else RunError(told["message"])
