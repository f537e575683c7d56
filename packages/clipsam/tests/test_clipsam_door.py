import subprocess
import sys
from importlib.metadata import metadata

import pytest

import clipsam
from clipsam.cli import COMMANDS
from clipsam.configs import SAMS

ABOUT = metadata("clipsam")


def command(*argv):
    """Return exit code, stdout as one line, and stderr of ``python -m clipsam *argv``."""
    result = subprocess.run([sys.executable, "-m", "clipsam", *argv], capture_output=True, text=True)
    return result.returncode, " ".join(result.stdout.split()), result.stderr


def test_the_version_is_the_installed_one():
    assert clipsam.__version__ == ABOUT["Version"]
    assert command("--version") == (0, f"clipsam {ABOUT['Version']}", "")


def test_import_brings_in_neither_torch_nor_the_host_library():
    code = "import sys, clipsam, clipsam.cli; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "clipsam" in modules
    assert not {"torch", "open_clip", "segment_anything"} & set(modules)


def test_everything_at_the_door_is_there():
    assert all(getattr(clipsam, name) for name in clipsam.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = clipsam.Nothing


def test_help_names_every_command():
    code, out, err = command("--help")
    assert (code, err) == (0, "")
    assert all(name in out for name in COMMANDS)


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["run"], f"command='run' is unknown; allowed: {', '.join(COMMANDS)}"),
        (["segment"], "images=() is empty; allowed: one image file or more"),
        (["segment", "a.png", "--category", " "], "category=' ' is empty; allowed: a word such as 'object'"),
        (["segment", "a.png", "--sam", "vit_x"], f"sam='vit_x' is unknown; allowed: {', '.join(SAMS)}"),
        (["segment", "a.png", "--sam", "vit_b"], "sam='vit_b' needs its weights; allowed: --sam-weights FILE"),
        (["segment", "a.png", "--threshold", "1"], "threshold=1.0 is not possible; allowed: between 0 and 1"),
        (["refine", "a.png"], "0 maps for 1 images; allowed: one map for each"),
        (["eval", "--clip", "ViT-L"], "clip='ViT-L' has no embedded heads; allowed: --checkpoint FOLDER, or none"),
        (["eval", "--fpr-limit", "2"], "fpr_limit=2.0 is out of range; allowed: 1e-06 to 1"),
        (["train", "--steps", "0"], "steps=0 is not possible; allowed: above 0"),
    ],
)
def test_a_wrong_request_is_refused_in_one_line(argv, told):
    assert command(*argv) == (2, "", f"clipsam: error: {told}\n")
