import itertools
import weakref
from dataclasses import replace

import pytest
import torch
from torch import nn

from partial_finetune.deltas import Delta, _hash, base_hashes, open_delta, save_delta
from partial_finetune.soups import check_ingredients, greedy, per_part_mean, recalibrate, uniform, union, wise_ft

INFO = {"model": "tiny", "classes": ["a", "b"], "mean": [0.5], "std": [0.25], "image_size": 32}
HEAD = ("head.weight", "head.bias")
ATTN, FFN = ("attn.weight", "attn.bias"), ("ffn.weight", "ffn.bias")


class Tiny(nn.Module):
    """As much of a network as a soup sees."""

    def __init__(self, classes=2, head_seed=1):
        super().__init__()
        torch.manual_seed(0)
        self.attn, self.ffn, self.norm = nn.Linear(16, 16), nn.Linear(16, 32), nn.BatchNorm1d(16)
        self.register_buffer("index", torch.arange(4))
        torch.manual_seed(head_seed)
        self.head = nn.Linear(16, classes)


def bits(tensors):
    return {name: _hash(tensor) for name, tensor in tensors.items()}


@pytest.fixture
def base():
    return Tiny(classes=10).state_dict()  # pretrained, with a head of its own


@pytest.fixture
def start():
    return Tiny().state_dict()


@pytest.fixture
def cook(tmp_path):
    """Return what makes an ingredient: the named tensors, moved at random, or set by ``change(model)``."""
    count = itertools.count()

    def cook(names=(), seed=0, change=lambda model: None, info=INFO, **model):
        model = Tiny(**model)
        hashes, head = base_hashes(model), {name: model.state_dict()[name].clone() for name in HEAD}
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name in names:
                values = model.get_parameter(name)
                values += 0.1 * torch.randn(values.shape, generator=generator)
            change(model)
        path = tmp_path / f"{next(count)}"
        save_delta(path, model, hashes, selection=None, info=info, initial_head=head)
        return open_delta(path)

    return cook


@pytest.fixture
def deltas(cook):
    """Four ingredients: two attention, one feed-forward, one both; all with the head."""
    parts = (ATTN, ATTN, FFN, ATTN + FFN)
    return [cook(names + HEAD, seed) for seed, names in enumerate(parts)]


@pytest.mark.parametrize("count", [1, 2, 3, 7, 49])
def test_identical_ingredients_give_themselves_to_the_bit(cook, base, start, count):
    def extreme(model):
        # what θ₀ + mean(θ − θ₀) would lose: tiny values, and the sign of zero
        model.attn.weight[0, :4] = torch.tensor([3e-30, -0.0, 1e30, -1e-42])

    delta = cook(ATTN + HEAD, change=extreme)
    for soup in (uniform, per_part_mean):
        assert bits(soup([delta] * count, base)) == bits(start | delta.tensors())


def test_uniform_is_the_mean_of_the_models(deltas, base, start):
    models = [start | delta.tensors() for delta in deltas]
    for name, tensor in uniform(deltas, base).items():
        mean = sum(model[name].double() for model in models) / len(models)
        assert tensor.dtype == start[name].dtype
        torch.testing.assert_close(tensor.double(), mean, rtol=1e-7, atol=1e-9)


def test_no_order_of_the_ingredients_changes_a_bit(cook, base):
    def set_to(value):
        return lambda model: model.attn.bias.fill_(value)

    # of these, the order of summation decides whether the 1 survives, even in float64
    deltas = [cook(HEAD, seed, change=set_to(value)) for seed, value in enumerate((1e30, 1.0, -1e30, 3.0))]
    for soup in (uniform, union, per_part_mean):
        assert len({str(bits(soup(order, base))) for order in itertools.permutations(deltas)}) == 1


def test_uniform_shrinks_disjoint_parts_and_union_keeps_them(cook, base, start):
    attn, ffn = cook(ATTN, 1), cook(FFN, 2)
    parts = {**{name: attn.tensor(name) for name in ATTN}, **{name: ffn.tensor(name) for name in FFN}}
    assert bits(union([attn, ffn], base)) == bits(start | parts)
    halves = uniform([attn, ffn], base)
    for name, tensor in parts.items():
        torch.testing.assert_close(halves[name], (start[name] + tensor) / 2)


def test_union_adds_scaled_changes_and_in_the_head_their_mean(deltas, base, start):
    found = union(deltas, base, 0.3)
    for name, share in ((ATTN[0], 1.0), ("head.weight", 0.25)):
        changes = [delta.tensor(name) - start[name] for delta in deltas if name in delta.names]
        torch.testing.assert_close(found[name], start[name] + 0.3 * share * sum(changes))
    assert bits(union(deltas, base, 0.0)) == bits(start)


def test_per_part_mean_divides_by_those_who_tuned(deltas, base, start):
    found = per_part_mean(deltas, base)
    for name, tuners in (("attn.weight", (0, 1, 3)), ("ffn.weight", (2, 3)), ("head.bias", (0, 1, 2, 3))):
        torch.testing.assert_close(found[name], sum(deltas[k].tensor(name) for k in tuners) / len(tuners))
    assert torch.equal(found["norm.weight"], start["norm.weight"])


def test_wise_ft_runs_from_the_base_to_the_model(cook, base, start):
    def step(model):
        model.train()
        model.norm(torch.ones(2, 16))

    delta = cook(ATTN + HEAD, change=step)
    assert bits(wise_ft(delta, base, 0.0)) == bits(start)
    assert bits(wise_ft(delta, base, 1.0)) == bits(start | delta.tensors())
    for name in ("attn.weight", "head.weight", "norm.running_mean"):
        torch.testing.assert_close(wise_ft(delta, base, 0.25)[name], start[name].lerp(delta.tensor(name), 0.25))


def test_the_base_may_already_have_the_initial_head(deltas, base, start):
    assert bits(uniform(deltas, start)) == bits(uniform(deltas, base))


def test_float_buffers_are_averaged_and_counters_are_not(cook, base):
    def steps(count):
        def change(model):
            for step in range(count):
                model.norm(torch.full((2, 16), float(step)))

        return change

    one, two = cook(change=steps(2)), cook(change=steps(5))
    found = uniform([one, two], base)
    assert found["norm.num_batches_tracked"] == 5
    means = [delta.tensor("norm.running_mean") for delta in (one, two)]
    torch.testing.assert_close(found["norm.running_mean"], sum(means) / 2)


def test_integer_buffers_have_to_agree(cook, base):
    def move(model):
        model.index += 1

    moved, still = cook(change=move), cook()
    assert uniform([moved, moved], base)["index"].tolist() == [1, 2, 3, 4]
    with pytest.raises(ValueError, match="different integers in 'index'"):
        uniform([moved, still], base)


def test_a_soup_loads_strictly_and_shares_no_memory_with_the_base(deltas, base):
    before = bits(base)
    for soup in (uniform(deltas, base), wise_ft(deltas[0], base, 0.0)):
        Tiny().load_state_dict(soup)
        for tensor in soup.values():
            tensor.zero_()
    assert bits(base) == before
    uniform(deltas, base)


def test_at_most_one_tensor_per_ingredient_is_in_memory(deltas, base, monkeypatch):
    opened, most, read = [], [], Delta.tensor

    def counted(self, name):
        tensor = read(self, name)
        opened.append(weakref.ref(tensor))
        most.append(sum(reference() is not None for reference in opened))
        return tensor

    monkeypatch.setattr(Delta, "tensor", counted)
    monkeypatch.setattr(Delta, "tensors", None)  # a whole ingredient is never read
    for soup in (uniform, union, per_part_mean):
        soup(deltas, base)
    assert len(most) == 3 * sum(len(delta.names) for delta in deltas)
    assert max(most) <= 2


def near(target):
    """Score by closeness to a model."""
    return lambda tensors: -sum((tensors[name] - target[name]).square().sum().item() for name in target)


def test_greedy_takes_what_helps_and_only_that(deltas, base):
    found, chosen = greedy(deltas, base, near(uniform(deltas[:2], base)))
    assert sorted(chosen) == [0, 1]
    assert bits(found) == bits(uniform(deltas[:2], base))


@pytest.mark.parametrize("seed", range(5))
def test_greedy_is_never_worse_than_the_best_single_one(deltas, base, seed):
    target = torch.randn(16, 16, generator=torch.Generator().manual_seed(seed))
    score = near({"attn.weight": target})
    found, chosen = greedy(deltas, base, score)
    assert score(found) >= max(score(uniform([delta], base)) for delta in deltas)
    assert bits(found) == bits(uniform([deltas[k] for k in chosen], base))
    again, same = greedy(deltas, base, score)
    assert (bits(again), same) == (bits(found), chosen)


def test_greedy_breaks_ties_by_order_and_adds_nothing_for_nothing(deltas, base):
    calls = []
    found, chosen = greedy(deltas, base, lambda tensors: calls.append(1) or 0.5)
    assert chosen == [0]
    assert bits(found) == bits(uniform(deltas[:1], base))
    assert len(calls) == 2 * len(deltas) - 1


def test_greedy_may_score_with_the_very_model_that_the_base_comes_from(deltas, base):
    model, score = Tiny(), near(uniform(deltas[:2], base))

    def overwriting(tensors):
        model.load_state_dict(tensors)
        return score(model.state_dict())

    found, chosen = greedy(deltas, model.state_dict(), overwriting)
    assert (bits(found), chosen) == (bits(uniform(deltas[:2], base)), greedy(deltas, base, score)[1])


def test_greedy_refuses_a_score_that_is_no_number(deltas, base):
    with pytest.raises(ValueError, match=r"ingredients \[0\] has score nan"):
        greedy(deltas, base, lambda tensors: float("nan"))


def test_ingredients_of_another_base_head_or_normalisation_are_refused(cook):
    def other(**info):
        return cook(ATTN, info=INFO | info)

    class_order, normalisation, size = other(classes=["b", "a"]), other(mean=[0.4]), other(image_size=64)
    head = cook(ATTN, head_seed=2)
    foreign = cook(ATTN)
    foreign = replace(foreign, base=foreign.base | {"ffn.bias": "0" * 64})
    renamed = cook(ATTN)
    renamed = replace(renamed, info=renamed.info | {"head": ["head.weight"]})
    first = cook(ATTN)
    check_ingredients([first, cook(FFN)])
    for wrong, message in (
        (class_order, r"has classes \['b', 'a'\]; allowed: that of ingredient 0, \['a', 'b'\]"),
        (normalisation, r"has mean \[0\.4\]; allowed: that of ingredient 0, \[0\.5\]"),
        (size, "has image_size 64; allowed: that of ingredient 0, 32"),
        (head, r"has another initial head: 'head\.weight' differs"),
        (foreign, r"has another base: 'ffn\.bias' differs"),
        (renamed, r"has head \['head\.weight'\]"),
    ):
        with pytest.raises(ValueError, match=rf"ingredient 1 .*{message}"):
            check_ingredients([first, wrong])


@pytest.mark.parametrize("soup", [uniform, union, per_part_mean, lambda d, b: greedy(d, b, len)])
def test_every_soup_checks_its_ingredients_and_base(soup, cook, base):
    with pytest.raises(ValueError, match="at least one ingredient"):
        soup([], base)
    with pytest.raises(ValueError, match="another initial head"):
        soup([cook(ATTN), cook(ATTN, head_seed=2)], base)
    with pytest.raises(ValueError, match=r"'ffn\.bias' has other values"):
        soup([cook(ATTN)], base | {"ffn.bias": torch.zeros(32)})


def test_numbers_out_of_range_are_refused(deltas, base):
    for alpha in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=f"alpha={alpha}; allowed: from 0 to 1"):
            wise_ft(deltas[0], base, alpha)
    with pytest.raises(ValueError, match="scale=inf"):
        union(deltas, base, float("inf"))


def test_a_soups_batch_norms_get_statistics_of_their_own(conv):
    """Two halves of the distance between tuned models are no statistics of the model in the middle."""
    images = torch.rand(24, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    momentum = conv.bn1.momentum
    conv.bn1.running_mean.fill_(100.0)
    recalibrate(conv, [(batch, torch.zeros(8)) for batch in images.split(8)])
    mean = torch.stack([conv.conv_stem(batch).mean((0, 2, 3)) for batch in images.split(8)]).mean(0)
    torch.testing.assert_close(conv.bn1.running_mean, mean, rtol=1e-4, atol=1e-5)
    assert not any(module.training for module in conv.modules())
    assert conv.bn1.momentum == momentum


def test_without_batch_norms_no_image_is_looked_at(vit):
    recalibrate(vit, iter(lambda: pytest.fail("looked"), None))
