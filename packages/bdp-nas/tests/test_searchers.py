"""Searchers: gradients against exact ones, and steps that change what they should and nothing else."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from bdp_nas.searchers import SEARCHERS, get_searcher
from bdp_nas.searchers.darts import SecondOrderDarts, virtual_step
from bdp_nas.searchers.searcher import Searcher
from bdp_nas.spaces import get_space
from bdp_nas.spaces.space import Size, Supernet

SIZE = Size(classes=3, channels=4, cells=1)


class Smooth(Supernet):
    """Two mixtures of three smooth operations on vectors, with a batch norm and, if asked, dropout."""

    def __init__(self, dropout=0.0):
        super().__init__(None, SIZE, {"cell": (("tanh", "sine", "linear"), 2)})
        self.first, self.second = nn.Linear(5, 6), nn.Linear(6, 3)
        self.norm, self.dropout = nn.BatchNorm1d(6), nn.Dropout(dropout)

    def forward(self, x):
        for weights, layer in zip(self.mixture()["cell"], (self.first, self.second)):
            y = layer(x)
            x = weights[0] * y.tanh() + weights[1] * y.sin() + weights[2] * y
            x = self.dropout(self.norm(x)) if layer is self.first else x
        return x

    def genotype(self):
        return str(self.alpha["cell"].argmax(1).tolist())

    def choices(self, genotype):
        raise NotImplementedError


def smooth(dropout=0.0):
    torch.manual_seed(3)
    supernet = Smooth(dropout).double()
    with torch.no_grad():
        supernet.alpha["cell"].normal_()
    return supernet


def vectors(seed, count=16):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 5, generator=generator).double(), torch.arange(count) % 3


def pictures(seed, count=8):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, 8, 8, generator=generator), torch.arange(count) % 3


def sgd(supernet):
    return torch.optim.SGD(supernet.weights(), 0.3, momentum=0.9, weight_decay=0.03)


def prepared(name, space="nasbench201", **options):
    """A searcher with a small supernet and both optimizers, the weights' with momentum in it."""
    torch.manual_seed(0)
    searcher = get_searcher(name)(**options)
    supernet = searcher.supernet(get_space(space), SIZE)
    weights, alphas = sgd(supernet), searcher.alpha_optimizer(supernet)
    searcher.weight_step(supernet, pictures(0), weights)
    return searcher, supernet, weights, alphas


def warmed():
    """A smooth supernet after two steps of the weights, so that there is momentum, and its optimizer."""
    supernet, searcher = smooth(), SecondOrderDarts()
    optimizer = sgd(supernet)
    for seed in (5, 6):
        searcher.weight_step(supernet, vectors(seed), optimizer)
    return supernet, optimizer


def copies(tensors):
    return [tensor.detach().clone() for tensor in tensors]


def unchanged(before, after):
    return all(old.equal(new) for old, new in zip(before, after, strict=True))


# second order


def exact(supernet, optimizer, train, validation):
    """Differentiate L_val(w') through the step of SGD, with momentum and weight decay, by autograd alone."""
    weights = supernet.named_weights()
    loss = F.cross_entropy(supernet(train[0]), train[1])
    gradients = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
    ahead = {
        name: w - 0.3 * (g + 0.03 * w + 0.9 * optimizer.state[w]["momentum_buffer"])
        for (name, w), g in zip(weights.items(), gradients)
    }
    loss = F.cross_entropy(functional_call(supernet, ahead, (validation[0],)), validation[1])
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, supernet.alphas())])


def flat(tensors):
    return torch.cat([tensor.flatten() for tensor in tensors])


def test_the_second_order_gradient_is_that_of_exact_autograd():
    supernet, optimizer = warmed()
    truth = exact(supernet, optimizer, vectors(1), vectors(2))

    def error(radius):
        searcher = SecondOrderDarts(radius=radius)
        found, _ = searcher.alpha_gradients(supernet, vectors(1), vectors(2), optimizer, 0.0)
        return float((flat(found) - truth).norm() / truth.norm())

    assert error(0.01) < 1e-3
    assert error(1e-4) < min(error(0.01), 1e-7)


def test_the_second_order_gradient_is_not_silently_the_first():
    supernet, optimizer = warmed()
    ahead, _ = virtual_step(supernet.weights(), _train_gradients(supernet), optimizer)
    moved = copy.deepcopy(supernet)
    for weight, value in zip(moved.weights(), ahead):
        weight.data = value.detach()
    first, _ = get_searcher("darts")().alpha_gradients(moved, vectors(1), vectors(2), optimizer, 0.0)
    both, _ = SecondOrderDarts().alpha_gradients(supernet, vectors(1), vectors(2), optimizer, 0.0)
    assert (flat(both) - flat(first)).norm() > 0.01 * flat(first).norm()


def _train_gradients(supernet):
    images, targets = vectors(1)
    return torch.autograd.grad(F.cross_entropy(supernet(images), targets), supernet.weights())


def test_the_virtual_step_is_a_real_step_of_sgd():
    supernet, optimizer = warmed()
    gradients = _train_gradients(supernet)
    ahead, rates = virtual_step(supernet.weights(), gradients, optimizer)
    twin = copy.deepcopy(supernet)
    real = sgd(twin)
    real.load_state_dict(optimizer.state_dict())
    for weight, gradient in zip(twin.weights(), gradients):
        weight.grad = gradient
    real.step()
    for virtual, weight in zip(ahead, twin.weights()):
        torch.testing.assert_close(virtual, weight, rtol=1e-12, atol=0)
    assert set(rates) == {0.3}


def test_the_virtual_step_before_the_first_real_one_has_no_momentum():
    supernet = smooth()
    gradients = _train_gradients(supernet)
    ahead, _ = virtual_step(supernet.weights(), gradients, sgd(supernet))
    for virtual, weight, gradient in zip(ahead, supernet.weights(), gradients):
        torch.testing.assert_close(virtual, weight - 0.3 * (gradient + 0.03 * weight))


def test_the_difference_sees_one_and_the_same_dropout():
    supernet = smooth(dropout=0.5)
    searcher, optimizer = SecondOrderDarts(radius=1e-6), sgd(supernet)
    torch.manual_seed(0)
    found, _ = searcher.alpha_gradients(supernet, vectors(1), vectors(2), optimizer, 0.0)
    again, _ = searcher.alpha_gradients(supernet, vectors(1), vectors(2), optimizer, 0.0)
    assert unchanged(found, again)
    assert flat(found).norm() < 100  # with two masks the difference, divided by 2e-6, is of the order of 1e4


@pytest.mark.parametrize("make", [torch.optim.Adam, lambda w: torch.optim.SGD(w, 0.1, 0.9, nesterov=True)])
def test_only_plain_sgd_is_unrolled(make):
    supernet = smooth()
    with pytest.raises(ValueError, match="cannot be unrolled; allowed: plain SGD over all weights"):
        SecondOrderDarts().alpha_gradients(supernet, vectors(1), vectors(2), make(supernet.weights()), 0.0)
    with pytest.raises(ValueError, match="plain SGD over all weights"):
        virtual_step(supernet.weights(), supernet.weights(), torch.optim.SGD(supernet.weights()[:1], 0.1, 0.9))


# what a step changes


@pytest.mark.parametrize("name", SEARCHERS)
@pytest.mark.parametrize("space", ["nasbench201", "darts"])
def test_a_step_of_the_architecture_changes_nothing_else(name, space):
    searcher, supernet, weights, alphas = prepared(name, space)
    before, buffers, old = copies(supernet.weights()), copies(supernet.buffers()), copies(supernet.alphas())
    momentum = copies(weights.state[weight]["momentum_buffer"] for weight in supernet.weights())
    state = torch.get_rng_state()
    step = searcher.arch_step(supernet, pictures(1), pictures(2), alphas, weights, progress=0.5)
    assert unchanged(before, supernet.weights()) and unchanged(buffers, supernet.buffers())
    assert unchanged(momentum, (weights.state[weight]["momentum_buffer"] for weight in supernet.weights()))
    assert torch.get_rng_state().equal(state)
    assert all(parameter.grad is None for parameter in supernet.parameters())
    assert not any(alpha.equal(value) for alpha, value in zip(supernet.alphas(), old))
    assert step.logits.shape == (8, 3) and not step.logits.requires_grad and not step.loss.requires_grad


@pytest.mark.parametrize("name", SEARCHERS)
def test_a_step_of_the_weights_leaves_the_architecture_bit_for_bit(name):
    searcher, supernet, weights, _ = prepared(name)
    alphas, before = copies(supernet.alphas()), copies(supernet.weights())
    for seed in range(3):
        searcher.weight_step(supernet, pictures(seed), weights)
    assert unchanged(alphas, supernet.alphas())
    assert not unchanged(before, supernet.weights())
    assert all(parameter.grad is None for parameter in supernet.parameters())


def test_gradients_of_the_weights_are_clipped():
    supernet, searcher = smooth(), get_searcher("darts")()
    before = flat(copies(supernet.weights()))
    searcher.weight_step(supernet, vectors(0), torch.optim.SGD(supernet.weights(), 1.0), clip=0.01)
    assert float((flat(copies(supernet.weights())) - before).norm()) == pytest.approx(0.01, rel=1e-3)


def test_the_first_order_gradient_is_that_of_a_plain_backward():
    searcher, supernet, weights, _ = prepared("darts")
    found, step = searcher.alpha_gradients(supernet, pictures(1), pictures(2), weights, 0.0)
    images, targets = pictures(2)
    loss = F.cross_entropy(supernet(images), targets)
    loss.backward()
    assert unchanged(found, [alpha.grad for alpha in supernet.alphas()]) and step.loss.equal(loss)


def test_a_search_lowers_the_validation_loss_by_the_architecture_alone():
    searcher = get_searcher("darts")(learning_rate=0.05)
    supernet = smooth()
    weights, alphas = sgd(supernet), searcher.alpha_optimizer(supernet)
    losses = [searcher.arch_step(supernet, vectors(1), vectors(2), alphas, weights).loss for _ in range(20)]
    assert losses[-1] < losses[0]


def test_the_decay_of_alpha_is_coupled_and_an_option():
    supernet = smooth()
    optimizer = get_searcher("darts")(weight_decay=0.1).alpha_optimizer(supernet)
    assert type(optimizer) is torch.optim.Adam
    assert not optimizer.param_groups[0]["decoupled_weight_decay"]
    assert optimizer.param_groups[0]["betas"] == (0.5, 0.999)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1]
    assert get_searcher("darts")().alpha_optimizer(supernet).defaults["weight_decay"] == 1e-3


@pytest.mark.parametrize("name", ["darts", "darts-2"])
def test_every_gradient_is_averaged_over_processes(name):
    """Two processes with different batches, played by two copies that wait for each other, stay equal."""
    supernet = smooth()
    recorded, replies = [], []

    def record(tensors):
        recorded.append(copies(tensors))

    def reply(tensors):
        for tensor, value in zip(tensors, replies.pop(0)):
            tensor.copy_(value)

    optimizer = sgd(supernet)
    alone, _ = get_searcher(name)(average=record).alpha_gradients(supernet, vectors(1), vectors(2), optimizer, 0.0)
    replies = list(recorded)
    other, _ = get_searcher(name)(average=reply).alpha_gradients(supernet, vectors(7), vectors(8), optimizer, 0.0)
    assert not replies and unchanged(alone, other)


@pytest.mark.parametrize("name", SEARCHERS)
def test_the_same_seed_searches_the_same(name):
    def search():
        searcher, supernet, weights, alphas = prepared(name)
        for seed in range(3):
            searcher.arch_step(supernet, pictures(seed), pictures(10 + seed), alphas, weights, progress=seed / 3)
            searcher.weight_step(supernet, pictures(seed), weights)
        return copies(supernet.parameters())

    assert unchanged(search(), search())


@pytest.mark.parametrize(("name", "forward", "backward"), [("darts", 1, 1), ("darts-2", 4, 4), ("random", 1, 0)])
def test_the_stated_cost_of_a_step_is_what_it_runs(name, forward, backward, monkeypatch):
    searcher, supernet, weights, alphas = prepared(name)
    counts = {"forward": 0, "backward": 0}
    gradients = Searcher.gradients

    def counted(self, *args):
        counts["backward"] += 1
        return gradients(self, *args)

    monkeypatch.setattr(Searcher, "gradients", counted)
    supernet.register_forward_hook(lambda *_: counts.update(forward=counts["forward"] + 1))
    searcher.arch_step(supernet, pictures(1), pictures(2), alphas, weights)
    assert counts == {"forward": forward, "backward": backward}
    assert (searcher.forward_passes, searcher.backward_passes) == (forward, backward)


# the others


def test_the_gradient_of_beta_decay_is_the_mixture_itself():
    searcher, supernet, weights, _ = prepared("beta-darts", "darts", strength=50.0)
    plain, _ = get_searcher("darts")().alpha_gradients(supernet, pictures(1), pictures(2), weights, 0.0)
    decayed, _ = searcher.alpha_gradients(supernet, pictures(1), pictures(2), weights, 0.4)
    edges = sum(len(alpha) for alpha in supernet.alphas())
    for gradient, without, mixture in zip(decayed, plain, supernet.mixture().values()):
        torch.testing.assert_close(gradient - without, 50 * 0.4 * mixture.detach() / edges, rtol=1e-4, atol=1e-6)
    assert unchanged(searcher.alpha_gradients(supernet, pictures(1), pictures(2), weights, 0.0)[0], plain)


def test_pc_darts_waits_until_the_weights_are_warm():
    searcher = get_searcher("pc-darts")()
    assert [searcher.active(epoch / 50) for epoch in (0, 14, 15, 49)] == [False, False, True, True]
    supernet = searcher.supernet(get_space("nasbench201"), SIZE)
    assert supernet.partial == 4 and len(supernet.alphas()) == 2
    assert searcher.alpha_optimizer(supernet).defaults["lr"] == 6e-4


def test_random_search_draws_all_architectures_alike():
    searcher, supernet, *_ = prepared("random", "macro")
    drawn = [searcher.draw(supernet) for _ in range(600)]
    for block in range(3):
        counts = [sum(genotype[block] == digit for genotype in drawn) for digit in "012"]
        assert min(counts) > 150  # 200 expected, with a deviation of 12


def test_random_search_trains_the_drawn_architecture_alone():
    searcher, supernet, weights, alphas = prepared("random")
    searcher.arch_step(supernet, pictures(0), pictures(1), alphas, weights)
    assert set(supernet.mixture()["cell"].unique().tolist()) == {0.0, 1.0}


def test_random_search_selects_the_most_accurate_of_its_samples():
    searcher, supernet, *_ = prepared("random", samples=12)
    batches, state = [pictures(3), pictures(4)], searcher.state_dict()
    buffers = copies(supernet.buffers())
    chosen = searcher.select(supernet, iter(batches))
    assert unchanged(buffers, supernet.buffers()) and supernet.genotype() == chosen
    searcher.load_state_dict(state)
    accuracies = {(g := searcher.draw(supernet)): searcher.accuracy(supernet, g, batches) for _ in range(12)}
    assert accuracies[chosen] == max(accuracies.values()) > min(accuracies.values())
    assert prepared("random", samples=1)[0].select(supernet, iter(())) == next(iter(accuracies))


def test_random_search_continues_where_it_stopped():
    searcher, supernet, *_ = prepared("random")
    searcher.draw(supernet)
    state = searcher.state_dict()
    expected = [searcher.draw(supernet) for _ in range(3)]
    resumed = get_searcher("random")(seed=9)
    resumed.load_state_dict(state)
    assert [resumed.draw(supernet) for _ in range(3)] == expected


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("darts", {"learning_rate": 0.0}, "learning_rate=0.0 is not possible; allowed: above 0"),
        ("darts", {"weight_decay": -1.0}, "weight_decay=-1.0 is not possible"),
        ("darts-2", {"radius": 0.0}, "radius=0.0 is not possible"),
        ("pc-darts", {"partial": 1}, "partial=1 is not possible; allowed: 2 or more"),
        ("pc-darts", {"warm_up": 1.0}, "warm_up=1.0 is not possible"),
        ("beta-darts", {"strength": -1.0}, "strength=-1.0 is not possible"),
        ("random", {"samples": 0}, "samples=0 is not possible"),
        ("sgd", {}, "searcher 'sgd' is unknown; allowed: darts, darts-2"),
    ],
)
def test_bad_options_are_one_line(name, options, message):
    with pytest.raises(ValueError, match=message) as error:
        get_searcher(name)(**options)
    assert "\n" not in str(error.value)


def test_the_state_of_another_searcher_is_refused():
    with pytest.raises(ValueError, match="allowed: an empty one"):
        get_searcher("darts")().load_state_dict(get_searcher("random")().state_dict())
    with pytest.raises(ValueError, match="is not of random search"):
        get_searcher("random")().load_state_dict({})
