"""Bi-level data pruning in anyone's differentiable architecture search (Bi-level Data Pruning, arXiv 2312.14200).

Two disjoint sets of samples, one for the weights and one for the architecture, shrink while the search runs: at the end
of an epoch each level keeps the samples with the best scores of prediction dynamics (:mod:`bdp_nas.dynamics`), as many
as its schedule says (:mod:`bdp_nas.schedule`), under a class-balance constraint (:mod:`bdp_nas.balance`).
A first-order DARTS loop needs the five marked lines, of which the second replaces ``zip(train_queue, valid_queue)``::

    pruner = BilevelPruner(data, labels, train, valid, make_loader, schedule=KeepSchedule(epochs))  # +
    for epoch in range(epochs):
        for (i, (x, y)), (i_valid, (x_valid, y_valid)) in pruner.batches():  # +
            logits = model(x_valid)
            pruner.observe("architecture", i_valid, logits, y_valid)  # +
            (gradient,) = torch.autograd.grad(F.cross_entropy(logits, y_valid), [alphas])
            alphas.grad = gradient
            alphas_optimizer.step()

            logits = model(x)
            pruner.observe("weights", i, logits, y)  # +
            weights_optimizer.zero_grad()
            F.cross_entropy(logits, y).backward()
            weights_optimizer.step()
        scheduler.step()  # per epoch: pruning makes epochs shorter
        pruner.step()  # +

with what that loop has anyway: ``train`` and ``valid``, indices into the data set ``data`` with ``labels``, and its
loader as a function, ``make_loader = lambda subset: DataLoader(subset, batch_size=64, shuffle=True)``.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain, islice, repeat
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from bdp_nas.balance import balanced_top, class_bounds
from bdp_nas.dynamics import SCORES, Dynamics, check_range
from bdp_nas.processes import of_first
from bdp_nas.schedule import KeepSchedule

Array = NDArray[Any]

LEVELS = ("weights", "architecture")
DIRECTION = {"weights": "high", "architecture": "both_tails"}
TAIL = 0.2  # share of the low end in both_tails

DIRECTIONS: dict[str, Callable[[Array, int], Array]] = {
    "high": lambda place, size: place,
    "low": lambda place, size: size - 1 - place,
    "mid": lambda place, size: abs(place - (size - 1) / 2),
    # the n smallest keys are the 0.8 n highest and the 0.2 n lowest scores, for every n
    "both_tails": lambda place, size: np.minimum((place + 1) / (1 - TAIL), (size - place) / TAIL),
}
"""Which scores a level keeps: from a sample's place in the falling order of ``size`` scores to a key, small = kept."""


def preference(scores: Array, direction: str) -> Array:
    """Return the key of each sample, ``(M,)``: the smaller, the sooner it is kept.

    Args:
        scores: ``(M,)``; equal ones keep their order. NaN, unseen, comes first: nothing speaks against the sample yet.
        direction: name of one of :data:`DIRECTIONS`.
    """
    seen = int((~np.isnan(scores)).sum())
    keys = np.full(len(scores), -1.0)
    order = np.argsort(-scores, kind="stable")[:seen]  # NaN is sorted to the end
    keys[order] = DIRECTIONS[direction](np.arange(seen), seen)
    return keys


class IndexedSubset(Dataset[tuple[int, Any]]):
    """The samples of a data set at ``indices``, each with its index: ``(index, sample)``."""

    def __init__(self, data: Dataset[Any], indices: Iterable[int]) -> None:
        self.data, self.indices = data, list(indices)

    def __getitem__(self, place: int) -> tuple[int, Any]:
        index = self.indices[place]
        return index, self.data[index]

    def __len__(self) -> int:
        return len(self.indices)


class BilevelPruner:
    """Prunes the samples of both levels while a search runs.

    It draws nothing from the global random generators and leaves the order of samples alone: with ``final=1`` a search
    has the same bits as without it. In a process group all processes keep the same sets, whoever observed what.

    Args:
        data: yields a sample for an index.
        labels: ``(N,)``, the class of every sample of ``data``, integers from 0.
        weights: indices of the samples that train the weights.
        architecture: indices of the samples that train the architecture, others.
        make_loader: makes the loader of a data set; called at the beginning of every epoch for each level. On N
            processes it shares the samples out, with a ``DistributedSampler`` or ``accelerator.prepare``.
        schedule: keep ratio of both levels, or of each by name. Only what is kept by the larger level saves time.
        direction: the scores that are kept, one of :data:`DIRECTIONS` for both levels or each by name. As a default the
            architecture also sees some samples with low scores: many are easy, and all would be gone otherwise.
        score: see :data:`bdp_nas.dynamics.SCORES`.
        window: epochs that a score looks back.
        tau: τ of the class balance; 0 keeps the classes' shares, infinity does not balance.
        min_per_class: samples that every class keeps at each level.
        recycle: share of the pruned samples, chosen at random, that come back whenever others are pruned; the number
            kept stays the same.
        seed: of ``recycle`` and of the score ``random``.

    Raises:
        ValueError: indices, labels or options that are not possible, among them keep ratios that leave a class without
            its floor or a loader without a batch.
    """

    def __init__(
        self,
        data: Dataset[Any],
        labels: ArrayLike,
        weights: ArrayLike,
        architecture: ArrayLike,
        make_loader: Callable[[IndexedSubset], DataLoader[Any]],
        *,
        schedule: KeepSchedule | Mapping[str, KeepSchedule],
        direction: str | Mapping[str, str] = DIRECTION,
        score: str = "std",
        window: int = 5,
        tau: float = 0.1,
        min_per_class: int = 1,
        recycle: float = 0.0,
        seed: int = 0,
    ) -> None:
        if not 0 <= recycle <= 1:
            raise ValueError(f"recycle={recycle!r} is not possible; allowed: 0 to 1")
        self.data, self.make_loader = data, make_loader
        self.tau, self.min_per_class, self.recycle, self.seed = tau, min_per_class, recycle, seed
        self.schedules = _by_level("schedule", schedule)
        self.directions = _by_level("direction", direction)
        for name in self.directions.values():
            if name not in DIRECTIONS:
                raise ValueError(f"direction={name!r} is unknown; allowed: {', '.join(DIRECTIONS)}")
        known = _checked_labels(torch.as_tensor(labels))
        given = dict(zip(LEVELS, (weights, architecture)))
        self.sets = {level: torch.as_tensor(indices).to(torch.int64, copy=True) for level, indices in given.items()}
        self._member = _members(self.sets, len(known))
        self._labels = {level: known[indices].numpy() for level, indices in self.sets.items()}
        self.dynamics = Dynamics(len(known), score=score, window=window, seed=seed)
        self._keeps = {level: torch.ones(len(indices), dtype=torch.bool) for level, indices in self.sets.items()}
        for level in LEVELS:
            self._check_end(level)

    @property
    def epoch(self) -> int:
        """The current epoch, from 0."""
        return self.dynamics.epoch

    @property
    def kept(self) -> dict[str, Tensor]:
        """The indices that each level uses in the current epoch, in the order in which they were given."""
        return {level: indices[self._keeps[level]] for level, indices in self.sets.items()}

    def relative_cost(self) -> float:
        """Return the planned number of samples ÷ that without pruning: known before the run."""
        epochs = range(max(schedule.epochs for schedule in self.schedules.values()))
        longest = [max(self._count(level, epoch) for level in LEVELS) for epoch in epochs]
        return sum(longest) / (len(epochs) * max(map(len, self.sets.values())))

    def loaders(self) -> tuple[DataLoader[Any], DataLoader[Any]]:
        """Return the epoch's loaders of the weights and of the architecture; batches are ``(indices, samples)``."""
        weights, architecture = (
            self.make_loader(IndexedSubset(self.data, self.kept[level].tolist())) for level in LEVELS
        )
        return weights, architecture

    def batches(self) -> Iterator[tuple[Any, Any]]:
        """Return the epoch's steps: a batch of the weights and one of the architecture each.

        There are as many as the longer loader has; the shorter one begins anew. With equal lengths it is
        ``zip(*loaders())``.
        """
        loaders = self.loaders()
        weights, architecture = (chain(iter(loader), chain.from_iterable(repeat(loader))) for loader in loaders)
        return islice(zip(weights, architecture), max(map(len, loaders)))

    def observe(self, level: str, indices: Tensor, logits: Tensor, targets: Tensor) -> None:
        """Record what the supernet answered to a batch of a level, in the very pass that trains it.

        Args:
            level: ``weights`` or ``architecture``.
            indices: ``(B,)``, as the loader gave them.
            logits: ``(B, C)``.
            targets: ``(B,)``.

        Raises:
            ValueError: an unknown level, samples that are not of this level, labels out of range.
        """
        if level not in LEVELS:
            raise ValueError(f"level={level!r} is unknown; allowed: {', '.join(LEVELS)}")
        indices = indices.cpu()
        check_range("index", indices, len(self._member))
        strange = indices[self._member[indices] != LEVELS.index(level)]
        if len(strange):
            raise ValueError(
                f"sample {strange[0].item()} is not of level {level!r}; allowed: samples of its own loader"
            )
        self.dynamics.observe(indices, logits, targets)

    def step(self) -> dict[str, int]:
        """End the epoch: prune. On N processes, all have to call it.

        Returns:
            How many samples each level keeps from now on.

        Raises:
            RuntimeError: a level is to be pruned, and has not been observed in enough epochs.
        """
        self.dynamics.end_epoch()
        scores = self.dynamics.scores().numpy()
        for level in LEVELS:
            if self._count(level, self.epoch) < int(self._keeps[level].sum()):
                self._keeps[level] = of_first(self._prune(level, scores[self.sets[level].numpy()]))
        return {level: int(keeps.sum()) for level, keeps in self._keeps.items()}

    def state_dict(self) -> dict[str, Tensor]:
        """Return everything that changes, as tensors: dynamics, epoch, kept sets; and the two sets, to compare.

        It is the same on all processes between epochs; within one, each has observations of its own to save.
        """
        kept = {f"kept_{level}": keeps.clone() for level, keeps in self._keeps.items()}
        sets = {f"set_{level}": indices.clone() for level, indices in self.sets.items()}
        return self.dynamics.state_dict() | kept | sets

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on where a :meth:`state_dict` was taken, in mid-epoch or between epochs.

        Raises:
            ValueError: it is of other sets of samples, which would leak from one level to the other.
        """
        for level, indices in self.sets.items():
            if not torch.equal(state[f"set_{level}"], indices):
                raise ValueError(
                    f"the state's {level} set is not this pruner's; allowed: the same indices in the same order"
                )
        self.dynamics.load_state_dict(state)
        self._keeps = {level: state[f"kept_{level}"].clone() for level in LEVELS}

    def _count(self, level: str, epoch: int) -> int:
        return self.schedules[level].count(epoch, len(self.sets[level]))

    def _bounds(self, level: str, ratio: float) -> tuple[Array, Array]:
        return class_bounds(np.bincount(self._labels[level]), ratio, tau=self.tau, least=self.min_per_class)

    def _check_end(self, level: str) -> None:
        """Refuse a last set, the smallest, that is not possible; then all before it are."""
        schedule, indices = self.schedules[level], self.sets[level]
        ratio, count = schedule.ratio(schedule.epochs), self._count(level, schedule.epochs)
        absent = np.setdiff1d(np.concatenate(list(self._labels.values())), self._labels[level])
        if len(absent):
            raise ValueError(f"level {level!r}: class {absent[0]} has 0 samples; allowed: some at both levels")
        try:
            self._bounds(level, ratio)
        except ValueError as error:
            raise ValueError(f"level {level!r}: {error}") from None
        if not count or not len(self.make_loader(IndexedSubset(self.data, indices[:count].tolist()))):
            raise ValueError(
                f"level {level!r}: keep={ratio!r} leaves {count} samples, less than one batch; allowed: more"
            )

    def _prune(self, level: str, scores: Array) -> Tensor:
        """Return which samples of the level's set stay, given the scores of all of it."""
        keeps = self._keeps[level].numpy()
        if np.isnan(scores[keeps]).all():
            needed = SCORES[self.dynamics.score].epochs
            raise RuntimeError(
                f"level {level!r} has no scores to prune by before epoch {self.epoch}; "
                f"allowed: observe() in at least {needed} epochs, or a longer warm-up"
            )
        recycled = self._recycled(level, np.flatnonzero(~keeps))
        candidates = np.union1d(np.flatnonzero(keeps), recycled)
        keys = preference(scores[candidates], self.directions[level])
        keys[np.isin(candidates, recycled)] = -1  # as if unseen: their scores are old
        bounds = self._bounds(level, self.schedules[level].ratio(self.epoch))
        chosen = balanced_top(keys, self._labels[level][candidates], self._count(level, self.epoch), *bounds)
        stays = torch.zeros(len(keeps), dtype=torch.bool)
        stays[candidates[chosen]] = True
        return stays

    def _recycled(self, level: str, pruned: Array) -> Array:
        # drawn from the epoch, not from a stream, so that nothing has to be kept for a resume
        generator = np.random.default_rng([self.seed, LEVELS.index(level), self.epoch])
        return generator.choice(pruned, round(self.recycle * len(pruned)), replace=False)


def _by_level(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return dict.fromkeys(LEVELS, value)
    if set(value) != set(LEVELS):
        raise ValueError(f"{name} is given for {sorted(value)}; allowed: {', '.join(LEVELS)}, or one for both")
    return dict(value)


def _members(sets: Mapping[str, Tensor], size: int) -> Tensor:
    """Return the number of the level that each of ``size`` samples belongs to, −1 for none."""
    both = torch.cat(list(sets.values()))
    check_range("index", both, size)
    found, counts = both.unique(return_counts=True)
    if len(found) < len(both):
        raise ValueError(
            f"sample {found[counts > 1][0].item()} is there twice; allowed: disjoint sets, each sample once"
        )
    member = torch.full((size,), -1)
    for number, level in enumerate(LEVELS):
        member[sets[level]] = number
    return member


def _checked_labels(labels: Tensor) -> Tensor:
    if labels.ndim != 1 or labels.is_floating_point():
        raise ValueError(f"labels have shape {tuple(labels.shape)} and {labels.dtype}; allowed: (N,), integers")
    if (labels < 0).any():
        raise ValueError(f"label {labels.min().item()} is out of range; allowed: 0 or more")
    return labels
