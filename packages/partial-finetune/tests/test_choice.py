import math

import pytest
import torch

from partial_finetune.choice import expression_of, kendall, random_order, ranked, select, stability
from partial_finetune.parts import anatomy

ANGLES = {f"{kind}[{block}]": 0.1 * value for kind, order in {"attn": (3, 1, 4, 2), "ffn": (1, 2, 3, 4)}.items()
          for block, value in enumerate(order)}  # fmt: skip


@pytest.fixture
def parts(vit):
    return anatomy(vit)


@pytest.fixture
def start(vit):
    return {name: value.clone() for name, value in vit.state_dict().items()}


def turning(vit, start, scores=None, calls=None):
    """A training that turns attention of block b by b + 1 units, and the MLPs the other way round."""

    def tune(strategy, name, seed):
        if calls is not None:
            calls.append((strategy, name, seed))
        vit.load_state_dict(start)
        random = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for block, module in enumerate(vit.blocks):
                for part, size in ((module.attn.qkv, block + 1), (module.mlp.fc1, 4 - block)):
                    part.weight += 0.01 * size * torch.randn(part.weight.shape, generator=random)
        return (scores or {}).get(name, 0.0)

    return tune


def test_the_largest_or_the_smallest_angles_of_every_group_are_taken(parts):
    assert expression_of(ranked(parts, ANGLES, "largest"), 2) == "attn[0,2] | ffn[2,3]"
    assert expression_of(ranked(parts, ANGLES, "smallest"), 2) == "attn[1,3] | ffn[0,1]"
    assert expression_of(ranked(parts, ANGLES, "largest"), 9) == "attn[0,1,2,3] | ffn[0,1,2,3]"


def test_a_layer_without_an_angle_is_not_ranked(parts):
    known = {name: value for name, value in ANGLES.items() if name != "attn[2]"}
    assert expression_of(ranked(parts, known, "largest"), 2) == "attn[0,3] | ffn[2,3]"


def test_random_layers_have_the_same_budget(parts):
    expressions = {expression_of(random_order(parts, ANGLES, seed), 2) for seed in range(20)}
    assert len(expressions) > 5
    for expression in expressions:
        attn, ffn = expression.split(" | ")
        assert len(eval(attn.removeprefix("attn"))) == len(eval(ffn.removeprefix("ffn"))) == 2


@pytest.mark.parametrize(
    ("direction", "expected"), [("largest", "attn[2,3] | ffn[0,1]"), ("smallest", "attn[0,1] | ffn[2,3]")]
)
def test_the_layers_that_training_turned_are_found_and_the_weights_are_as_before(vit, start, direction, expected):
    choice = select(vit, start, turning(vit, start), top_k=2, direction=direction)
    assert (choice.expression, choice.direction, choice.race) == (expected, direction, {})
    assert choice.stability == 1
    assert all(torch.equal(value, start[name]) for name, value in vit.state_dict().items())


@pytest.mark.parametrize("winner", ["largest", "smallest", "random"])
def test_auto_takes_what_wins_the_race_random_layers_too(vit, start, winner):
    calls = []
    choice = select(vit, start, turning(vit, start, {f"race-{winner}": 1.0}, calls), top_k=1, direction="auto")
    assert choice.direction == winner
    assert choice.race == {way: float(way == winner) for way in ("largest", "smallest", "random")}
    assert [name for _, name, _ in calls] == ["full-0", "full-1", "race-largest", "race-smallest", "race-random"]
    assert choice.expression == {name: strategy for strategy, name, _ in calls}[f"race-{winner}"]


def test_a_training_that_turns_nothing_is_refused(vit, start):
    with pytest.raises(ValueError, match="no layer was turned"):
        select(vit, start, lambda *_: 0.0, top_k=1, direction="largest")


def test_stability_is_kendalls_tau_within_the_groups(parts):
    flipped = {name: -value if name.startswith("attn") else value for name, value in ANGLES.items()}
    assert stability(parts, [ANGLES, ANGLES]) == 1
    assert stability(parts, [ANGLES, flipped]) == pytest.approx(0)  # attention reversed, MLPs the same
    assert math.isnan(stability(parts, [ANGLES]))


def test_kendall_is_that_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    random = torch.Generator().manual_seed(0)
    a, b = torch.rand(2, 12, generator=random, dtype=torch.float64).tolist()
    assert kendall(a, b) == pytest.approx(stats.kendalltau(a, b).statistic)


def test_an_incomplete_start_is_refused_before_anything_is_trained(vit, start):
    del start["norm.bias"]
    with pytest.raises(ValueError, match=r"start lacks 'norm\.bias'"):
        select(vit, start, lambda *_: pytest.fail("trained"), top_k=1)
