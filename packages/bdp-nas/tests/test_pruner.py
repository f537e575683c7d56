"""The pruner keeps exact, disjoint, nested, balanced sets; it resumes exactly, and at keep 1 it is not there."""

import io
import json
import math
import re
import textwrap
from itertools import count, islice, pairwise

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset, TensorDataset

import bdp_nas.pruner
from bdp_nas.dynamics import SCORES
from bdp_nas.pruner import DIRECTIONS, LEVELS, BilevelPruner, preference
from bdp_nas.schedule import KeepSchedule

CLASSES = 5
SIZE = 200
EXAMPLE = textwrap.dedent(re.search(r"::\n\n(.*?)\n\nwith what", bdp_nas.pruner.__doc__, re.S)[1])


@pytest.fixture(autouse=True)
def _one_thread_and_seed():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def labels_of(size):
    return torch.arange(size) % CLASSES


def make_pruner(*, size=SIZE, epochs=10, final=0.2, batch_size=8, drop_last=False, **options):
    """Return a pruner of a data set whose samples are numbers, split into even and odd halves."""
    defaults = {"schedule": KeepSchedule(epochs, final), "labels": labels_of(size)}
    defaults |= {"weights": torch.arange(0, size, 2), "architecture": torch.arange(1, size, 2)}

    def loader(subset):
        return DataLoader(subset, batch_size, shuffle=True, drop_last=drop_last)

    return BilevelPruner(torch.arange(size), make_loader=loader, **(defaults | options))


def answers(indices, epoch):
    """Return the logits of a pretended supernet, random but of the samples and the epoch alone."""
    return torch.randn(10_000, CLASSES, generator=torch.Generator().manual_seed(epoch))[indices]


def observe_epoch(pruner, *, observed=LEVELS):
    for level, loader in zip(LEVELS, pruner.loaders()):
        for indices, _ in loader if level in observed else ():
            pruner.observe(level, indices, answers(indices, pruner.epoch), labels_of(10_000)[indices])


def run(pruner, epochs=10):
    """Return the kept sets of every epoch, as lists."""
    history = [pruner.kept]
    for _ in range(epochs):
        observe_epoch(pruner)
        pruner.step()
        history.append(pruner.kept)
    return [{level: indices.tolist() for level, indices in kept.items()} for kept in history]


# the example of the module's docstring


def search(code, *, epochs=3, seed=0):
    """Run a DARTS loop on clusters of points; return its variables."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (96,), generator=generator)
    data = TensorDataset(torch.randn(96, 4, generator=generator) + labels[:, None], labels)
    train, valid = torch.randperm(96, generator=generator).split(48)
    torch.manual_seed(seed)
    alphas = torch.zeros(2, requires_grad=True)
    operations = nn.ModuleList(
        [nn.Linear(4, 3), nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.2), nn.ReLU(), nn.Linear(8, 3))]
    )

    def model(x):
        return sum(weight * operation(x) for weight, operation in zip(alphas.softmax(0), operations))

    weights_optimizer = torch.optim.SGD(operations.parameters(), 0.1, momentum=0.9)
    names = {
        "torch": torch,
        "F": F,
        "BilevelPruner": BilevelPruner,
        "KeepSchedule": KeepSchedule,
        "make_loader": lambda subset: DataLoader(subset, batch_size=8, shuffle=True),
        "alphas_optimizer": torch.optim.Adam([alphas], 0.01),
        "scheduler": torch.optim.lr_scheduler.CosineAnnealingLR(weights_optimizer, epochs),
        "Subset": Subset,
    }
    names |= {"data": data, "labels": labels, "train": train, "valid": valid, "epochs": epochs, "model": model}
    names |= {"alphas": alphas, "operations": operations, "weights_optimizer": weights_optimizer}
    exec(code, names)
    return names


def without_pruner(code):
    queues = "zip(make_loader(Subset(data, train)), make_loader(Subset(data, valid)))"
    code = re.sub(r"for .* in pruner.batches\(\):  # \+", f"for (x, y), (x_valid, y_valid) in {queues}:", code)
    return "\n".join(line for line in code.split("\n") if not line.endswith("# +"))


def test_the_example_adds_at_most_six_lines_and_prunes():
    assert EXAMPLE.count("# +") <= 6
    names = search(EXAMPLE, epochs=6)
    pruner = names["pruner"]
    assert names["scheduler"].get_last_lr() == [0]  # shorter epochs do not bend the learning rate
    assert pruner.epoch == 6
    assert {level: len(kept) for level, kept in pruner.kept.items()} == {"weights": 10, "architecture": 10}


def test_keep_one_is_bit_identical_to_the_loop_without_a_pruner():
    plain = without_pruner(EXAMPLE)
    assert "pruner" not in plain
    pruned = EXAMPLE.replace("KeepSchedule(epochs)", "KeepSchedule(epochs, final=1)")
    assert pruned != EXAMPLE
    without, with_it = search(plain), search(pruned)
    assert torch.equal(without["alphas"], with_it["alphas"])
    for a, b in zip(without["operations"].parameters(), with_it["operations"].parameters()):
        assert torch.equal(a, b)
    # and the test can tell: another seed has other bits, so has pruning
    assert not torch.equal(search(plain, seed=1)["alphas"], with_it["alphas"])
    assert not torch.equal(search(EXAMPLE)["alphas"], with_it["alphas"])


# sets


@pytest.mark.parametrize("score", SCORES)
def test_counts_are_exact_and_sets_nested_disjoint_and_balanced(score):
    pruner = make_pruner(score=score)
    history = run(pruner)
    for epoch, kept in enumerate(history):
        assert not set(kept["weights"]) & set(kept["architecture"])
        for level in LEVELS:
            assert len(kept[level]) == pruner.schedules[level].count(epoch, 100)
            even = len(kept[level]) / CLASSES
            counts = np.bincount(np.array(kept[level]) % CLASSES, minlength=CLASSES)
            assert np.abs(counts - even).max() <= 0.1 * even + 1  # whole samples
    for before, after in pairwise(history):
        for level in LEVELS:
            assert set(after[level]) <= set(before[level])
    assert len(history[-1]["weights"]) == 20


def test_the_kept_samples_are_those_with_the_best_scores():
    pruner = make_pruner(direction={"weights": "high", "architecture": "low"}, tau=math.inf, epochs=3, final=0.5)
    run(pruner, 2)
    for level, descending in (("weights", True), ("architecture", False)):
        scores = pruner.dynamics.scores()[pruner.sets[level]]
        best = pruner.sets[level][scores.argsort(descending=descending)[:50]]
        assert set(pruner.kept[level].tolist()) == set(best.tolist())


def test_the_order_of_the_given_indices_stays():
    weights = torch.randperm(100)
    pruner = make_pruner(weights=weights, architecture=torch.arange(100, 200))
    assert torch.equal(pruner.kept["weights"], weights)
    kept = run(pruner)[-1]["weights"]
    assert kept == [index for index in weights.tolist() if index in kept]


def test_a_shuffled_order_of_observation_keeps_the_same():
    torch.manual_seed(1)
    one = run(make_pruner())
    torch.manual_seed(2)
    assert one == run(make_pruner(batch_size=13))


def test_other_samples_of_the_data_set_are_left_alone():
    pruner = make_pruner(weights=range(60), architecture=range(60, 120))
    assert all(set(kept["weights"]) <= set(range(60)) for kept in run(pruner))


def test_recycled_samples_come_back_and_counts_stay_exact():
    pruner = make_pruner(recycle=0.1, epochs=20, tau=math.inf)
    history = run(pruner, 20)
    for before, after in pairwise(history):
        rounds = len(after["weights"]) < len(before["weights"])
        back = set(after["weights"]) - set(before["weights"])
        assert len(back) == rounds * round(0.1 * (100 - len(before["weights"])))
    assert [len(kept["weights"]) for kept in history] == [pruner.schedules["weights"].count(e, 100) for e in range(21)]
    assert all(set(kept["weights"]) <= set(range(0, SIZE, 2)) for kept in history)
    assert history == run(make_pruner(recycle=0.1, epochs=20, tau=math.inf), 20)
    assert history != run(make_pruner(recycle=0.1, epochs=20, tau=math.inf, seed=1), 20)


def test_samples_that_were_not_seen_are_not_pruned():
    pruner = make_pruner(epochs=3, final=0.5)
    unseen = {0, 22, 44, 66, 88}
    for _ in range(2):
        for level in LEVELS:
            indices = torch.tensor([i for i in pruner.kept[level].tolist() if i not in unseen])
            pruner.observe(level, indices, answers(indices, pruner.epoch), labels_of(SIZE)[indices])
        pruner.step()
    assert unseen <= set(pruner.kept["weights"].tolist())


def test_one_level_can_be_pruned_alone():
    schedule = {"weights": KeepSchedule(10, 1), "architecture": KeepSchedule(10)}
    pruner = make_pruner(schedule=schedule)
    assert {level: len(kept) for level, kept in run(pruner)[-1].items()} == {"weights": 100, "architecture": 20}
    assert pruner.relative_cost() == 1  # the longer level sets the pace
    assert make_pruner().relative_cost() == pytest.approx(KeepSchedule(10).mean(), abs=0.01)


# directions

PLACES = [("high", range(5)), ("low", range(5, 10)), ("mid", range(2, 7)), ("both_tails", [0, 1, 2, 3, 9])]


@pytest.mark.parametrize(("direction", "places"), PLACES)
def test_directions_keep_their_part_of_the_ranking(direction, places):
    scores = np.linspace(1, 0, 10, dtype=np.float32)
    assert sorted(np.argsort(preference(scores, direction), kind="stable")[:5]) == list(places)


def test_both_tails_keep_a_fifth_from_the_low_end_whatever_the_count():
    keys = preference(np.linspace(1, 0, 1000, dtype=np.float32), "both_tails")
    for keep in (5, 50, 123, 500):
        low = (np.argsort(keys, kind="stable")[:keep] > 500).sum()
        assert abs(low - 0.2 * keep) <= 1


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_unseen_samples_come_first_and_ties_keep_their_order(direction):
    keys = preference(np.array([0.5, np.nan, 0.5, 0.5], dtype=np.float32), direction)
    assert keys[1] < keys[[0, 2, 3]].min()
    assert np.array_equal(keys, preference(np.array([0.5, np.nan, 0.5, 0.5], dtype=np.float32), direction))


# loaders


def test_an_epoch_has_the_steps_of_the_longer_level_and_the_shorter_begins_anew():
    pruner = make_pruner(weights=range(24), architecture=range(100, 160), batch_size=8)
    steps = list(pruner.batches())
    assert len(steps) == 8
    architecture = torch.cat([indices for _, (indices, _) in steps])
    assert sorted(architecture.tolist()) == list(range(100, 160))
    first_passes = [torch.cat([indices for (indices, _), _ in part]) for part in (steps[:3], steps[3:6])]
    for one_pass in first_passes:  # without replacement: every sample once before any comes again
        assert sorted(one_pass.tolist()) == list(range(24))


def test_batches_bring_the_indices_of_their_own_samples():
    for level, loader in zip(LEVELS, make_pruner().loaders()):
        indices, samples = next(iter(loader))
        assert torch.equal(indices, samples)
        assert set((indices % 2).tolist()) == {LEVELS.index(level)}


# resume


def observations():
    """Yield one batch of a level after the other, for ever, in turn."""
    for epoch in count():
        for batch in torch.arange(SIZE).split(7):
            yield epoch, batch


def feed(pruner, start, stop):
    """Take the steps ``start`` to ``stop`` of a run, 29 batches an epoch."""
    for number, (epoch, batch) in islice(enumerate(observations()), start, stop):
        for level, parity in zip(LEVELS, (0, 1)):
            mine = batch[batch % 2 == parity]
            mine = mine[torch.isin(mine, pruner.kept[level])]
            pruner.observe(level, mine, answers(mine, epoch), labels_of(SIZE)[mine])
        if number % 29 == 28:
            pruner.step()


@pytest.mark.parametrize("killed", [1, 29, 100, 174, 200])
def test_a_run_killed_at_any_step_ends_with_the_same_state(killed):
    uninterrupted, before, after = (make_pruner(recycle=0.1, score="dual") for _ in range(3))
    feed(uninterrupted, 0, 290)
    feed(before, 0, killed)
    file = io.BytesIO()
    torch.save(before.state_dict(), file)
    file.seek(0)
    after.load_state_dict(torch.load(file, weights_only=True))
    feed(after, killed, 290)
    expected, found = uninterrupted.state_dict(), after.state_dict()
    assert expected.keys() == found.keys()
    assert len(after.kept["weights"]) == 20
    for name, value in expected.items():
        assert torch.equal(value.nan_to_num(-1), found[name].nan_to_num(-1)), name
    assert not set(after.kept["weights"].tolist()) & set(after.kept["architecture"].tolist())


def test_a_state_is_a_copy():
    pruner = make_pruner()
    state = pruner.state_dict()
    run(pruner)
    assert state["window"].isnan().all() and state["kept_weights"].all()
    pruner.load_state_dict(state)
    run(pruner)
    assert state["window"].isnan().all() and state["kept_weights"].all()


def test_a_state_of_other_sets_is_refused():
    other = make_pruner(weights=torch.arange(1, SIZE, 2), architecture=torch.arange(0, SIZE, 2))
    with pytest.raises(ValueError, match="the state's weights set is not this pruner's"):
        make_pruner().load_state_dict(other.state_dict())


# processes

PROGRAM = """
import json, os
from pathlib import Path
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, DistributedSampler
from bdp_nas.pruner import LEVELS, BilevelPruner
from bdp_nas.schedule import KeepSchedule

rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
if world > 1:
    dist.init_process_group("gloo")
labels = torch.arange(203) % 5

def loader(subset):
    if world == 1:
        return DataLoader(subset, 8, shuffle=True)
    sampler = DistributedSampler(subset)  # pads: 101 samples are not even
    return DataLoader(subset, 8, sampler=sampler)

options = {"schedule": KeepSchedule(10), "recycle": 0.1}
pruner = BilevelPruner(torch.arange(203), labels, range(0, 203, 2), range(1, 203, 2), loader, **options)
kept = []
for epoch in range(8):
    logits = torch.randn(203, 5, generator=torch.Generator().manual_seed(epoch))
    for batches in pruner.batches():
        for level, (indices, _) in zip(LEVELS, batches):
            pruner.observe(level, indices, logits[indices], labels[indices])
    pruner.step()
    kept.append([pruner.kept[level].tolist() for level in LEVELS])
(Path(folder) / str(rank)).write_text(json.dumps(kept))
if world > 1:
    dist.destroy_process_group()
"""


def kept_by(laboratory, folder, world):
    answer = laboratory.ask([], folder, call="builtins:exec", args=[PROGRAM, {"folder": str(folder)}], world=world)
    assert answer.codes == [0] * world, answer.errors
    return [(folder / str(rank)).read_text() for rank in range(world)]


@pytest.mark.multiprocess
def test_two_processes_keep_the_sets_of_one(laboratory, tmp_path):
    (alone,) = kept_by(laboratory, tmp_path, 1)
    assert [len(level) for level in json.loads(alone)[-1]] == [20, 20]
    assert kept_by(laboratory, tmp_path, 2) == [alone, alone]


# bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"final": 0.03}, "level 'weights': keep=0.03 leaves 3 of 100 samples; allowed: at least 5, the floors of 5"),
        ({"final": 0.05, "drop_last": True}, "level 'weights': keep=0.05 leaves 5 samples, less than one batch"),
        ({"min_per_class": 21}, "level 'weights': class 0 has 20 samples; allowed: at least 21"),
        (
            {"architecture": range(1, SIZE, 10)},
            "level 'architecture': class 0 has 0 samples; allowed: some at both levels",
        ),
        ({"labels": labels_of(SIZE) - 1}, "label -1 is out of range; allowed: 0 or more"),
        ({"labels": torch.rand(SIZE)}, r"labels have shape \(200,\) and torch.float32; allowed: \(N,\), integers"),
        ({"labels": labels_of(SIZE)[:150]}, "index 150 is out of range; allowed: 0 to 149"),
        ({"weights": range(100), "architecture": range(99, 200)}, "sample 99 is there twice; allowed: disjoint sets"),
        ({"weights": [0, 2, 2, 4]}, "sample 2 is there twice"),
        ({"direction": "up"}, "direction='up' is unknown; allowed: high, low, mid, both_tails"),
        ({"direction": {"weights": "high"}}, r"direction is given for \['weights'\]; allowed: weights, architecture"),
        ({"score": "best"}, "score='best' is unknown"),
        ({"recycle": 1.5}, "recycle=1.5 is not possible; allowed: 0 to 1"),
        ({"tau": -1}, "level 'weights': tau=-1 is not possible"),
    ],
)
def test_what_is_not_possible_is_said_before_the_run_in_one_line(options, message):
    with pytest.raises(ValueError, match=message) as caught:
        make_pruner(**options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("level", "indices", "targets", "message"),
    [
        ("alphas", [0], [0], "level='alphas' is unknown; allowed: weights, architecture"),
        ("weights", [0, 1], [0, 1], "sample 1 is not of level 'weights'; allowed: samples of its own loader"),
        ("architecture", [1, 2], [0, 1], "sample 2 is not of level 'architecture'"),
        ("weights", [0, 200], [0, 1], "index 200 is out of range; allowed: 0 to 199"),
        ("weights", [0, 2], [0, 5], "label 5 is out of range; allowed: 0 to 4"),
    ],
)
def test_impossible_observations_are_refused_and_nothing_is_recorded(level, indices, targets, message):
    pruner = make_pruner()
    with pytest.raises(ValueError, match=message):
        pruner.observe(level, torch.tensor(indices), torch.zeros(len(indices), CLASSES), torch.tensor(targets))
    assert len(pruner.state_dict()["pending_indices"]) == 0


def test_a_level_that_is_never_observed_is_not_pruned_blindly():
    pruner = make_pruner()
    with pytest.raises(
        RuntimeError, match="level 'architecture' has no scores to prune by before epoch 2; allowed: obs"
    ):
        for _ in range(3):
            observe_epoch(pruner, observed=["weights"])
            pruner.step()
