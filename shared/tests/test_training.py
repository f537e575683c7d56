import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from frugal_shared.config import RunConfig
from frugal_shared.errors import UsageError
from frugal_shared.run import Run
from frugal_shared.training import Resumable, share, warm_up_cosine
from frugal_shared.writing import write_json


def test_the_rate_rises_to_its_peak_and_falls_to_nothing():
    rates = [warm_up_cosine(step, 100, 10) for step in range(100)]
    assert np.all(np.diff(rates[:10]) > 0) and np.all(np.diff(rates[10:]) < 0)
    assert rates[0] == pytest.approx(0.1, rel=1e-3) and rates[-1] < 1e-3


@pytest.mark.parametrize("warm_up", [0, 1])
def test_without_a_warm_up_it_starts_at_the_peak(warm_up):
    assert warm_up_cosine(0, 10, warm_up) == 1


def test_everybody_has_an_equal_part_and_nobody_the_same():
    shares = [share(SimpleNamespace(num_processes=3, process_index=rank), np.arange(12)) for rank in range(3)]
    assert [len(rows) for rows in shares] == [4, 4, 4]
    assert sorted(np.concatenate(shares)) == list(range(12))


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(UsageError, match="batch_size=10 does not divide among 3 processes; allowed: multiples of it"):
        share(SimpleNamespace(num_processes=3, process_index=0), list(range(10)))


# --- going on after a kill ---


class Sum(Resumable):
    """Adds up the numbers of its steps, and dies where it is told to."""

    def __init__(self, dies_at=None):
        super().__init__(Accelerator(cpu=True))
        self.total, self.dies_at, self.advanced = torch.zeros(()), dies_at, 0

    def advance(self):
        if self.done == self.dies_at:
            raise KeyboardInterrupt
        self.total += self.done
        self.done, self.advanced = self.done + 1, self.advanced + 1
        return {"total": self.total.item()} if self.done % 2 else {}

    def state_dict(self):
        return {"total": self.total}

    def load_state_dict(self, state):
        self.total = state["total"]


def summed(run, folder, training, **options):
    """Train for 7 steps in a folder, and write what came out."""
    training.restore(folder)
    training.train(run, folder, 7, **options)
    training.finish(folder, lambda: write_json(folder / "sum.json", training.total.item()))


@pytest.fixture
def run(tmp_path):
    with Run(RunConfig(output_dir=tmp_path / "run", cpu=True), "frugal-shared") as run:
        yield run


@pytest.mark.parametrize("dies_at", range(7))
def test_a_training_that_was_killed_goes_on_from_its_last_checkpoint_to_the_same_end(run, dies_at):
    folder = run.folder / "cell"
    with pytest.raises(KeyboardInterrupt):
        summed(run, folder, Sum(dies_at), save_every=3)
    assert not (folder / "sum.json").exists()
    summed(run, folder, again := Sum(), save_every=3)
    assert (again.total, again.done, again.advanced) == (21, 7, 7 - dies_at // 3 * 3)
    assert json.loads((folder / "sum.json").read_text()) == 21


def test_the_end_is_saved_before_the_result_is_written_and_nothing_but_the_result_is_left(run):
    folder, left = run.folder / "cell", []

    def write():
        left.extend(path.name for path in sorted((folder / "checkpoints").iterdir()))
        raise KeyboardInterrupt

    (first := Sum()).train(run, folder, 7, save_every=3)
    with pytest.raises(KeyboardInterrupt):
        first.finish(folder, write)
    assert left == ["step-00000006", "step-00000007"]
    summed(run, folder, again := Sum(), save_every=3)
    assert (again.total, again.advanced) == (21, 0)
    assert [path.name for path in folder.iterdir()] == ["sum.json"]


@pytest.mark.parametrize("log", [True, False])
def test_only_what_a_step_gives_is_logged(run, log):
    Sum().train(run, run.folder / "cell", 4, log=log)
    lines = (run.folder / "metrics.jsonl").read_text().splitlines() if log else []
    assert [json.loads(line) for line in lines] == [{"step": 1, "total": 0.0}, {"step": 3, "total": 3.0}] * log
    assert (run.folder / "metrics.jsonl").exists() == log
