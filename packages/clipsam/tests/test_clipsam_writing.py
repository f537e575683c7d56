"""Files of the library: whole or not at all, and as open to others as the user wants."""

import os

import pytest

from clipsam.writing import write_whole


def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path, monkeypatch):
    path = tmp_path / "config.json"
    path.write_bytes(b"old")

    def full(_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        write_whole(path, b"new")
    assert [one.read_bytes() for one in tmp_path.iterdir()] == [b"old"]
    monkeypatch.undo()
    write_whole(path, b"new")
    assert [one.read_bytes() for one in tmp_path.iterdir()] == [b"new"]


def test_two_writers_do_not_share_a_temporary_file(tmp_path, monkeypatch):
    path, seen = tmp_path / "config.json", []
    monkeypatch.setattr(os, "fsync", lambda _: seen.extend(one.name for one in tmp_path.iterdir() if one != path))
    write_whole(path, b"a")
    write_whole(path, b"b")
    assert len(set(seen)) == 2


@pytest.mark.skipif(os.name == "nt", reason="no permission bits")
@pytest.mark.parametrize("mask", [0o077, 0o002])
def test_the_umask_decides_who_may_read(tmp_path, mask):
    before = os.umask(mask)
    try:
        write_whole(tmp_path / "config.json", b"new")
    finally:
        os.umask(before)
    assert (tmp_path / "config.json").stat().st_mode & 0o777 == 0o666 & ~mask


@pytest.mark.skipif(os.name == "nt", reason="Windows has no named pipes")
def test_a_pipe_stays_one(tmp_path):
    """As /dev/null has to, where root may replace it."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDWR | os.O_NONBLOCK)
    try:
        write_whole(pipe, b"{}")
        assert os.read(reader, 3) == b"{}"
    finally:
        os.close(reader)
    assert pipe.is_fifo()
