"""A process that has imported everything once and forks a child for every command; run as a script by ``faults.py``.

Importing torch and its friends takes many seconds, so a fresh interpreter for each of some hundred commands would take
an hour. A forked child is a process like any other: it is killed with SIGKILL, it is refused by the kernel, its exit
code is the one a shell would see. One request is one line of JSON on the standard input, as is its answer on the
standard output.
"""

import contextlib
import ctypes
import gc
import json
import os
import re
import resource
import shutil
import signal
import socket
import sys
import time
import traceback
from importlib import import_module
from pathlib import Path

LIMIT = 240  # seconds until a child counts as hanging
REFUSED = 1000  # bytes, from the event "full" on: enough for what is printed
NO_DISK = 77  # exit code where nothing can be mounted
CRASHED = 99  # exit code of a child that raised
CLONE_NEWNS, CLONE_NEWUSER = 0x00020000, 0x10000000


def main():
    gc.disable()  # but in the children
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what an import prints is no answer
    for line in sys.stdin:
        request = json.loads(line)
        prepare(request)
        answers.write(json.dumps(serve(request)) + "\n")
        answers.flush()
        import_as_children_did(request)
    gc.unfreeze()  # some libraries complain of what is left at the end


def prepare(request):
    """Import the packages with all their commands, and what every world needs; make what all runs of a command do."""
    for package in request["packages"]:
        for _, target in import_module(f"{package}.commands.cli").COMMANDS.values():
            import_module(target.partition(":")[0])
    if request["world"] > 1:
        import_module("accelerate")
    if request["prepare"] is not None:
        found(request["prepare"])()


def import_as_children_did(request):
    """Import what a child needed besides, so that later ones find it there."""
    path = Path(f"{request['log']}.0.modules")
    for name in json.loads(path.read_text()) if path.exists() else ():
        with contextlib.suppress(Exception):
            import_module(name)


def serve(request):
    """Fork the children of a request and wait for them; return their exit codes, minus the signal of those killed."""
    gc.freeze()  # else every collection in a child goes through a million objects of what was imported
    began, world, port = time.perf_counter(), request["world"], free_port()
    children = {fork(request, rank, port): rank for rank in range(world)}
    meeting_place = open_meeting_place(port) if world > 1 else None  # has a thread, and so comes after the forks
    codes = wait(children, began, request["kill_after"])
    del meeting_place
    return {"codes": codes, "seconds": time.perf_counter() - began}


def open_meeting_place(port):
    """Return where the processes of a world find each other, as torchrun's own process is.

    It outlives them: torch 2.7 hangs when it leaves a group whose meeting place is gone.
    """
    from torch.distributed import TCPStore

    return TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)


def wait(children, began, kill_after):
    codes = [None] * len(children)
    while None in codes:
        seconds = time.perf_counter() - began
        if seconds > (LIMIT if kill_after is None else kill_after):
            for pid, rank in children.items():
                if codes[rank] is None:
                    os.kill(pid, signal.SIGKILL)
            kill_after = None
            if seconds > LIMIT:
                break
        for pid, rank in children.items():
            if codes[rank] is None and (found := os.waitpid(pid, os.WNOHANG))[0]:
                codes[rank] = os.waitstatus_to_exitcode(found[1])
        time.sleep(0.002)
    return codes


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def fork(request, rank, port):
    if pid := os.fork():
        return pid
    code = CRASHED
    gc.enable()
    try:
        code = child(request, rank, port)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def child(request, rank, port):
    for stream, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(f"{request['log']}.{rank}.{name}", os.O_CREAT | os.O_TRUNC | os.O_WRONLY), stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in a shell's background
    os.chdir(request["cwd"])
    os.environ.update(request["env"])
    if request["world"] > 1:
        ranks = {"RANK": rank, "LOCAL_RANK": rank, "MASTER_PORT": port, "TORCHELASTIC_RESTART_COUNT": 0}
        sizes = {"WORLD_SIZE": request["world"], "LOCAL_WORLD_SIZE": request["world"], "MASTER_ADDR": "127.0.0.1"}
        place = {"TORCHELASTIC_USE_AGENT_STORE": True}
        os.environ.update({name: str(value) for name, value in (ranks | sizes | place).items()})
    for target, value in request["patches"].items():
        module, _, name = target.rpartition(".")
        setattr(import_module(module), name, found(value))
    if request["disk"] is not None:
        try:
            mount(request["folder"], request["disk"])
        except OSError:
            return NO_DISK
    if request["user"] is not None and os.geteuid() == 0:
        os.setresuid(*[request["user"]] * 3)
    events, before = watch(Path(request["folder"]), request["moments"]), set(sys.modules)
    code = found(request["call"])(*request["args"])
    with contextlib.suppress(OSError):  # as another user, or where no file may grow
        Path(f"{request['log']}.{rank}.events").write_text(json.dumps(list(dict.fromkeys(events))))
        Path(f"{request['log']}.{rank}.modules").write_text(json.dumps(sorted(set(sys.modules) - before)))
    if request["disk"] is not None:
        shutil.copytree(request["folder"], f"{request['folder']}.left")  # the disk ends with this process
    return code or 0


def found(value):
    """Return what "module:name" means, and anything else as it is."""
    if not isinstance(value, str) or ":" not in value:
        return value
    module, name = value.split(":")
    return getattr(import_module(module), name)


def watch(folder, moments):
    """Note whatever is done to files below a folder, and do at the given events what ``moments`` says, before it.

    An event is a verb and a path: "open", "rename" (to), "mkdir", "remove", "rmtree".
    """
    events, prefix = [], os.fspath(folder) + os.sep

    def hook(name, args):
        if name not in VERBS:
            return
        target = VERBS[name](*args)
        if not isinstance(target, str | os.PathLike) or not str(Path(target).absolute()).startswith(prefix):
            return
        event = f"{name.rpartition('.')[2]} {stable(os.path.relpath(target, folder))}"
        events.append(event)
        if event in moments:
            ACTIONS[moments.pop(event)](args)

    sys.addaudithook(hook)
    return events


def opened(path, mode, flags):
    """Return the path of a file that is opened to be written."""
    writes = set(mode) & set("wax+") if mode else flags & (os.O_WRONLY | os.O_RDWR)
    return path if writes else None


VERBS = {
    "open": opened,
    "os.rename": lambda source, target, *_: target,
    "os.mkdir": lambda path, *_: path,
    "os.remove": lambda path, *_: path,
    "shutil.rmtree": lambda path, *_: path,
}


def stable(path):
    """Return a path without the random parts of temporary names."""
    return re.sub(r"(^|/)(\.[^/]+)\.[a-z0-9_]{8}(?=/|$)", r"\1\2", path)


def die(_):
    os.kill(os.getpid(), signal.SIGKILL)


def die_half_written(args):
    """Leave on the disk what a kill in the middle of a write leaves: half of the temporary file."""
    source = args[0]
    os.truncate(source, Path(source).stat().st_size // 2)
    die(args)


def fill(_):
    """From now on the kernel refuses to let any file grow beyond some bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (REFUSED, resource.RLIM_INFINITY))


ACTIONS = {
    "kill": die,
    "half": die_half_written,
    "full": fill,
    "interrupt": lambda _: os.kill(os.getpid(), signal.SIGINT),
    "terminate": lambda _: os.kill(os.getpid(), signal.SIGTERM),
}


def mount(folder, size):
    """Put a disk of ``size`` bytes in place of a folder, with what the folder holds; only this process sees it."""
    libc = ctypes.CDLL(None, use_errno=True)
    held = shutil.copytree(folder, f"{folder}.held")
    flags = CLONE_NEWNS if os.geteuid() == 0 else CLONE_NEWNS | CLONE_NEWUSER
    options = f"size={size}".encode()
    if libc.unshare(flags) or libc.mount(b"none", b"/", None, 0x4000 | 0x40000, None):  # MS_REC | MS_PRIVATE
        raise OSError(ctypes.get_errno(), "no mount namespace")
    if libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, options):
        raise OSError(ctypes.get_errno(), "no tmpfs")
    shutil.copytree(held, folder, dirs_exist_ok=True)


if __name__ == "__main__":
    main()
