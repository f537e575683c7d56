"""What the tests of bad input share: ways to spoil a file, and what a command must answer to it.

Commands run in this process, through ``cli.main``: an interpreter of its own for each case would import torch anew.
"""

import contextlib
import json
import logging
import pickle
import random
import shutil
import struct
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from io import BytesIO
from pathlib import Path

import torch

HTML = b"<!DOCTYPE html>\n<html><head><title>404 Not Found</title></head><body>Not Found</body></html>\n"
DEEP = 100_000  # levels of nesting: more than any parser's recursion takes


class Hostile:
    """Whoever unpickles it makes an empty file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def torch_file(value) -> bytes:
    """Return what ``torch.save`` writes."""
    buffer = BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def claiming(size: int) -> bytes:
    """Return a safetensors file of a few bytes whose header claims a tensor of so many."""
    header = json.dumps({"weight": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    return struct.pack("<Q", len(header)) + header


def flipped(data: bytes, part: str, seed: int) -> bytes:
    """Flip one bit in the first 16 bytes, in the middle half, or in the last 16."""
    place = {
        "header": (0, min(16, len(data))),
        "middle": (len(data) // 4, len(data) - len(data) // 4),
        "tail": (max(0, len(data) - 16), len(data)),
    }
    dice = random.Random(f"{part} {seed}")
    spoilt = bytearray(data)
    spoilt[dice.randrange(*place[part])] ^= 1 << dice.randrange(8)
    return bytes(spoilt)


def damaged(data: bytes) -> dict[str, bytes]:
    """Return a file's content as accidents leave it: what was done -> the bytes."""
    torn = {f"torn after {share:.0%}": data[: int(share * len(data))] for share in (0.1, 0.5, 0.9)}
    bits = {f"bit {seed} of its {part}": flipped(data, part, seed) for part in PARTS for seed in range(2)}
    return {"0 bytes": b"", **torn, "last byte missing": data[:-1], **bits}


PARTS = ("header", "middle", "tail")


def foreign(marker: Path) -> dict[str, bytes]:
    """Return contents of other kinds, several of which run code if they are unpickled."""
    bad = Hostile(marker)
    return {
        "zeros": bytes(4096),
        "noise": random.Random(0).randbytes(4096),
        "HTML": HTML,
        "pickle": pickle.dumps({"weight": bad}),
        "pickle, protocol 0": pickle.dumps(bad, protocol=0),
        "torch.save": torch_file({"weight": bad}),
        "terabytes claimed": claiming(2**42),
        "header of terabytes": struct.pack("<Q", 2**42) + b'{"weight": 1}',
        "array of objects": b"\x93NUMPY\x01\x00" + struct.pack("<H", 54) + OBJECTS + pickle.dumps([bad]),
    }


OBJECTS = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,)}".ljust(54)

ODD = (None, True, -1, 10**30, 0.5, float("nan"), float("inf"), "x", "", [], [[]], ["x"], {}, {"x": None})


def broken_json() -> dict[str, bytes]:
    """Return JSON that is none, or more than a parser takes."""
    return {
        "null": b"null",
        "a number": b"7",
        "a list": b"[1, 2]",
        "empty object": b"{}",
        "NaN alone": b"NaN",
        "deep lists": b"[" * DEEP,
        "deep objects": b'{"a":' * DEEP,
        "integer of 5,000 digits": b'{"schema": ' + b"9" * 5000 + b"}",
        "bytes that are no text": b'{"schema": "\xff\xfe"}',
    }


def changed_json(value: dict) -> Iterator[tuple[str, bytes]]:
    """Yield a JSON object without each of its keys, and with a value of another type or size under each."""
    for key, now in value.items():
        yield f"without {key}", json.dumps({name: item for name, item in value.items() if name != key}).encode()
        for odd in ODD:
            if odd != now:
                yield f"{key}={odd!r}", json.dumps(value | {key: odd}).encode()


def put(path: Path, content: bytes | None) -> None:
    """Replace what lies at a path: by a file of these bytes, or by a folder."""
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    path.mkdir(parents=True) if content is None else path.write_bytes(content)


@dataclass(frozen=True)
class Answer:
    """What a command did."""

    code: int
    out: str
    err: str

    def complaint(self, program: str) -> str | None:
        """Say what is wrong with this as a refusal; None: nothing is."""
        lines = [line for line in self.err.splitlines() if line.strip()]
        if self.code not in (1, 2):
            return f"exit code {self.code}, {self.err!r}"
        if len(lines) != 1 or not lines[0].startswith(f"{program}: error: "):
            return f"{len(lines)} lines: {self.err!r}"
        if "--debug shows where" in self.err or "Traceback" in self.err + self.out:
            return f"nobody foresaw it: {self.err!r}"
        if not lines[0].isprintable() or len(lines[0]) > 1000:
            return f"cannot be read: {self.err!r}"
        return None


class Desk:
    """Runs commands of the packages and checks their answers; complaints are collected, one per case."""

    def __init__(self, capture, marker: Path) -> None:
        self.capture, self.marker = capture, marker
        self.complaints: list[str] = []
        self.cases = 0

    def ask(self, package: str, *argv: object) -> Answer:
        """Run a command."""
        return self.run(import_module(f"{package.replace('-', '_')}.commands.cli").main, [str(word) for word in argv])

    def run(self, main: Callable[[list[str]], int], argv: list[str]) -> Answer:
        """Call a command's main function."""
        self.capture.readouterr()
        with shown_warnings():
            code = main(argv)
        return Answer(code, *self.capture.readouterr())

    def spoil(
        self,
        file: Path,
        package: str,
        *argv: object,
        named: object = None,
        works: tuple[str, ...] = (),
        fields: int = 16,
        batch: bool = False,
    ) -> None:
        """Run a command on every spoilt version of one of the files it reads; the file is whole again afterwards.

        Args:
            file: what the command reads.
            package: whose command it is.
            argv: the command line.
            named: what the line has to name; default: the file.
            works: beginnings of the names of cases in which the command may do its work: the damage may be none, such
                as another number in a file without a hash.
            fields: how many changes of single JSON fields to try, chosen at random.
            batch: see :meth:`refused`.
        """
        whole, named = file.read_bytes(), file.name if named is None else named
        spoilt: dict[str, bytes | None] = damaged(whole) | foreign(self.marker) | {"a folder": None}
        if file.suffix == ".json":
            changes = list(changed_json(json.loads(whole)))
            spoilt |= broken_json() | dict(random.Random(file.name).sample(changes, min(fields, len(changes))))
        for case, content in spoilt.items():
            put(file, content)
            works_too = case.startswith(works)
            self.refused(f"{file.name}: {case}", package, *argv, named=named, works=works_too, batch=batch)
        put(file, whole)

    def refused(
        self, case: str, package: str, *argv: object, named: object = "", works: bool = False, batch: bool = False
    ) -> None:
        """Run a command that has to end in one line and to leave nothing behind.

        Args:
            case: what was done to the input.
            package: whose command it is.
            argv: the command line; what follows ``--output-dir`` must not be there afterwards.
            named: what the line has to name.
            works: whether the command may also do its work: the damage may be none.
            batch: whether the command may go on with what is left of its batch, and write that.
        """
        out = Path(str(argv[argv.index("--output-dir") + 1])) if "--output-dir" in argv else None
        answer = self.ask(package, *argv)
        self.judge(f"{argv[0]}: {case}", answer, package, named=named, works=works)
        if out is not None:
            if answer.code and out.exists() and not batch:
                left = sorted(path.name for path in out.rglob("*"))
                self.complaints.append(f"{package} {argv[0]}: {case}: left {left}: {answer.err!r}")
            shutil.rmtree(out, ignore_errors=True)

    def judge(self, case: str, answer: Answer, program: str, *, named: object = "", works: bool = False) -> None:
        """Check that an answer is a refusal in one line, as :meth:`refused` does."""
        self.cases += 1
        complaint = None if works and answer.code == 0 else answer.complaint(program)
        if complaint is None and not works and str(named) not in answer.err:
            complaint = f"{str(named)!r} is not named: {answer.err!r}"
        if self.marker.exists():
            complaint = "CODE OF THE FILE WAS RUN"
            self.marker.unlink()
        if complaint:
            self.complaints.append(f"{program} {case}: {complaint}")


@contextlib.contextmanager
def shown_warnings() -> Iterator[None]:
    """Let warnings and log records reach stderr, as they do where pytest does not catch them."""
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        for kind in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
            warnings.simplefilter("ignore", kind)
        warnings.showwarning = lambda message, category, *_, **__: sys.stderr.write(f"{category.__name__}: {message}\n")
        handler = logging.lastResort
        logging.getLogger().addHandler(handler)
        try:
            yield
        finally:
            logging.getLogger().removeHandler(handler)
