import errno
import json
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from frugal_shared import claim
from frugal_shared import run as run_module
from frugal_shared.config import RunConfig
from frugal_shared.errors import RunError, UsageError
from frugal_shared.run import Run


@dataclass(frozen=True, kw_only=True)
class TrainConfig(RunConfig):
    """A run with one option of its own."""

    cpu: bool = True
    steps: int = 3


@dataclass(frozen=True, kw_only=True)
class OtherConfig(TrainConfig):
    """Another command with the same options."""


def start(folder, kind=TrainConfig, **options) -> Run:
    return Run(kind(output_dir=folder, **options), "frugal-shared")


def read(path):
    return json.loads(path.read_text())


@pytest.fixture
def finished(tmp_path):
    """The folder of a finished run."""
    with start(tmp_path / "run") as run:
        for step in (1, 2, 3):
            run.log(step, loss=1 / step)
            run.save(step, {"value": torch.tensor(step)})
        run.finish({"loss": 1 / 3})
    return run.folder


def test_folder_tells_the_whole_run(finished):
    manifest = read(finished / "manifest.json")
    assert manifest["package"] == "frugal-shared"
    assert manifest["command"] == "TrainConfig"
    assert manifest["config"]["steps"] == 3
    assert manifest["config"]["output_dir"] == str(finished)
    assert (manifest["seed"], manifest["world_size"], manifest["device"]) == (0, 1, "cpu")
    assert manifest["versions"]["torch"] == version("torch")
    assert [json.loads(line)["step"] for line in (finished / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3]
    assert read(finished / "results.json") == {"loss": 1 / 3}


def test_manifest_reads_back_as_the_config(tmp_path):
    with start(tmp_path / "run", steps=7, seed=5) as run:
        stored = read(run.folder / "manifest.json")["config"]
    assert TrainConfig(**{**stored, "output_dir": Path(stored["output_dir"])}) == run.config


def test_folder_of_another_run_is_refused(finished):
    before = (finished / "manifest.json").read_bytes()
    told = "already holds a run; allowed: another folder, --resume, or --overwrite"
    with pytest.raises(UsageError, match=told), start(finished):
        pass
    assert (finished / "manifest.json").read_bytes() == before


def test_resume_restores_the_newest_checkpoint(finished):
    with start(finished, resume=True) as run:
        step, tree = run.restore()
    assert (step, tree) == (3, {"value": torch.tensor(3)})


def test_without_resume_nothing_is_restored(tmp_path):
    with start(tmp_path) as run:
        run.save(1, {})
        assert run.restore() is None


def test_resume_in_a_new_folder_is_a_new_run(tmp_path):
    with start(tmp_path / "run", resume=True) as run:
        assert run.restore() is None
        run.log(1, loss=1.0)
    assert (run.folder / "manifest.json").exists()


@pytest.mark.parametrize(
    "options, complaint",
    [
        ({"steps": 9}, "steps=9 cannot resume a run that was started with 3"),
        ({"seed": 1}, "seed=1 cannot resume a run that was started with 0"),
        ({"kind": OtherConfig}, "command='OtherConfig' cannot resume a run that was started with 'TrainConfig'"),
    ],
)
def test_resume_with_other_options_is_refused(finished, options, complaint):
    before = (finished / "manifest.json").read_bytes()
    with pytest.raises(UsageError, match=complaint), start(finished, resume=True, **options):
        pass
    assert (finished / "manifest.json").read_bytes() == before


@pytest.mark.parametrize("options", [{"debug": True}, {"num_processes": 1}, {"device": "cpu"}, {"timeout": 5}])
def test_resume_may_change_what_changes_no_result(finished, options):
    with start(finished, resume=True, **options) as run:
        assert run.restore()[0] == 3


@pytest.mark.parametrize(
    "manifest", ["", "{", "[]", "3", '{"config": {}}', '{"package": 1, "command": 2, "config": 3}']
)
def test_resume_from_an_unreadable_manifest_is_refused(finished, manifest):
    (finished / "manifest.json").write_text(manifest)
    with pytest.raises(UsageError, match="unreadable manifest"), start(finished, resume=True):
        pass


def test_metrics_after_the_checkpoint_are_dropped(tmp_path):
    """A killed run has logged more than it has saved, and its last line is torn."""
    with start(tmp_path) as run:
        for step in (10, 20, 30):
            run.log(step, loss=float(step))
        run.save(20, {})
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text(metrics.read_text() + '{"step": 4')
    with start(tmp_path, resume=True) as run:
        run.restore()
        run.log(30, loss=0.5)
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert lines == [{"step": 10, "loss": 10.0}, {"step": 20, "loss": 20.0}, {"step": 30, "loss": 0.5}]


def test_metrics_of_a_run_without_checkpoint_start_again(tmp_path):
    with start(tmp_path) as run:
        run.log(1, loss=1.0)
    with start(tmp_path, resume=True) as run:
        assert run.restore() is None
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def fail(run):
    with run:
        raise LookupError("no such data")


def test_failing_at_once_leaves_nothing(tmp_path):
    with pytest.raises(LookupError):
        fail(start(tmp_path / "new" / "deep" / "run"))
    assert list(tmp_path.iterdir()) == []


def test_failing_at_once_leaves_an_empty_folder_empty(tmp_path):
    with pytest.raises(LookupError):
        fail(start(tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("write", ["log", "save", "finish", "own file"])
def test_failing_later_keeps_what_there_is(tmp_path, write):
    actions = {
        "log": lambda run: run.log(1, loss=1.0),
        "save": lambda run: run.save(1, {}),
        "finish": lambda run: run.finish({}),
        "own file": lambda run: (run.folder / "image.png").write_bytes(b"png"),
    }
    with pytest.raises(LookupError), start(tmp_path / "run") as run:
        actions[write](run)
        raise LookupError
    assert (tmp_path / "run" / "manifest.json").exists()
    assert len(list((tmp_path / "run").iterdir())) == 2


def test_failing_beside_another_run_leaves_that_alone(tmp_path):
    """Two runs that start together in a new folder: the one that fails made the folder."""
    with pytest.raises(LookupError), start(tmp_path / "runs" / "one"):
        with start(tmp_path / "runs" / "two") as two:
            two.log(1, loss=1.0)
        raise LookupError
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["two"]
    assert (two.folder / "metrics.jsonl").exists()


def test_failing_while_claiming_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(claim, "write_new", full)
    with pytest.raises(OSError, match="No space left"), start(tmp_path / "new" / "run"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_failing_resumption_keeps_the_run(finished):
    before = sorted(finished.rglob("*"))
    with pytest.raises(LookupError):
        fail(start(finished, resume=True))
    assert sorted(finished.rglob("*")) == before


@pytest.mark.parametrize("options", [{}, {"resume": True}, {"overwrite": True}])
def test_a_folder_in_use_is_refused(tmp_path, options):
    with start(tmp_path / "run") as one:
        one.save(1, {})
        before = contents(one.folder)
        told = f"in use by process {os.getpid()} on .*; allowed: another folder"
        with pytest.raises(UsageError, match=told), start(one.folder, **options):
            pass
        assert contents(one.folder) == before
    assert not (one.folder / ".lock").exists()
    with start(one.folder, resume=True) as again:
        assert again.restore()[0] == 1


def test_a_lock_that_cannot_be_had_is_named_as_a_path(tmp_path):
    (tmp_path / ".lock").mkdir()
    with pytest.raises(OSError, match=r"Is a directory: '.*\.lock'$"), start(tmp_path):
        pass


def test_of_two_that_start_at_once_one_gets_the_folder(tmp_path, monkeypatch):
    """Where no file can be locked, and the other one is quicker by the blink of an eye."""
    theirs, settle = tmp_path / "run" / "manifest.json", claim._manifest_before

    def be_late(folder, config):
        found = settle(folder, config)
        theirs.write_text("theirs")
        return found

    monkeypatch.setattr(claim, "fcntl", None)
    monkeypatch.setattr(claim, "_manifest_before", be_late)
    with pytest.raises(UsageError, match="already holds a run"), start(tmp_path / "run"):
        pass
    assert theirs.read_text() == "theirs"


@pytest.mark.parametrize("locks", ["none on Windows", "none on this disk"])
def test_without_locks_a_run_works(tmp_path, monkeypatch, locks):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    without = SimpleNamespace(flock=refuse, LOCK_EX=2, LOCK_NB=4)
    monkeypatch.setattr(claim, "fcntl", without if locks == "none on this disk" else None)
    with start(tmp_path / "run") as run:
        run.log(1, loss=1.0)
    assert sorted(path.name for path in run.folder.iterdir()) == ["manifest.json", "metrics.jsonl"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_killed_run_does_not_keep_its_folder(tmp_path):
    """Not even through a child, such as a DataLoader's, that outlives it."""
    program = f"""
import os, signal, sys
from pathlib import Path
from frugal_shared.claim import locked
with locked(Path({str(tmp_path)!r})):
    child = os.fork()
    if child == 0:
        sys.stdin.read()
        os._exit(0)
    print(flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", program], **pipes) as process:
        process.stdout.readline()
        assert process.wait() == -9
        assert (tmp_path / ".lock").exists()
        with start(tmp_path) as run:
            run.log(1, loss=1.0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["manifest.json", "metrics.jsonl"]


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_overwrite_replaces_the_run(finished):
    (finished / ".hidden").write_text("old")
    with start(finished, overwrite=True, steps=9) as run:
        assert [path.name for path in finished.iterdir() if path.name != ".lock"] == ["manifest.json"]
        assert run.restore() is None
    assert read(finished / "manifest.json")["config"]["steps"] == 9


@pytest.mark.parametrize("again", [{}, {"resume": True}])
def test_overwrite_spares_what_was_there_before_the_run(tmp_path, again):
    """As in a run with ``--output-dir .``, and in one that goes on with it."""
    (tmp_path / "thesis.tex").write_text("mine")
    with start(tmp_path) as run:
        run.log(1, loss=1.0)
    if again:
        with start(tmp_path, **again):
            pass
    before = contents(tmp_path)
    with pytest.raises(UsageError, match="held other files before its run"), start(tmp_path, overwrite=True):
        pass
    assert contents(tmp_path) == before


def test_overwrite_takes_a_run_that_was_killed_at_its_start(tmp_path):
    """It may leave its manifest under a hidden name."""
    (tmp_path / ".manifest.json.0123abcd").write_text("{")
    with start(tmp_path) as run:
        run.log(1, loss=1.0)
    with start(tmp_path, overwrite=True):
        assert [path.name for path in tmp_path.iterdir() if path.name != ".lock"] == ["manifest.json"]


@pytest.mark.parametrize("make", [lambda folder: None, Path.mkdir])
def test_overwrite_in_a_new_folder_is_a_new_run(tmp_path, make):
    make(tmp_path / "run")
    with start(tmp_path / "run", overwrite=True) as run:
        run.log(1, loss=1.0)
    assert sorted(path.name for path in run.folder.iterdir()) == ["manifest.json", "metrics.jsonl"]


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("thesis.tex", "mine", "holds no run to overwrite, but other files"),
        ("manifest.json", "{}", "unreadable manifest.json"),
        (
            "manifest.json",
            '{"package": "web", "command": "", "config": {}, "versions": {}}',
            "unreadable manifest.json",
        ),
    ],
)
def test_overwrite_takes_nothing_that_is_no_run(tmp_path, name, text, told):
    (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=told), start(tmp_path, overwrite=True):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == text


@pytest.mark.parametrize("fails", ["the manifest", "another process", "the first step"])
def test_a_failed_claim_puts_the_old_run_back(finished, monkeypatch, fails):
    def fail(*_):
        raise OSError(28, "No space left on device")

    before = contents(finished)
    if fails == "the manifest":
        monkeypatch.setattr(claim, "write_new", fail)
    if fails == "another process":
        monkeypatch.setattr(Run, "_check_shared", fail)
    with pytest.raises(OSError, match="No space left"), start(finished, overwrite=True):
        fail()
    if fails == "the first step":  # then it is gone, as is the new one that made nothing
        assert not contents(finished)
    else:
        assert contents(finished) == before
        assert not [*finished.glob(".*")]


class Killed(BaseException):
    """The process is gone: nothing that it meant to do is done."""


@pytest.mark.parametrize("renames", range(4))
def test_killed_while_replacing_leaves_the_old_run(finished, monkeypatch, renames):
    before, done, rename = contents(finished), [], Path.rename

    def count(path, target):
        done.append(target)
        if len(done) > renames:
            raise Killed
        return rename(path, target)

    with monkeypatch.context() as patch, suppress(Killed):
        patch.setattr(Path, "rename", count)
        start(finished, overwrite=True).__enter__()
    assert done
    with start(finished, resume=True) as run:
        assert run.restore()[0] == 3
    after = contents(finished)
    assert after.keys() == before.keys()
    assert {path for path in after if after[path] != before[path]} == {Path("manifest.json")}


def test_killed_while_deleting_the_replaced_run_leaves_the_new_one(finished, monkeypatch):
    def killed(*_):
        raise Killed

    with monkeypatch.context() as patch, suppress(Killed):
        patch.setattr(shutil, "rmtree", killed)
        start(finished, overwrite=True, steps=9).__enter__()
    assert (finished / ".replaced").exists()
    with start(finished, resume=True, steps=9) as run:
        assert run.restore() is None
        run.log(1, loss=1.0)
    assert sorted(path.name for path in finished.iterdir()) == ["manifest.json", "metrics.jsonl"]


def test_checkpoints_that_cannot_be_read_end_a_resumption(finished):
    for path in finished.glob("checkpoints/*/state.json"):
        path.write_text(path.read_text().replace('"format": 1', '"format": 2'))
    before = contents(finished)
    with pytest.raises(RunError, match="step-00000003' has the newer format 2"), start(finished, resume=True) as run:
        run.restore()
    after = contents(finished)
    assert {path for path in before if after.get(path) != before[path]} == {Path("manifest.json")}


def test_timeout_reaches_the_process_group(tmp_path, monkeypatch):
    given = {}

    class Stub:
        num_processes = 1

        def __init__(self, **options):
            given.update(options)

    monkeypatch.setattr(run_module, "Accelerator", Stub)
    start(tmp_path / "run", timeout=2.5)
    assert given["kwargs_handlers"][-1].timeout.total_seconds() == 150


def test_what_a_launcher_set_up_and_no_run_supports_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UsageError, match="FSDP is not supported"):
        start(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_output_dir_is_a_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("mine")
    with pytest.raises(UsageError, match="is a file; allowed: a new or an empty folder"), start(path):
        pass
    assert path.read_text() == "mine"


@pytest.mark.parametrize("below", ["file/run", "file/deep/run"])
def test_output_dir_that_cannot_be_made(tmp_path, below):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match="Not a directory"), start(tmp_path / below):
        pass
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("tracker", ["tensorboard", "wandb", "trackio"])
def test_tracker_that_is_not_installed(tmp_path, monkeypatch, tracker):
    def absent(name):
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(run_module, "import_module", absent)
    with pytest.raises(UsageError) as error:
        start(tmp_path / "run", tracker=tracker)
    install = f"install it with: pip install {tracker}"
    assert str(error.value) == f"tracker={tracker!r} is not installed; {install}"
    assert not (tmp_path / "run").exists()


def test_world_smaller_than_asked_for_is_refused(tmp_path):
    """Called from Python, nobody has started the second process."""
    with pytest.raises(UsageError, match="num_processes=2 was asked for, but this run has 1"):
        start(tmp_path / "run", num_processes=2)


@pytest.mark.parametrize("options, field", [({"seed": -1}, "seed=-1"), ({"num_processes": 0}, "num_processes=0")])
def test_impossible_options_are_refused(options, field):
    with pytest.raises(UsageError, match=f"{field} is not possible; allowed: "):
        TrainConfig(**options)
