import json
import math

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from scipy import stats
from sklearn.metrics import roc_auc_score
from torch.utils.data import DataLoader
from tqdm import tqdm

from frugal_shared.errors import UsageError
from frugal_shared.evaluation import Moments, Samples, chunks, evaluate, gather_chunks, mean_interval

SIZES = range(1, 14)  # samples, for batches of 3 on up to 3 processes: every remainder there is

PROGRAM = f"""
import hashlib, json
from pathlib import Path
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from frugal_shared.evaluation import Moments, Samples, chunks, evaluate, gather_chunks
from frugal_shared.launch import leave_group

accelerator = Accelerator(cpu=True)
rank, world = accelerator.process_index, accelerator.num_processes
found = {{"rank and world": [rank, world]}}
for count in {list(SIZES)}:
    loader = accelerator.prepare(DataLoader(torch.arange(count), batch_size=3))
    states = {{"square": Moments(), "pair": Samples()}}
    step = lambda batch: {{"square": batch**2, "pair": (batch, -batch)}}
    result = evaluate(step, loader, states, accelerator)
    found[f"evaluate {{count}}"] = [result["square"], [column.tolist() for column in result["pair"]]]

    torch.manual_seed(0)
    network, images = torch.nn.Linear(300, 300), torch.randn(count, 300)
    pieces = [(chunk, network(images[chunk.start : chunk.stop])) for chunk in chunks(count, 3, rank, world)]
    together = gather_chunks(pieces)
    found[f"chunks {{count}}"] = hashlib.sha256(together.numpy().tobytes()).hexdigest()
(Path(folder) / f"{{rank}}.json").write_text(json.dumps(found))
leave_group()
"""


def run_program(laboratory, world, folder):
    """Run the program on ``world`` processes and return what each of them found."""
    answer = laboratory.ask([], folder, call="builtins:exec", args=[PROGRAM, {"folder": str(folder)}], world=world)
    assert answer.codes == [0] * world, answer.errors
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(world)]


@pytest.fixture(scope="module")
def alone(laboratory, tmp_path_factory):
    return run_program(laboratory, 1, tmp_path_factory.mktemp("alone"))[0]


@pytest.fixture
def accelerator():
    return Accelerator(cpu=True)


def test_one_process_finds_what_numpy_finds(alone):
    for count in SIZES:
        (moments, pair), numbers = alone[f"evaluate {count}"], np.arange(count)
        assert moments == pytest.approx({"count": count, "mean": np.mean(numbers**2), "std": np.std(numbers**2)})
        assert pair == [numbers.tolist(), (-numbers).tolist()]


@pytest.mark.multiprocess
@pytest.mark.parametrize("world", [2, 3])
def test_several_processes_find_what_one_finds(laboratory, world, alone, tmp_path):
    everybody = run_program(laboratory, world, tmp_path)
    for rank, found in enumerate(everybody):
        assert found["rank and world"] == [rank, world]
        for count in SIZES:
            moments, pair = found[f"evaluate {count}"]
            expected_moments, expected_pair = alone[f"evaluate {count}"]
            assert moments == pytest.approx(expected_moments, rel=1e-14)
            assert pair == expected_pair
            assert found[f"chunks {count}"] == alone[f"chunks {count}"]


def test_evaluate_needs_a_prepared_loader(accelerator):
    with pytest.raises(TypeError, match="prepare"):
        evaluate(lambda batch: {"x": batch}, DataLoader(torch.arange(4)), {"x": Moments()}, accelerator)


def test_evaluate_takes_a_progress_bar_and_leaves_gradients_off(accelerator):
    weight = torch.ones(1, requires_grad=True)

    def step(batch):
        assert not torch.is_grad_enabled()
        return {"x": batch * weight}

    loader = accelerator.prepare(DataLoader(torch.arange(5.0), batch_size=2))
    assert evaluate(step, tqdm(loader, disable=True), {"x": Moments()}, accelerator)["x"]["mean"] == 2.0


def test_samples_serve_scikit_learn(accelerator):
    scores, labels = torch.tensor([0.1, 0.4, 0.35, 0.8]), torch.tensor([0, 0, 1, 1])
    loader = accelerator.prepare(DataLoader(torch.arange(4), batch_size=3))
    found = evaluate(lambda rows: {"all": (labels[rows], scores[rows])}, loader, {"all": Samples()}, accelerator)
    assert roc_auc_score(*found["all"]) == roc_auc_score(labels, scores)


def moments(values) -> Moments:
    state = Moments()
    state.update(torch.as_tensor(values))
    return state


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_streamed_moments_equal_numpy_in_one_pass(offset):
    values = np.random.default_rng(0).normal(offset, 1, 1000)
    state = Moments()
    for part in np.split(values, [1, 10, 10, 400]):  # one of them empty
        state.update(torch.from_numpy(part))
    assert state.compute() == pytest.approx({"count": 1000, "mean": values.mean(), "std": values.std()}, rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.int64, torch.bool])
def test_moments_are_taken_in_float64(dtype):
    values = torch.tensor([0, 1, 1, 1]).repeat(25_000).to(dtype)  # a sum that float16 cannot hold
    assert moments(values).compute() == {"count": 100_000, "mean": 0.75, "std": math.sqrt(0.1875)}


def test_merge_is_associative_and_equals_one_stream():
    a, b, c = ([1.0, 4.0], [], [-2.0, 0.5, 8.0])
    left, right = moments(a), moments(b)
    left.merge(moments(b))
    left.merge(moments(c))
    right.merge(moments(c))
    outer = moments(a)
    outer.merge(right)
    assert left == outer
    assert left.compute() == pytest.approx(moments(a + b + c).compute(), rel=1e-15)


def test_merge_from_nothing_changes_nothing():
    state, seen = Moments(), moments([0.1, 0.1, 0.1])
    state.merge(seen)
    assert state == seen
    state.merge(Moments())
    assert state == seen


def test_moments_of_nothing_are_nan():
    found = Moments().compute()
    assert found["count"] == 0
    assert math.isnan(found["mean"])
    assert math.isnan(found["std"])


def test_merged_samples_keep_their_order():
    one, other = Samples(), Samples()
    one.update(torch.tensor([3, 1]))
    other.update(torch.tensor([2]))
    one.merge(other)
    assert one.compute()[0].tolist() == [3, 1, 2]


def test_interval_against_the_table():
    mean, half = mean_interval([1.0, 2.0, 3.0])
    assert mean == 2.0
    assert half == pytest.approx(4.3027 / math.sqrt(3), rel=1e-4)  # t of 2 degrees of freedom, two-sided 95 %


@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_interval_holds_the_mean_as_often_as_it_says(confidence):
    draws = np.random.default_rng(0).normal(5, 2, (2000, 4))
    held = sum(abs(mean - 5) <= half for mean, half in (mean_interval(draw, confidence) for draw in draws))
    assert stats.binomtest(held, len(draws), confidence).pvalue > 0.01


def test_one_seed_has_no_spread():
    mean, half = mean_interval([0.3])
    assert mean == 0.3
    assert math.isnan(half)


@pytest.mark.parametrize("values, confidence", [([], 0.95), ([1.0, 2.0], 0.0), ([1.0, 2.0], 1.0), ([1.0, 2.0], 95)])
def test_impossible_intervals_are_refused(values, confidence):
    with pytest.raises(UsageError, match="allowed: "):
        mean_interval(values, confidence)


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9])
@pytest.mark.parametrize("size", [1, 4, 20])
def test_chunks_are_the_same_for_every_world(count, size):
    alone = list(chunks(count, size, 0, 1))
    assert [index for chunk in alone for index in chunk] == list(range(count))
    assert all(len(chunk) == size for chunk in alone[:-1])
    for world in (2, 3, 5):
        shared = [list(chunks(count, size, rank, world)) for rank in range(world)]
        assert sorted((chunk for own in shared for chunk in own), key=lambda chunk: chunk.start) == alone
        assert all(chunk.start // size % world == rank for rank, own in enumerate(shared) for chunk in own)


@pytest.mark.parametrize("size", [0, -3])
def test_impossible_chunks_are_refused(size):
    with pytest.raises(UsageError, match=f"size={size}.*allowed: "):
        list(chunks(4, size, 0, 1))


def test_gathered_chunks_are_in_global_order(accelerator):
    pieces = [(chunk, torch.arange(chunk.start, chunk.stop)) for chunk in chunks(25, 2, 0, 1)]
    assert gather_chunks(pieces[::-1]).tolist() == list(range(25))
