"""The baselines stand behind the pruner's interface: drawn samples at equal cost, and InfoBatch's manner."""

import math

import pytest
import torch
from torch.utils.data import DataLoader

from bdp_nas.infobatch import InfoBatchPruner
from bdp_nas.pruner import LEVELS, BilevelPruner
from bdp_nas.schedule import KeepSchedule

SIZE, CLASSES, EPOCHS = 120, 5, 8
LABELS = torch.arange(SIZE) % CLASSES
HARD = torch.arange(SIZE) % 3 == 0  # every third sample keeps a large loss


def pruner_of(kind=InfoBatchPruner, **options):
    def loader(subset):
        return DataLoader(subset, 10, shuffle=True)

    halves = torch.arange(0, SIZE, 2), torch.arange(1, SIZE, 2)
    return kind(torch.arange(SIZE), LABELS, *halves, loader, **options)


def infobatch(**options):
    return pruner_of(**({"epochs": EPOCHS} | options))


def observe_epoch(pruner):
    for level, indices in pruner.kept.items():
        right = torch.where(HARD[indices], -1.0, 3.0)
        logits = torch.zeros(len(indices), CLASSES)
        logits[range(len(indices)), LABELS[indices]] = right
        pruner.observe(level, indices, logits, LABELS[indices])


def epochs_of(pruner, count):
    found = []
    for _ in range(count):
        observe_epoch(pruner)
        pruner.step()
        found.append({level: set(indices.tolist()) for level, indices in pruner.kept.items()})
    return found


def test_infobatch_leaves_out_half_of_the_learned_samples_and_no_other():
    pruner = infobatch()
    [kept] = epochs_of(pruner, 1)
    for level in LEVELS:
        everything = set(pruner.sets[level].tolist())
        hard = {index for index in everything if HARD[index]}
        assert hard <= kept[level]
        assert len(kept[level]) == len(everything) - (len(everything) - len(hard)) // 2


def test_what_infobatch_left_out_comes_back():
    first, second = epochs_of(infobatch(), 2)
    for level in LEVELS:
        assert second[level] - first[level]
        assert len(second[level]) == len(first[level])


def test_the_weights_make_up_for_what_is_left_out():
    pruner = infobatch(share=0.25)
    epochs_of(pruner, 1)
    for level in LEVELS:
        weights = pruner.sample_weights(pruner.kept[level])
        assert weights.unique().tolist() == pytest.approx([1.0, 4 / 3])
        assert weights.sum() == pytest.approx(len(pruner.sets[level]))


def test_infobatch_ends_on_all_samples():
    pruner = infobatch(anneal=0.5)
    kept = epochs_of(pruner, EPOCHS)
    assert [len(each["weights"]) < SIZE // 2 for each in kept] == [epoch < 4 for epoch in range(1, EPOCHS + 1)]
    assert (pruner.sample_weights(torch.arange(SIZE)) == 1).all()


def test_share_0_leaves_out_nothing():
    for kept in epochs_of(infobatch(share=0.0), 3):
        assert {level: len(each) for level, each in kept.items()} == dict.fromkeys(LEVELS, SIZE // 2)


def test_a_sample_left_out_keeps_the_loss_it_had():
    pruner = infobatch()
    epochs_of(pruner, 3)
    losses = pruner.state_dict()["last_losses"]
    assert (losses[~HARD] < losses[HARD].min()).all()


def test_infobatch_resumes_where_it_was():
    straight, cut, fresh = infobatch(), infobatch(), infobatch()
    epochs_of(straight, 3)
    epochs_of(cut, 3)
    fresh.load_state_dict(cut.state_dict())
    assert epochs_of(straight, 2) == epochs_of(fresh, 2)
    assert torch.equal(straight.sample_weights(LABELS), fresh.sample_weights(LABELS))


def test_another_pruners_state_is_refused():
    other = pruner_of(BilevelPruner, schedule=KeepSchedule(EPOCHS))
    with pytest.raises(ValueError, match="is not of InfoBatch"):
        infobatch().load_state_dict(other.state_dict())


@pytest.mark.parametrize("options", [{"share": 1.0}, {"share": -0.1}, {"anneal": 1.1}, {"epochs": 0}])
def test_impossible_options_are_refused(options):
    with pytest.raises(ValueError, match="is not possible"):
        infobatch(**options)


def test_nobody_knows_infobatchs_cost_before():
    assert math.isnan(infobatch().relative_cost())


def test_random_pruning_costs_what_bdp_costs_and_keeps_the_classes():
    schedule = KeepSchedule(EPOCHS)
    drawn, ranked = (pruner_of(BilevelPruner, schedule=schedule, score=score) for score in ("random", "std"))
    for one, other in zip(epochs_of(drawn, EPOCHS), epochs_of(ranked, EPOCHS)):
        assert {level: len(each) for level, each in one.items()} == {level: len(each) for level, each in other.items()}
    for level in LEVELS:
        counts = LABELS[drawn.kept[level]].bincount(minlength=CLASSES)
        assert counts.max() - counts.min() <= 1
    assert not torch.equal(drawn.kept["weights"], ranked.kept["weights"])
