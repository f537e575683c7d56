"""Folders on the command line: every image below them, none of the outputs, and what comes in later."""

import numpy as np
import pytest
from PIL import Image

from clipsam.commands.arrivals import arrivals, files_of, with_files
from clipsam.commands.options import SegmentConfig
from clipsam.commands.summary import show_summary


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((4, 5, 3), np.uint8)).save(path)
    return path


def test_folders_stand_for_every_image_below_them(tmp_path):
    inside = [picture(tmp_path / "in" / name) for name in ("a.png", "deep/er/b.JPG", "deep/c.tif")]
    (tmp_path / "in" / "notes.txt").touch()
    alone = picture(tmp_path / "z.png")
    picture(tmp_path / "in" / "out" / "a_mask.png")
    config = SegmentConfig(images=(alone, tmp_path / "in", inside[0]), output_dir=tmp_path / "in" / "out")
    assert set(with_files(config).images) == {alone, *inside} and len(with_files(config).images) == 4
    assert with_files(config).images[0] == alone
    missing = tmp_path / "missing.png"
    assert files_of([missing], tmp_path / "out") == [missing]  # is told when it is read


def test_what_comes_in_is_taken_once_and_when_it_is_whole(tmp_path):
    known, looks = picture(tmp_path / "old.png"), []

    def pause(seconds):
        looks.append(seconds)
        if len(looks) == 1:
            (tmp_path / "new.png").write_bytes(b"half")
        if len(looks) == 2:
            picture(tmp_path / "new.png")
        if len(looks) == 5:
            picture(tmp_path / "sub" / "later.png")
        if len(looks) == 9:
            raise KeyboardInterrupt

    found = []
    for files in arrivals([tmp_path], [known], tmp_path / "out", pause):
        found.append((len(looks), [file.name for file in files]))
    assert found == [(3, ["new.png"]), (6, ["later.png"])]


def record(number, **more):
    return {"image": f"{number}.png", "score": number / 100, "boxes": [[0, 0, 1, 1]] * (number % 3), "area": 0.01 * (number % 2), **more}  # fmt: skip  # noqa: E501


@pytest.mark.parametrize("judged", [False, True])
def test_the_summary_shows_the_highest_scores_and_counts(capsys, judged):
    verdicts = [
        {"verdict": "defect" if number > 28 else "ok", "threshold": 0.28} if judged else {} for number in range(30)
    ]
    records = [record(number, **verdict) for number, verdict in enumerate(verdicts)]
    show_summary([*records, {"image": "bad\x1b.png", "error": "no image"}])
    told = capsys.readouterr().out
    assert "29.png" in told and "10.png" in told and "9.png\n" not in told and "the 20 highest scores of 30" in told
    assert told.index("29.png") < told.index("10.png")
    defects = ", 1 defective" if judged else ""
    assert f"31 images: 15 with something above the threshold{defects}, 1 that could not be used" in told
    assert ("verdict" in told) == judged


def test_nothing_found_is_told(capsys):
    show_summary([])
    assert capsys.readouterr().out.strip() == "0 images: 0 with something above the threshold, 0 that could not be used"
