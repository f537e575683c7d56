"""The ledger adds up what was spent, and can be audited against a run without pruning."""

import time

import pytest
import torch
from torch import nn

from bdp_nas.ledger import Cost, CostLedger, flops_per_sample


def spent(samples, *, steps=1):
    ledger = CostLedger(flops=10)
    for _ in range(steps):
        with ledger.spend("weights", samples=samples):
            pass
        with ledger.spend("architecture", samples=samples, forward=4, backward=4):
            pass
    return ledger


def test_samples_passes_and_flops_are_counted_by_level():
    ledger = spent(8, steps=3)
    weights, architecture = ledger.costs["weights"], ledger.costs["architecture"]
    assert (weights.samples, weights.forward, weights.backward, weights.flops) == (24, 3, 3, 24 * 30)
    assert (architecture.samples, architecture.forward, architecture.backward) == (24, 12, 12)
    assert architecture.flops == 4 * weights.flops
    assert ledger.total == weights + architecture


def test_seconds_are_those_inside_the_block():
    ledger = CostLedger()
    with ledger.spend("weights", samples=1):
        time.sleep(0.01)
    time.sleep(0.01)
    with ledger.spend("architecture", samples=1):
        pass
    assert ledger.costs["weights"].seconds >= 0.01 > ledger.costs["architecture"].seconds


def test_what_a_failed_step_cost_is_counted():
    ledger = CostLedger()
    with pytest.raises(RuntimeError), ledger.spend("weights", samples=4):
        raise RuntimeError
    assert ledger.costs["weights"].samples == 4


def test_the_ratio_is_that_of_the_totals():
    ratio = spent(4, steps=2).ratio(spent(8, steps=4))
    assert (ratio["samples"], ratio["forward"], ratio["flops"]) == (0.25, 0.5, 0.25)
    assert CostLedger().ratio(CostLedger())["samples"] != 0  # NaN: nothing was spent to compare with


def test_a_state_comes_back():
    ledger, other = spent(8), CostLedger(flops=10)
    other.load_state_dict(ledger.state_dict())
    assert other.costs == ledger.costs
    with pytest.raises(ValueError, match=r"level 'weights' has \['samples'\]; allowed: \['backward'"):
        other.load_state_dict({"weights": {"samples": 1}})
    assert other.costs == ledger.costs


def test_flops_of_a_network_are_those_of_its_products_and_nothing_changes():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(512, 10)
    )
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    expected = 2 * (3 * 9 * 8 * 64 + 512 * 10)
    assert (
        flops_per_sample(model, torch.randn(4, 3, 8, 8)) == flops_per_sample(model, torch.randn(1, 3, 8, 8)) == expected
    )
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == [True, True, False, True, True]


def test_costs_add():
    assert Cost(1, 2, 3, 4, 5) + Cost(1, 1, 1, 1, 1) == Cost(2, 3, 4, 5, 6)
