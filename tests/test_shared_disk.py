"""Several processes are one run: they claim a folder, fail and go on together, or none of them does."""

import json
from pathlib import Path

import pytest

from frugal_shared.checkpoint import save_checkpoint
from frugal_shared.config import RunConfig
from frugal_shared.run import Run

pytestmark = pytest.mark.multiprocess


@pytest.fixture(scope="module")
def two(laboratory, tmp_path_factory):
    """A folder, and what each of two processes has found there."""
    root = tmp_path_factory.mktemp("two")
    with Run(RunConfig(output_dir=root / "old", cpu=True), "frugal-shared") as old:
        old.log(1, loss=1.0)
    for step in (0, 1):
        save_checkpoint(root / f"checkpoints-{step}", step, {})
        save_checkpoint(root / f"torn-{step}", 3, {})
    (root / "torn-1" / "step-00000003" / "state.json").write_text("")
    answer = laboratory.ask([], root, call="attempts:make", args=[str(root)], world=2)
    assert answer.codes == [0, 0], answer.errors
    return root, [json.loads(Path(root / f"{rank}.json").read_text()) for rank in (0, 1)]


def test_without_a_shared_disk_all_are_told_at_the_start(two):
    root, found = two
    for answer in found:
        assert answer["apart"].startswith("UsageError: output_dir=") and "\n" not in answer["apart"]
        assert "rank 1 on " in answer["apart"] and "does not see the manifest of rank 0" in answer["apart"]
    assert not [*root.glob("disk-*")]


def test_where_the_first_may_not_have_the_folder_all_are_told(two):
    for answer in two[1]:
        assert answer["taken"].startswith("UsageError: ") and "already holds a run" in answer["taken"]


def test_two_overwrite_a_run_together(two):
    for answer in two[1]:
        assert answer["overwritten"] == ["checkpoints", "manifest.json"]


def test_from_different_steps_none_goes_on(two):
    for answer in two[1]:
        assert answer["other steps"].startswith("RunError: ") and "(rank 0: 0, rank 1: 1)" in answer["other steps"]


def test_where_one_cannot_read_its_checkpoint_none_goes_on(two):
    for answer in two[1]:
        assert answer["one torn"].startswith("RunError: ") and "torn-1" in answer["one torn"]


def test_from_the_same_step_all_go_on(two):
    assert [answer["same"] for answer in two[1]] == [[0, {}]] * 2
