"""Soups: one model from several fine-tunings of one base, in weight space.

With base θ₀ and ingredients θ_k = θ₀ + δ_k, where δ_k is 0 in every tensor that ingredient k did not tune, all soups
are one linear combination per tensor; over the n of K ingredients that tuned it::

    (1 − c·n)·θ₀ + c·Σ θ_k

- ``uniform``        c = 1/K: the mean of the models. A part that one of K tuned is shrunk by 1/K toward the base.
- ``union``          c = λ:   θ₀ + λ·Σ δ_k, task arithmetic. Disjoint parts with λ = 1 keep their full change. In the
                     head, which every ingredient tunes, c = λ/n: the sum would turn it K times as far.
- ``per_part_mean``  c = 1/n: the mean over those that tuned it.
- ``wise_ft``        c = α:   the line from the base to one model.
- ``greedy``         uniform over a subset that is chosen by a score.

They differ strongly when different parts were tuned: always report which one it is.

Tensors are streamed: at any time at most two tensors of ingredients are in memory, summed in float64. Ingredients are
summed in the order of their hashes, so that their order never changes a bit; combined, identical float32 (or narrower)
ingredients give themselves. Integer tensors are not averaged: the ingredients must agree (batch norm's counter of steps
is the highest). Averaged batch norm statistics are not those of the soup: :func:`recalibrate` them.

``base`` is everywhere the pretrained state dict, with whatever head: θ₀ has the initial head of the ingredients.
Source: arXiv 2203.05482 (model soups), 2212.04089 (task arithmetic), 2109.01903 (WiSE-FT); that partially tuned models
make good ingredients is a claim of arXiv 2312.15681, the arithmetic on parts a reconstruction.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from functools import reduce

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from partial_finetune.deltas import Delta, start_of
from partial_finetune.prediction import Batches

Weight = Callable[[str, int], Fraction]
"""c, given a tensor's name and n; a fraction, because 1 − c·n has to be exactly 0 where the base has no share."""

COUNTER = "num_batches_tracked"
SAME = ("model", "classes", "mean", "std", "image_size")


def uniform(deltas: Sequence[Delta], base: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return θ₀ + (1/K)·Σ δ_k, the mean of the models (model soups, "uniform").

    Args:
        deltas: K ≥ 1 ingredients.
        base: the pretrained state dict.

    Returns:
        The soup's state dict, in memory of its own; so do all soups.

    Raises:
        ValueError: ingredients that do not go together (see :func:`check_ingredients`), or another base.
        OSError: an ingredient cannot be read; so do all soups.
    """
    return _combine(deltas, _start(deltas, base), lambda _, n: Fraction(1, len(deltas)))


def union(deltas: Sequence[Delta], base: Mapping[str, Tensor], scale: float = 1.0) -> dict[str, Tensor]:
    """Return θ₀ + λ·Σ δ_k (task arithmetic), in the head the mean; with λ = 1, disjoint parts are as they were tuned.

    Args:
        deltas: K ≥ 1 ingredients.
        base: the pretrained state dict.
        scale: λ, finite.

    Raises:
        ValueError: as in :func:`uniform`, or λ is not finite.
    """
    if not math.isfinite(scale):
        raise ValueError(f"scale={scale}; allowed: a finite number")
    start, head = _start(deltas, base), set(deltas[0].head)
    return _combine(deltas, start, lambda name, n: Fraction(scale) / (n if name in head else 1))


def per_part_mean(deltas: Sequence[Delta], base: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return, for every tensor, the mean over the ingredients that tuned it.

    Args:
        deltas: K ≥ 1 ingredients.
        base: the pretrained state dict.

    Raises:
        ValueError: as in :func:`uniform`.
    """
    return _combine(deltas, _start(deltas, base), lambda _, n: Fraction(1, n))


def wise_ft(delta: Delta, base: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """Return (1 − α)·θ₀ + α·θ₁ (WiSE-FT); α = 0 and 1 give the two ends to the bit.

    Args:
        delta: the fine-tuned model θ₁.
        base: the pretrained state dict; the line starts from the initial head.
        alpha: α in [0, 1].

    Raises:
        ValueError: as in :func:`uniform`, or α is outside.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha={alpha}; allowed: from 0 to 1")
    return union([delta], base, alpha)


def greedy(
    deltas: Sequence[Delta], base: Mapping[str, Tensor], score: Callable[[dict[str, Tensor]], float]
) -> tuple[dict[str, Tensor], list[int]]:
    """Return the greedy soup (model soups, its public code) and the numbers of its ingredients, as they were added.

    The ingredients are tried from the best to the worst, ties in their order; each stays if the uniform soup with it
    scores higher than without. So the soup never scores below the best ingredient, on the set that ``score`` uses:
    that has to be held out from training, and must not be the test set.

    Args:
        deltas: K ≥ 1 ingredients.
        base: the pretrained state dict.
        score: of a state dict, higher is better; called 2K − 1 times.

    Raises:
        ValueError: as in :func:`uniform`, or a score is NaN.
    """
    start = _start(deltas, base)

    def soup(chosen: list[int]) -> dict[str, Tensor]:
        return _combine([deltas[k] for k in chosen], start, lambda _, n: Fraction(1, len(chosen)))

    def scored(chosen: list[int]) -> float:
        found = score(soup(chosen))
        if math.isnan(found):
            raise ValueError(f"the soup of ingredients {chosen} has score {found}; allowed: a number")
        return found

    alone = [scored([k]) for k in range(len(deltas))]
    first, *others = sorted(range(len(deltas)), key=lambda k: -alone[k])
    chosen, best = [first], alone[first]
    for k in others:
        if (found := scored([*chosen, k])) > best:
            chosen, best = [*chosen, k], found
    return soup(chosen), chosen


@torch.no_grad()
def recalibrate(model: nn.Module, batches: Batches) -> None:
    """Measure the statistics of every batch norm anew: the mean of several models' is not that of their soup.

    Args:
        model: holds the soup; afterwards in eval mode.
        batches: of training images, prepared as for evaluation; not looked at if there is no batch norm.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over all batches
        norm.train()
    weight = next(model.parameters())
    for images, _ in batches:
        model(images.to(weight))
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum
    model.eval()


def check_ingredients(deltas: Sequence[Delta]) -> None:
    """Raise ``ValueError`` unless the ingredients share base, initial head, labels and normalisation.

    The message names the first ingredient that does not go with ingredient 0, and in what.
    """
    if not deltas:
        raise ValueError("deltas=[]; allowed: at least one ingredient")
    first = deltas[0]
    for number, delta in enumerate(deltas):
        who = f"ingredient {number} ({str(delta.path)!r})"
        if delta.head != first.head:
            raise ValueError(f"{who} has head {list(delta.head)}; allowed: that of ingredient 0, {list(first.head)}")
        if name := next((name for name in [*first.base, *delta.base] if _differ(name, first, delta)), None):
            what = "initial head" if name in first.head else "base"
            raise ValueError(f"{who} has another {what}: {name!r} differs; allowed: that of ingredient 0")
        for key in SAME:
            if delta.info[key] != first.info[key]:
                raise ValueError(
                    f"{who} has {key} {delta.info[key]!r}; allowed: that of ingredient 0, {first.info[key]!r}"
                )


def _differ(name: str, one: Delta, other: Delta) -> bool:
    return one.base.get(name) != other.base.get(name)


def _start(deltas: Sequence[Delta], base: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return θ₀, checked."""
    check_ingredients(deltas)
    return start_of(deltas[0], base)


def _combine(deltas: Sequence[Delta], start: Mapping[str, Tensor], weight: Weight) -> dict[str, Tensor]:
    ordered = sorted(deltas, key=lambda delta: delta.digest)
    return {name: _combined(name, tensor, ordered, weight) for name, tensor in start.items()}


def _combined(name: str, start: Tensor, deltas: Sequence[Delta], weight: Weight) -> Tensor:
    """Return (1 − c·n)·θ₀ + c·Σ θ_k of one tensor."""
    tuners = [delta for delta in deltas if name in delta.names]
    c = weight(name, len(tuners)) if tuners else Fraction(0)
    if c == 0:
        return start.clone()
    if not start.is_floating_point():
        return _agreed(name, start, deltas)
    rest = 1 - c * len(tuners)
    total = float(c) * reduce(torch.add, (delta.tensor(name).double() for delta in tuners))
    if rest:  # not 0·θ₀, which would turn −0 into 0
        total += float(rest) * start.double()
    return total.to(start.dtype)


def _agreed(name: str, start: Tensor, deltas: Sequence[Delta]) -> Tensor:
    """Return what all ingredients have in a tensor that cannot be averaged."""
    values = (delta.tensor(name) if name in delta.names else start for delta in deltas)
    if name.rpartition(".")[2] == COUNTER:
        return reduce(torch.maximum, values).clone()
    found = next(values)
    if not all(torch.equal(found, value) for value in values):
        raise ValueError(f"the ingredients have different integers in {name!r}; allowed: the same, they have no mean")
    return found.clone()
