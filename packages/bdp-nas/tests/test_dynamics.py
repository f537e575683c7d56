"""Scores are what their definitions say, on what was seen and nothing else, whoever saw it and in whatever order."""

import math
from itertools import permutations

import numpy as np
import pytest
import torch

from bdp_nas.dynamics import SCORES, Dynamics, _once_each


def two_class_logits(probabilities):
    """Return logits whose softmax gives class 0 these probabilities."""
    p = torch.tensor(probabilities)
    return torch.stack([p.log(), (1 - p).log()], 1)


def dynamics_of(table, *, score="std", window=3):
    """Return dynamics that saw these probabilities of the right class, one row an epoch, None where unseen."""
    dynamics = Dynamics(len(table[0]), score=score, window=window)
    for row in table:
        seen = [index for index, p in enumerate(row) if p is not None]
        if seen:
            logits = two_class_logits([row[index] for index in seen])
            dynamics.observe(torch.tensor(seen), logits, torch.zeros(len(seen), dtype=torch.int64))
        dynamics.end_epoch()
    return dynamics


TOY = [[0.1, 0.9, 0.5], [0.3, 0.9, 0.5], [0.8, 0.9, 0.2]]  # three epochs of three samples

BY_HAND = {
    "std": [np.std([0.1, 0.3, 0.8], ddof=1), 0, np.std([0.5, 0.5, 0.2], ddof=1)],
    "dual": [np.std([0.1, 0.3, 0.8], ddof=1) * 0.6, 0, np.std([0.5, 0.5, 0.2], ddof=1) * 0.6],
    "mean_prob": [0.4, 0.9, 0.4],
    "loss": [-math.log(0.1 * 0.3 * 0.8) / 3, -math.log(0.9), -math.log(0.5 * 0.5 * 0.2) / 3],
    "abs_delta": [0.35, 0, 0.15],
    "el2n": [math.sqrt(2) * 0.6, math.sqrt(2) * 0.1, math.sqrt(2) * 0.6],
    "forgetting": [0, 0, 1],
    "entropy": [sum(-p * math.log(p) - (1 - p) * math.log(1 - p) for p in row) / 3 for row in np.array(TOY).T.tolist()],
}


@pytest.mark.parametrize("score", BY_HAND)
def test_a_score_is_what_one_finds_by_hand(score):
    assert dynamics_of(TOY, score=score).scores().tolist() == pytest.approx(BY_HAND[score], abs=1e-6)


def test_every_score_is_tested():
    assert {*BY_HAND, "random"} == set(SCORES)


def test_the_score_is_the_mean_over_full_windows():
    p = [0.1, 0.3, 0.8, 0.7, 0.2, 0.2, 0.9]
    windows = [np.std(p[start : start + 3], ddof=1) for start in range(5)]
    assert dynamics_of([[each] for each in p]).scores().item() == pytest.approx(np.mean(windows), rel=1e-5)


def test_statistics_look_at_epochs_in_their_order_when_the_buffer_has_wrapped():
    p = [0.9, 0.1, 0.1, 0.6]  # right, wrong, wrong, right: forgotten in the first window, not in the second
    assert dynamics_of([[each] for each in p], score="forgetting").scores().item() == 0.5
    assert dynamics_of([[each] for each in p], score="abs_delta").scores().item() == pytest.approx((0.4 + 0.25) / 2)


@pytest.mark.parametrize("score", SCORES)
def test_an_unseen_sample_has_no_score(score):
    scores = dynamics_of([[0.1, None], [0.3, None]], score=score).scores()
    assert scores.isfinite().tolist() == [True, False]


def test_an_unseen_epoch_is_left_out_and_a_probability_of_zero_is_not():
    assert dynamics_of([[0.1], [None], [0.5]]).scores().item() == pytest.approx(np.std([0.1, 0.5], ddof=1))
    assert dynamics_of([[0.1], [None], [0.5]], score="mean_prob").scores().item() == pytest.approx(0.3)
    assert dynamics_of([[0.1], [None], [0.5]], score="abs_delta").scores().isnan().all()
    assert dynamics_of([[0.6], [0.0], [0.6]]).scores().item() == pytest.approx(np.std([0.6, 0, 0.6], ddof=1))


def test_the_score_of_a_sample_no_longer_seen_stays():
    before = dynamics_of(TOY).scores()
    after = dynamics_of([*TOY, *[[0.5, None, None]] * 5]).scores()
    assert torch.equal(before[1:], after[1:])


def test_a_window_with_an_unseen_epoch_is_not_full():
    score = dynamics_of([[0.1], [0.2], [0.9], [None], [None], [0.5], [0.5], [0.5]]).scores().item()
    assert score == pytest.approx((np.std([0.1, 0.2, 0.9], ddof=1) + 0) / 2)


def test_one_epoch_has_no_spread():
    assert dynamics_of([[0.4]]).scores().isnan().all()


def test_random_scores_are_of_the_seed_alone():
    def scores(seed, p):
        dynamics = Dynamics(50, score="random", seed=seed)
        dynamics.observe(torch.arange(50), two_class_logits([p] * 50), torch.zeros(50, dtype=torch.int64))
        dynamics.end_epoch()
        return dynamics.scores()

    assert torch.equal(scores(1, 0.2), scores(1, 0.7))
    assert not torch.equal(scores(1, 0.2), scores(2, 0.2))


def test_the_order_of_observations_does_not_matter_nor_does_padding():
    logits, targets = torch.randn(40, 5), torch.randint(5, (40,))
    once, shuffled = Dynamics(40, score="loss"), Dynamics(40, score="loss")
    for dynamics, order in ((once, torch.arange(40)), (shuffled, torch.cat([torch.randperm(40), torch.arange(7)]))):
        for batch in order.split(8):
            dynamics.observe(batch, logits[batch], targets[batch])
        dynamics.end_epoch()
    assert torch.equal(once.scores(), shuffled.scores())


ORDERS = list(permutations(range(3)))


def test_a_sample_observed_several_times_counts_once_with_the_mean():
    values = torch.tensor([0.1, 0.7, 0.2, 0.3, 1e8])
    for order in (torch.arange(5), torch.tensor([4, 2, 3, 1, 0])):
        indices, means = _once_each(torch.tensor([3, 5, 3, 3, 3])[order], values[order])
        assert indices.tolist() == [3, 5]
        assert torch.equal(means, torch.tensor([np.float32((0.1 + 0.2 + 0.3 + 1e8) / 4), 0.7]))


def test_the_mean_does_not_depend_on_the_order_even_where_sums_do():
    values = torch.tensor([1e8, 1e-9, -1e8])  # 1e8 + 1e-9 is 1e8 in double precision
    means = {_once_each(torch.zeros(3, dtype=torch.int64), values[list(order)])[1].item() for order in ORDERS}
    assert len(means) == 1


def test_indices_beyond_float32_stay_apart():
    indices = torch.tensor([2**24 + 1, 2**24, 2**40 + 1])
    assert _once_each(indices, torch.ones(3))[0].tolist() == sorted(indices.tolist())


def test_logits_that_are_not_numbers_were_not_seen():
    dynamics = Dynamics(2, score="loss")
    dynamics.observe(torch.tensor([0, 1]), torch.tensor([[torch.nan, 0], [0, 0]]), torch.tensor([0, 0]))
    dynamics.end_epoch()
    assert dynamics.scores().isfinite().tolist() == [False, True]


def test_half_precision_logits_are_taken_as_float32():
    dynamics = Dynamics(1, score="mean_prob")
    dynamics.observe(torch.tensor([0]), torch.tensor([[0.0, 9.0]], dtype=torch.bfloat16), torch.tensor([0]))
    dynamics.end_epoch()
    assert dynamics.scores().item() == pytest.approx(1 / (1 + math.exp(9)), rel=1e-5)


def test_memory_is_four_bytes_a_sample_and_epoch():
    state = Dynamics(1000, window=7).state_dict()
    assert state["window"].nbytes == 4 * 1000 * 7
    assert sum(tensor.nbytes for tensor in state.values()) < 4 * 1000 * 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"score": "best"}, "score='best' is unknown; allowed: std, dual"),
        ({"window": 1}, "window=1 is not possible; score='std' allows 2 or more"),
    ],
)
def test_impossible_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Dynamics(4, **options)


@pytest.mark.parametrize(
    ("indices", "targets", "message"),
    [
        ([0, 4], [0, 1], "index 4 is out of range; allowed: 0 to 3"),
        ([-1, 2], [0, 1], "index -1 is out of range; allowed: 0 to 3"),
        ([0, 1], [0, 3], "label 3 is out of range; allowed: 0 to 2"),
        ([0, 1], [-1, 0], "label -1 is out of range; allowed: 0 to 2"),
        ([0], [0, 1], r"shapes \(1,\), \(2, 3\), \(2,\); allowed: \(B,\), \(B, C\), \(B,\)"),
    ],
)
def test_impossible_observations_are_refused(indices, targets, message):
    with pytest.raises(ValueError, match=message):
        Dynamics(4).observe(torch.tensor(indices), torch.zeros(2, 3), torch.tensor(targets))


def test_a_state_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"of \(4, 5\) samples and epochs; allowed: \(4, 3\)"):
        Dynamics(4, window=3).load_state_dict(Dynamics(4, window=5).state_dict())
