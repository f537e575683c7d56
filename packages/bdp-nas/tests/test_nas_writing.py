"""Blueprints and tables are whole or not there, and as open to others as the user's umask has it."""

import os
import stat

import numpy as np
import pytest

from bdp_nas.blueprint import FILE, Blueprint
from bdp_nas.table import Table

NETWORK = Blueprint("macro", "01", ("a", "b"), 4, 1, (1, 8, 8), (0.5,), (0.2,))


def table(accuracy):
    """Return a table of one architecture."""
    values = np.array([[accuracy]])
    return Table("macro", np.array(["identity"]), np.zeros((1, 3), np.uint8), np.array(["cifar10"]), values, values)


def test_files_have_the_mode_that_the_umask_gives(tmp_path):
    before = os.umask(0o027)
    try:
        NETWORK.write(tmp_path / "new")
        table(90.0).save(tmp_path / "new" / "table.npz")
    finally:
        os.umask(before)
    assert [stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "new").iterdir()] == [0o640] * 2


def test_what_breaks_off_leaves_the_old_files_and_nothing_else(tmp_path, monkeypatch):
    NETWORK.write(tmp_path)
    table(90.0).save(tmp_path / "table.npz")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for write in (lambda: table(80.0).save(tmp_path / "table.npz"), lambda: NETWORK.write(tmp_path)):
        with pytest.raises(OSError, match="No space left"):
            write()
    assert {path.name for path in tmp_path.iterdir()} == {FILE, "table.npz"}
    assert Table.load(tmp_path / "table.npz").test.tolist() == [[90.0]]
    assert Blueprint.read(tmp_path) == NETWORK


@pytest.mark.skipif(os.name == "nt", reason="Windows has no named pipes")
def test_a_pipe_stays_one(tmp_path):
    """As /dev/null has to, where root may replace it."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDWR | os.O_NONBLOCK)
    try:
        table(0.5).save(pipe)
        assert os.read(reader, 2) == b"PK"
    finally:
        os.close(reader)
    assert pipe.is_fifo()
