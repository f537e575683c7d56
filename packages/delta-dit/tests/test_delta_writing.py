"""Files of the library are whole or not there, and as open to others as the user's umask has it."""

import os
import stat

import pytest

from delta_dit.writing import write_bytes


def test_a_file_has_the_mode_that_the_umask_gives(tmp_path):
    before = os.umask(0o027)
    try:
        write_bytes(tmp_path / "new" / "plan.json", b"{}")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new" / "plan.json").stat().st_mode) == 0o640


def test_what_breaks_off_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "plan.json"
    write_bytes(path, b"old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_the_name_in_use_meanwhile_is_nobody_elses(tmp_path, monkeypatch):
    names = []
    monkeypatch.setattr(os, "fsync", lambda _: names.extend(path.name for path in tmp_path.glob(".*")))
    for _ in range(2):
        write_bytes(tmp_path / "plan.json", b"{}")
    assert len(set(names)) == 2


@pytest.mark.skipif(os.name == "nt", reason="Windows has no named pipes")
def test_a_pipe_stays_one(tmp_path):
    """As /dev/null has to, where root may replace it."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDWR | os.O_NONBLOCK)
    try:
        write_bytes(pipe, b"{}")
        assert os.read(reader, 3) == b"{}"
    finally:
        os.close(reader)
    assert pipe.is_fifo()
