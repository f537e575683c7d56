from typing import get_args

import pytest

from clipsam import evaluation, memories, mmr, score
from clipsam.commands import options
from clipsam.commands.cli import COMMANDS, main
from clipsam.commands.models import DTYPES
from clipsam.commands.options import SAMS


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["run"], f"command='run' is unknown; allowed: {', '.join(COMMANDS)}"),
        (["segment"], "images=() is empty; allowed: one image file or more"),
        (["segment", "a.png", "--category", " "], "category=' ' is empty; allowed: a word such as 'object'"),
        (["segment", "a.png", "--sam", "vit_x"], f"sam='vit_x' is no file or folder; allowed: {SAMS}"),
        (["segment", "a.png", "--tower-weights", "x"], "tower_weights='x' without a tower; allowed: --tower NAME"),
        (
            ["segment", "a.png", "--clip-weights", "x"],
            "clip_weights='x' with clip=None; allowed: with a name of open_clip's",
        ),
        (["eval", "--tower", "vit"], "tower='vit' has no embedded heads; allowed: --checkpoint FOLDER, or none"),
        (["segment", "a.png", "--threshold", "1"], "threshold=1.0 is not possible; allowed: between 0 and 1"),
        (["refine", "a.png"], "0 maps for 1 images; allowed: one map for each"),
        (["eval", "--clip", "ViT-L"], "clip='ViT-L' has no embedded heads; allowed: --checkpoint FOLDER, or none"),
        (["eval", "--fpr-limit", "2"], "fpr_limit=2.0 is out of range; allowed: 1e-06 to 1"),
        (["train", "--steps", "0"], "steps=0 is not possible; allowed: above 0"),
    ],
)
def test_a_wrong_request_is_refused_in_one_line(argv, told, capsys):
    assert main(argv) == 2
    assert capsys.readouterr() == ("", f"clipsam: error: {told}\n")


def test_the_options_offer_what_the_library_has():
    assert get_args(options.Mode) == get_args(mmr.Mode)
    assert get_args(options.Stage) == get_args(evaluation.Stage) == options.EvalConfig().stages
    assert get_args(options.Dtype) == tuple(DTYPES)
    assert get_args(options.Score) == memories.SCORES and get_args(options.Pooling) == score.POOLINGS
