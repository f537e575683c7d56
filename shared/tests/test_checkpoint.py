import json
import math
import os
import pickle
import shutil
import threading
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from frugal_shared.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from frugal_shared.errors import RunError
from frugal_shared.writing import whole_folder, write_bytes, write_new

TREE = {
    "model": {"layer.weight": torch.arange(6.0).reshape(2, 3), "half": torch.ones(2, dtype=torch.bfloat16)},
    "optimizer": {"state": {0: {"step": torch.tensor(7.0)}, 1: {}}, "groups": [{"lr": 0.1, "betas": [0.9, 0.99]}]},
    "seen": [3, -1, True, None, "ü", math.pi, 1e-300, math.inf, 2**70],
    "mask": torch.tensor([[True, False]]),
    "empty": torch.zeros(0, 4),
    "nothing": {},
}


def same(one, other):
    """Compare two trees to the last bit."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


def steps(folder):
    return sorted(path.name for path in folder.iterdir())


def flip(path, position):
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


@pytest.fixture
def two(tmp_path):
    """A folder with checkpoints 10 and 20."""
    save_checkpoint(tmp_path, 10, {"value": torch.tensor([10.0]), "note": "ten"})
    save_checkpoint(tmp_path, 20, {"value": torch.tensor([20.0]), "note": "twenty"})
    return tmp_path


def refused(path):
    """Check that one line refuses the checkpoint at ``path``, and that the one before it is the latest."""
    with pytest.raises(RunError) as error:
        load_checkpoint(path)
    assert str(path) in str(error.value)
    found = latest_checkpoint(path.parent)
    return found is not None and found[0] == 10


@pytest.mark.parametrize("tree", [TREE, {}, [], torch.tensor(1.5), {"only": "words"}])
def test_round_trip(tree, tmp_path):
    step, found = load_checkpoint(save_checkpoint(tmp_path, 1200, tree))
    assert step == 1200
    assert same(tree, found)


def test_nan_and_tuples_round_trip(tmp_path):
    _, found = load_checkpoint(save_checkpoint(tmp_path, 1, {"loss": math.nan, "betas": (0.9, 0.99)}))
    assert math.isnan(found["loss"])
    assert found["betas"] == [0.9, 0.99]


def test_paths_that_read_the_same_are_kept_apart(tmp_path):
    tree = {"a/b": torch.tensor(1), "a": {"b": torch.tensor(2)}, "n": {1: torch.tensor(3), "1": torch.tensor(4)}}
    assert same(tree, load_checkpoint(save_checkpoint(tmp_path, 1, tree))[1])


def test_shared_memory_and_strides_do_not_matter(tmp_path):
    weight = torch.arange(6.0).reshape(2, 3)
    tree = {"tied": weight, "again": weight, "turned": weight.T, "part": weight[:, 1:]}
    assert same(tree, load_checkpoint(save_checkpoint(tmp_path, 1, tree))[1])


def train(model, optimizer, start, end):
    for step in range(start, end):
        torch.manual_seed(step)
        optimizer.zero_grad()
        model(torch.randn(8, 4)).square().mean().backward()
        optimizer.step()


def build():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4))
    return model, torch.optim.AdamW(model.parameters(), lr=0.01, amsgrad=True)


def test_training_goes_on_with_the_same_bits(tmp_path):
    model, optimizer = build()
    train(model, optimizer, 0, 3)
    path = save_checkpoint(tmp_path, 3, {"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    train(model, optimizer, 3, 6)

    resumed, resumed_optimizer = build()
    step, tree = load_checkpoint(path)
    resumed.load_state_dict(tree["model"])
    resumed_optimizer.load_state_dict(tree["optimizer"])
    train(resumed, resumed_optimizer, step, 6)
    assert same(dict(model.state_dict()), dict(resumed.state_dict()))
    assert same(optimizer.state_dict()["state"], resumed_optimizer.state_dict()["state"])


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json"])
def test_any_flipped_bit_is_noticed(name, two):
    path = two / "step-00000020" / name
    for position in range(len(path.read_bytes())):
        flip(path, position)
        assert refused(path.parent), position
        flip(path, position)
    assert latest_checkpoint(two)[0] == 20  # whole again


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json"])
def test_torn_and_missing_files_are_noticed(name, two):
    path = two / "step-00000020" / name
    whole = path.read_bytes()
    for length in (0, 1, len(whole) // 2, len(whole) - 2):
        path.write_bytes(whole[:length])
        assert refused(path.parent), length
    path.unlink()
    assert refused(path.parent)


@pytest.mark.parametrize("state", ["[]", "3", "null", "{}", '{"format": 1, "step": 1, "sha256": "", "tree": {}}'])
def test_foreign_json_is_refused(state, two):
    (two / "step-00000020" / "state.json").write_text(state)
    assert refused(two / "step-00000020")


def test_foreign_folders_and_files_are_passed_over(two):
    (two / "step-00000030").mkdir()
    (two / "step-00000040").write_text("a file")
    (two / "step-by-step.txt").write_text("notes")
    assert latest_checkpoint(two)[0] == 20


def spoil(path, how):
    """Make a checkpoint one that cannot be read."""
    if how == "torn":
        (path / "tensors.safetensors").write_bytes(b"")
    if how == "newer":
        state = json.loads((path / "state.json").read_text())
        (path / "state.json").write_text(json.dumps(state | {"format": 2}))


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_torn_newest_is_passed_over_and_that_is_said(two, caplog):
    spoil(two / "step-00000020", "torn")
    before = files(two)
    assert latest_checkpoint(two)[0] == 10
    [line] = caplog.messages
    assert str(two / "step-00000020") in line and line.endswith("; going on from step 10")
    assert files(two) == before


@pytest.mark.parametrize(
    ("spoilt", "named"),
    [
        ({10: "torn", 20: "torn"}, 10),
        ({20: "newer"}, 20),
        ({10: "newer", 20: "torn"}, 10),
        ({10: "newer", 20: "newer"}, 20),
    ],
)
def test_what_else_cannot_be_read_ends_the_run_and_stays(two, spoilt, named):
    for step, how in spoilt.items():
        spoil(two / f"step-{step:08d}", how)
    before = files(two)
    with pytest.raises(RunError) as error:
        latest_checkpoint(two)
    assert str(two / f"step-{named:08d}") in str(error.value) and "\n" not in str(error.value)
    assert files(two) == before


def test_a_torn_only_one_ends_the_run(tmp_path):
    spoil(save_checkpoint(tmp_path, 10, {}), "torn")
    with pytest.raises(RunError, match=r"step-00000010' is torn: .*; to go on without it, move it away"):
        latest_checkpoint(tmp_path)


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(5, "Input/output error")])
@pytest.mark.parametrize("name", ["read_bytes", "read_text"])
def test_a_bad_read_is_not_a_torn_checkpoint(two, monkeypatch, error, name):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(Path, name, fail)
    with pytest.raises(RunError, match=rf"step-00000020' cannot be read: .*{error.strerror}"):
        latest_checkpoint(two)


def test_checkpoints_that_may_not_be_listed_are_not_absent(two, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(RunError, match=r"cannot be listed: .*Permission denied"):
        latest_checkpoint(two)


@pytest.mark.parametrize("how", ["torn", "newer"])
def test_saving_never_deletes_what_cannot_be_read(two, how):
    for path in two.iterdir():
        spoil(path, how)
    before = sorted(files(two).values())
    for step in (15, 20, 25, 30):
        save_checkpoint(two, step, {"note": "new"}, keep=1)
    after = sorted(files(two).values())
    assert [data for data in after if data in before] == before
    assert [name for name in steps(two) if name.startswith("step-")] == ["step-00000010", "step-00000030"]
    assert latest_checkpoint(two)[0] == 30


class Bomb:
    """Runs code when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_nothing_is_unpickled(two, tmp_path):
    marker = tmp_path / "exploded"
    torch.save(Bomb(marker), tmp_path / "bomb.pt")
    for data in (pickle.dumps(Bomb(marker)), (tmp_path / "bomb.pt").read_bytes()):
        for name in ("tensors.safetensors", "state.json"):
            shutil.copytree(two / "step-00000010", two / "step-00000020", dirs_exist_ok=True)
            (two / "step-00000020" / name).write_bytes(data)
            assert refused(two / "step-00000020")
    assert not marker.exists()
    pickle.loads(pickle.dumps(Bomb(marker)))
    assert marker.exists()  # the bomb was real


@pytest.mark.parametrize("tree", [{"f": print}, {"x": {1, 2}}, {(0, 1): 2.0}, {None: 1}, [{"deep": object()}]])
def test_what_could_not_be_read_again_is_not_written(tree, two):
    with pytest.raises(TypeError, match="tensors and plain values"):
        save_checkpoint(two, 30, tree)
    assert latest_checkpoint(two)[0] == 20


def test_newest_are_kept(tmp_path):
    for step in (5, 10, 99, 100, 1000):
        save_checkpoint(tmp_path, step, {}, keep=2)
    assert steps(tmp_path) == ["step-00000100", "step-00001000"]


def test_new_checkpoint_outlives_torn_later_ones(two):
    """A run that had to go on from 10 must not lose 15 to the torn 20 and the foreign rest."""
    (two / "step-00000020" / "state.json").write_text("")
    (two / "step-by-step").mkdir()
    save_checkpoint(two, 15, {}, keep=1)
    aside, *rest = steps(two)
    assert rest == ["step-00000015", "step-by-step"]
    assert aside.startswith("aside-step-00000020-")
    assert latest_checkpoint(two)[0] == 15


def test_same_step_is_replaced(two):
    save_checkpoint(two, 20, {"note": "again"})
    assert latest_checkpoint(two) == (20, {"note": "again"})


def test_killed_while_writing_leaves_the_old_one(two, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(two, 30, {"note": "thirty"})
    assert latest_checkpoint(two)[0] == 20
    (two / ".step-00000030").mkdir()  # what a kill leaves, which nothing can tidy up
    save_checkpoint(two, 40, {"note": "forty"})
    assert steps(two) == ["step-00000010", "step-00000020", "step-00000040"]  # the torn rest is gone


def test_a_folder_that_could_not_be_filled_leaves_the_old_one_alone(tmp_path):
    target = tmp_path / "pipeline"
    for text in ("old", "new"):
        with whole_folder(target) as folder:
            (folder / "weights").write_text(text)
    with pytest.raises(OSError, match="No space left"), whole_folder(target) as folder:
        (folder / "weights").write_text("half")
        raise OSError(28, "No space left on device")
    assert (target / "weights").read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]


class Killed(BaseException):
    """The process is gone: nothing that it meant to do is done."""


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_killed_while_replacing_leaves_the_old_or_the_new(two, monkeypatch, renames):
    done, rename, rmtree = [], Path.rename, shutil.rmtree

    def count(path, target):
        if len(done) >= renames:
            raise Killed
        done.append(target)
        return rename(path, target)

    def remove(path, **options):
        if len(done) >= renames:
            raise Killed
        rmtree(path, **options)

    with monkeypatch.context() as patch, suppress(Killed):
        patch.setattr(Path, "rename", count)
        patch.setattr(shutil, "rmtree", remove)
        save_checkpoint(two, 20, {"note": "again"})
    step, tree = latest_checkpoint(two)
    assert (step, tree["note"]) == (20, "again" if renames == 2 else "twenty")
    save_checkpoint(two, 30, {})
    assert steps(two) == ["step-00000010", "step-00000020", "step-00000030"]


def test_two_fill_the_same_folder_apart(tmp_path):
    target = tmp_path / "pipeline"
    with whole_folder(target) as one:
        (one / "weights").write_text("one")
        with whole_folder(target) as other:
            assert not list(other.iterdir())
            (other / "weights").write_text("other")
        assert (target / "weights").read_text() == "other"
    assert (target / "weights").read_text() == "one"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.skipif(os.name == "nt", reason="no umask")
@pytest.mark.parametrize(
    ("umask", "file", "folder"), [(0o022, 0o644, 0o755), (0o002, 0o664, 0o775), (0o077, 0o600, 0o700)]
)
def test_the_umask_says_who_may_read(tmp_path, umask, file, folder):
    before = os.umask(umask)
    try:
        path = save_checkpoint(tmp_path, 1, {})
        write_new(tmp_path / "manifest.json", b"{}")
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == folder
    for written in (path / "state.json", tmp_path / "manifest.json"):
        assert written.stat().st_mode & 0o777 == file


@pytest.mark.skipif(os.name == "nt", reason="no umask")
def test_the_umask_opens_what_a_library_wrote_for_its_owner_alone(tmp_path):
    """safetensors' own save_file does, and with it every save_pretrained."""
    before = os.umask(0o027)
    try:
        with whole_folder(tmp_path / "pipeline") as folder:
            (folder / "deep").mkdir()
            save_file({"weight": torch.zeros(1)}, folder / "deep" / "weights.safetensors")
    finally:
        os.umask(before)
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "pipeline" / "deep").iterdir()}
    assert modes == {0o640}


@pytest.mark.skipif(os.name == "nt", reason="Windows has no named pipes")
def test_a_pipe_and_a_link_stay_what_they_are(tmp_path):
    """As /dev/stdout and /dev/null have to, where root may replace them."""
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to("file")
    reader = os.open(pipe, os.O_RDWR | os.O_NONBLOCK)
    try:
        write_bytes(pipe, b"data")
        write_bytes(link, b"data")
        assert os.read(reader, 10) == b"data"
    finally:
        os.close(reader)
    assert pipe.is_fifo() and link.is_symlink()
    assert (tmp_path / "file").read_bytes() == b"data"


@pytest.mark.parametrize("links", [True, False])
def test_of_all_who_write_a_new_file_at_once_one_does(tmp_path, monkeypatch, links):
    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    if not links:  # as on exFAT
        monkeypatch.setattr(Path, "hardlink_to", refuse)
    path, start, wrote = tmp_path / "manifest.json", threading.Barrier(8), []

    def write(number):
        start.wait()
        with suppress(FileExistsError):
            write_new(path, b"%d" % number)
            wrote.append(number)

    threads = [threading.Thread(target=write, args=[number]) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes() == b"%d" % wrote[0]
    assert len(wrote) == 1
    assert list(tmp_path.iterdir()) == [path]


def test_folder_without_checkpoints(tmp_path):
    assert latest_checkpoint(tmp_path) is None
    assert latest_checkpoint(tmp_path / "absent") is None


def test_write_is_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "new" / "results.json"
    write_bytes(path, b"old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(path.parent.iterdir()) == [path]


def test_files_are_what_they_say(two):
    """Other tools can read a checkpoint: the tensors are safetensors, the rest is JSON."""
    from safetensors.torch import load_file

    path = two / "step-00000020"
    state = json.loads((path / "state.json").read_text())
    tensors = load_file(path / "tensors.safetensors")
    assert state["step"] == 20
    assert tensors[state["tree"]["value"]["__tensor__"]].tolist() == [20.0]
