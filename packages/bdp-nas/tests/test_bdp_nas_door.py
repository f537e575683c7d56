import pytest

from bdp_nas.commands.cli import COMMANDS, main


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["run"], f"command='run' is unknown; allowed: {', '.join(COMMANDS)}"),
        (
            ["search", "--searcher", "x"],
            "searcher='x' is unknown; allowed: darts, darts-2, pc-darts, beta-darts, random",
        ),
        (["search", "--keep-final", "0"], "keep_final=0.0 is not possible; allowed: above 0, at most 1"),
        (["search", "--tau", "-1"], "tau=-1.0 is out of range; allowed: 0 to inf"),
        (["retrain", "--epochs", "0"], "epochs=0 is not possible; allowed: above 0"),
        (["ablate", "--seeds", "0"], "seeds=0 is not possible; allowed: above 0"),
    ],
)
def test_a_wrong_request_is_refused_in_one_line(argv, told, capsys):
    assert main(argv) == 2
    assert capsys.readouterr() == ("", f"bdp-nas: error: {told}\n")
