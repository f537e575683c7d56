import os
from pathlib import Path

import pytest

from partial_finetune.writing import whole


def write(path, text):
    with whole(path) as folder:
        (folder / "text").write_text(text)


def files(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def path(tmp_path):
    write(tmp_path / "it", "old")
    return tmp_path / "it"


def test_a_folder_is_replaced_and_nothing_is_left_over(path):
    write(path, "new")
    assert (path / "text").read_text() == "new"
    assert files(path.parent) == ["it"]


def test_an_error_leaves_what_was_there(path):
    with pytest.raises(OSError, match="disk full"), whole(path) as folder:
        (folder / "text").write_text("half")
        raise OSError("disk full")
    assert (path / "text").read_text() == "old"
    assert files(path.parent) == ["it"]


class Killed(BaseException):
    pass


@pytest.mark.parametrize("number", [1, 2])
def test_wherever_it_is_killed_one_of_the_two_is_whole(path, monkeypatch, number):
    rename, calls = Path.rename, []

    def dying(self, target):
        calls.append(target)
        if len(calls) >= number:  # what a killed process would still tidy up is not done either
            raise Killed
        return rename(self, target)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Path, "rename", dying)
        write(path, "new")
    with pytest.raises(OSError, match="disk full"), whole(path):
        raise OSError("disk full")  # even if the next one fails, too
    assert (path / "text").read_text() == "old"
    write(path, "newer")
    assert (path / "text").read_text() == "newer"


def test_two_that_write_at_once_do_not_meet(path):
    with whole(path) as one, whole(path) as other:
        assert one != other
        for folder, text in ((one, "one"), (other, "other")):
            (folder / "text").write_text(text)
    assert (path / "text").read_text() == "one"  # the last to finish
    assert files(path.parent) == ["it"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
def test_the_umask_decides_who_may_read(tmp_path):
    before = os.umask(0o027)
    try:
        write(tmp_path / "it", "new")
    finally:
        os.umask(before)
    assert (tmp_path / "it").stat().st_mode & 0o777 == 0o750
    assert (tmp_path / "it" / "text").stat().st_mode & 0o777 == 0o640
