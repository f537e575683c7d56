"""What the tests of faults share: a laboratory that runs commands in processes that something happens to."""

import json
import os
import random
import re
import subprocess
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tiny import COMMANDS

HERE = Path(__file__).parent
# of these a resumed run may tell something else: when it began, how long it took, what a killed one left behind
UNCOMPARED = re.compile(r"(^|/)(manifest\.json|metrics\.jsonl|report\.(html|json)|rows\.csv|checkpoints/.*|\..*)$")
TIMES = re.compile(r"seconds|wall|^resume$")  # and bdp-nas stores the options beside what it found
NOTICES = ("samples: ", "collapsed: ", "plan: tries ")  # of bdp-nas and delta-dit, on the standard error


@dataclass(frozen=True)
class Answer:
    """How a command ended: its exit codes by rank (minus the signal that killed it), what it printed and did."""

    codes: list[int]
    seconds: float
    log: Path

    @property
    def code(self):
        return self.codes[0]

    @property
    def errors(self):
        """The lines on the standard error of the first process, without notices."""
        lines = self.log.with_name(self.log.name + ".0.stderr").read_text().splitlines()
        return [line for line in lines if not line.startswith(NOTICES)]

    @property
    def events(self):
        """What was done to files in the run folder, in order, each event once."""
        return json.loads(self.log.with_name(self.log.name + ".0.events").read_text())


class Laboratory:
    """Runs commands in forked children; whole runs and inputs are made once.

    Args:
        root: an empty folder.
    """

    def __init__(self, root):
        self.root, self.runs = root, {}

    @cached_property
    def server(self):
        """The process that forks, with one thread for each child and no network."""
        path = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": path}
        command = [sys.executable, str(HERE / "forkserver.py")]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)

    @cached_property
    def inputs(self):
        """The folder with what the commands read."""
        folder = self.root / "inputs"
        folder.mkdir()
        self.ask([], folder, call="tiny:make_inputs", args=[str(folder)])
        return folder

    def close(self):
        if "server" in self.__dict__:
            self.server.stdin.close()
            self.server.wait()

    def ask(self, packages, folder, **options):
        """Call a function in processes forked from one that has imported ``packages``; see ``forkserver.py``."""
        request = {"packages": packages, "folder": str(folder), "log": f"{folder}.log", "cwd": str(self.root)}
        request |= {
            "env": {},
            "prepare": None,
            "patches": {},
            "moments": {},
            "world": 1,
            "kill_after": None,
            "disk": None,
            "user": None,
        }
        request |= options
        self.server.stdin.write(json.dumps(request, default=str) + "\n")
        self.server.stdin.flush()
        return Answer(**json.loads(self.server.stdout.readline()), log=Path(request["log"]))

    def run(self, command, folder, *extra, **options):
        """Run a command on the CPU into ``folder``; see ``forkserver.py`` for what may happen to it."""
        paths = {"root": self.inputs}
        siblings = [other for other in COMMANDS if other.package == command.package]
        paths |= {other.name: self.whole(other) for other in siblings if f"{{{other.name}}}" in command.line}
        _, name, *given = command.line.split()
        arguments = [word.format(**paths) for word in given]
        module = command.package.replace("-", "_")
        return self.ask(
            [module],
            folder,
            call=f"{module}.commands.cli:main",
            args=[[name, *arguments, "--output-dir", str(folder), "--cpu", *extra]],
            patches=command.patches,
            prepare=command.prepare,
            env={"TINY_ROOT": str(self.inputs)},
            **options,
        )

    def whole(self, command):
        """Return the folder of an uninterrupted run."""
        if command not in self.runs:
            folder = self.root / str(command).replace(" ", "-")
            self.runs[command] = folder, self.run(command, folder)
        folder, answer = self.runs[command]
        assert answer.codes == [0], answer.errors
        return folder

    def answer(self, command):
        """Return how the uninterrupted run went."""
        self.whole(command)
        return self.runs[command][1]


def outputs(folder):
    """Return what came out of a run by name: bytes, and of JSON the values that are no times."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    named = {str(path.relative_to(folder)): path for path in files}
    return {name: output(path, folder) for name, path in named.items() if not UNCOMPARED.search(name)}


def output(path, folder):
    if path.suffix != ".json":
        return path.read_bytes()
    return timeless(json.loads(path.read_text().replace(str(folder), "")))


def timeless(value):
    if isinstance(value, dict):
        return {key: timeless(item) for key, item in value.items() if not TIMES.search(key)}
    return [timeless(item) for item in value] if isinstance(value, list) else value


def differing(one, other):
    """Return the names of the outputs in which two folders differ."""
    one, other = outputs(one), outputs(other)
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def leftovers(folder):
    """Return hidden files and folders, as half-written ones are, but for what says that features are done."""
    hidden = (path for path in folder.rglob(".*") if not re.fullmatch(r"\.(train|val)-\d+", path.name))
    return sorted(str(path.relative_to(folder)) for path in hidden)


def some_of(events, count, seed):
    """Return some of the events, drawn, in their order."""
    return sorted(random.Random(seed).sample(events, min(count, len(events))), key=events.index)
