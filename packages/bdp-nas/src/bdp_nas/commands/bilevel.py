"""A bi-level search on ever fewer samples, epoch by epoch.

    for every epoch:
        for (weights' batch, architecture's batch) in what both levels keep:
            α ← α − η ∇_α L(architecture's batch)
            w ← w − ξ ∇_w L(weights' batch)
        prune both levels by what the supernet answered

What is random follows from the seed and the epoch, so that a search that was killed finds the same, bit for bit.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from time import perf_counter
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader

from bdp_nas.blueprint import Blueprint
from bdp_nas.commands.data import Images
from bdp_nas.commands.loading import Augmented, loader_of
from bdp_nas.commands.options import SearchConfig
from bdp_nas.dynamics import SCORES
from bdp_nas.infobatch import InfoBatchPruner
from bdp_nas.ledger import Cost, CostLedger, flops_per_sample
from bdp_nas.processes import average, divide
from bdp_nas.pruner import LEVELS, BilevelPruner, IndexedSubset
from bdp_nas.schedule import KeepSchedule
from bdp_nas.searchers import get_searcher
from bdp_nas.searchers.searcher import Batch, Searcher, Step
from bdp_nas.spaces import get_space
from frugal_shared.errors import UsageError
from frugal_shared.labelled import in_proportion
from frugal_shared.seeds import derived_seed
from frugal_shared.training import Resumable

MOMENTUM = 0.9
INIT, DATA, SPLIT, ORDER = 10, 11, 12, 13  # streams of random numbers
OPTIONS = ("space", "searcher", "pruning", "data", "channels", "cells", "epochs")
"""What a checkpoint must share with the search that goes on from it."""

IndexedBatch = tuple[Tensor, Batch]


@dataclass(frozen=True)
class Found:
    """What a search came to, and what it cost on all processes together.

    Args:
        genotype: the architecture.
        samples: drawn from the loader of each level, repetitions included.
        forward: passes of a batch through the supernet.
        backward: passes of a batch back through it.
        seconds: of wall-clock time, without checkpoints.
        flops: floating-point operations, an estimate.
        costs: the ledger: of each level, ``pruning`` and ``selection``: samples, forward, backward, seconds, flops.
        history: of each epoch: ``epoch``, ``genotype`` after it, ``mixture`` (softmax(α) of each kind of cell, edges ×
            operations), ``kept`` and ``classes`` (samples of each level, in all and by class, that it used), ``loss``
            and ``accuracy`` of the weights' batches, ``val_loss`` and ``val_accuracy`` of the architecture's.
        kept: indices into the training images that each level used in the end, ascending.
        collapsed: whether more of the operations do nothing than ``skip_limit`` allows.
    """

    genotype: str
    samples: dict[str, int]
    forward: float
    backward: float
    seconds: float
    flops: float
    costs: dict[str, dict[str, float]]
    history: list[dict[str, Any]]
    kept: dict[str, list[int]]
    collapsed: bool


class Search(Resumable):
    """One search.

    Args:
        accelerator: the run's.
        config: the search.
        images: to search on.
        seed: of everything random.

    Raises:
        ValueError: options that do not go together, or with the images.
    """

    def __init__(self, accelerator: Accelerator, config: SearchConfig, images: Images, seed: int) -> None:
        super().__init__(accelerator)
        self.config, self.seed = config, seed
        self.blueprint = Blueprint.of(images, config.space, "", config.channels, config.cells)
        self.images = images.to(accelerator.device)
        self.searcher = make_searcher(config, seed)
        self.searcher.average = average
        torch.manual_seed(derived_seed(seed, INIT))
        self.supernet = self.searcher.supernet(get_space(config.space), self.blueprint.size).to(accelerator.device)
        divide(self.supernet, max(1, config.parts // accelerator.num_processes))
        self.weights = torch.optim.SGD(
            self.supernet.weights(), config.learning_rate, MOMENTUM, weight_decay=config.weight_decay
        )
        self.alphas = self.searcher.alpha_optimizer(self.supernet)
        self.seconds = 0.0
        self.history: list[dict[str, Any]] = []
        self.pruner = self.make_pruner()
        image = torch.zeros(1, *self.blueprint.image, device=accelerator.device)
        self.ledger = CostLedger(flops=flops_per_sample(self.supernet, image), device=accelerator.device)

    def active(self, epoch: int) -> bool:
        """Return whether the architecture learns in this epoch; if not, its level rests."""
        return self.searcher.active(epoch / self.config.epochs)

    def make_pruner(self) -> BilevelPruner:
        """Return the pruner of the two halves of the images, which have the classes in equal shares."""
        config, labels = self.config, self.images.labels.cpu()
        weights = in_proportion(labels, len(labels) // 2, derived_seed(self.seed, SPLIT))
        architecture = sorted(set(range(len(labels))).difference(weights))
        sets = self.images, labels, weights, architecture, self.make_loader
        if config.pruning == "infobatch":
            return InfoBatchPruner(*sets, epochs=config.epochs, seed=self.seed)
        return BilevelPruner(
            *sets,
            schedule=self.schedules(),
            direction={"weights": config.weights_direction, "architecture": config.architecture_direction},
            score="random" if config.pruning == "random" else config.score,
            window=config.window,
            tau=config.tau,
            min_per_class=config.min_per_class,
            recycle=config.recycle,
            seed=self.seed,
        )

    def schedules(self) -> dict[str, KeepSchedule]:
        """Return the keep ratios of both levels."""
        config, epochs = self.config, self.config.epochs
        shape = {"warmup": config.warm_up, "end": config.keep_end, "shape": config.keep_shape}
        pruned = KeepSchedule(epochs, config.keep_final, every=config.keep_every, **shape)
        levels = () if config.pruning == "none" else LEVELS if config.levels == "both" else (config.levels,)
        found = {level: pruned if level in levels else KeepSchedule(epochs, final=1.0) for level in LEVELS}
        if rests := next((epoch for epoch in range(epochs) if self.active(epoch)), epochs):
            start = rests + SCORES[config.score].epochs
            found["architecture"] = Late(**asdict(found["architecture"]), start=start)
        return found

    def planned_cost(self) -> float:
        """Return the planned number of samples ÷ that without pruning; NaN if the losses are to decide."""
        if isinstance(self.pruner, InfoBatchPruner):
            return math.nan
        planned = unpruned = 0
        for epoch in range(self.config.epochs):
            levels = LEVELS if self.active(epoch) else LEVELS[:1]
            sizes = {level: len(self.pruner.sets[level]) for level in levels}
            planned += len(levels) * max(self.pruner.schedules[level].count(epoch, sizes[level]) for level in levels)
            unpruned += len(levels) * max(sizes.values())
        return planned / unpruned

    def make_loader(self, subset: IndexedSubset) -> DataLoader[Any]:
        """Return this process's loader of a level in the current epoch."""
        seed = derived_seed(self.seed, DATA)
        data = Augmented(self.images, *self.blueprint.moments, self.config.augment, seed, self.done)
        # the levels share no sample, so that their first ones tell the two streams apart
        stream = seed, ORDER, self.done, min(subset.indices, default=0)
        return loader_of(data, subset.indices, self.config.batch_size, stream, self.accelerator)

    def advance(self) -> dict[str, float]:
        """Search for one epoch, and prune."""
        start, used, means = perf_counter(), self.pruner.kept, {level: Mean() for level in LEVELS}
        progress = self.done / self.config.epochs
        for group in self.weights.param_groups:
            group["lr"] = cosine(self.config.learning_rate, self.config.final_learning_rate, progress)
        self.supernet.train()
        for drawn in self.batches():
            self.run_step(drawn, progress, means)
        with self.ledger.spend("pruning", samples=0, forward=0, backward=0):
            self.pruner.step()
        self.done += 1
        self.history.append(self.record(used, means))
        self.seconds += perf_counter() - start
        return {name: value for name, value in self.history[-1].items() if isinstance(value, float)}

    def batches(self) -> Iterator[dict[str, IndexedBatch]]:
        """Yield the epoch's steps: a batch of each level that does not rest."""
        if self.active(self.done):
            return (dict(zip(LEVELS, pair)) for pair in self.pruner.batches())
        return ({"weights": batch} for batch in self.pruner.loaders()[0])

    def run_step(self, drawn: dict[str, IndexedBatch], progress: float, means: dict[str, "Mean"]) -> None:
        """Let the architecture learn from its batch, if there is one, then the weights from theirs."""
        batches = {level: self.weighted(*batch) for level, batch in drawn.items()}
        if "architecture" in batches:
            with self.spend("architecture", drawn, self.searcher.forward_passes, self.searcher.backward_passes):
                pair = batches["weights"], batches["architecture"]
                step = self.searcher.arch_step(self.supernet, *pair, self.alphas, self.weights, progress)
                self.observe("architecture", drawn, step, means)
        with self.spend("weights", drawn):
            step = self.searcher.weight_step(self.supernet, batches["weights"], self.weights, self.config.clip_grad)
            self.observe("weights", drawn, step, means)

    def weighted(self, rows: Tensor, batch: Batch) -> Batch:
        """Return the batch of a step; where samples weigh more than others, with weights in place of ones as targets.

        The cross-entropy of w · onehot(y) is w times that of y.
        """
        if not isinstance(self.pruner, InfoBatchPruner):
            return batch
        images, labels = batch
        weights = self.pruner.sample_weights(rows).to(labels.device)
        return images, weights[:, None] * F.one_hot(labels, len(self.images.classes))

    def spend(self, level: str, drawn: dict[str, IndexedBatch], forward: int = 1, backward: int = 1) -> Any:
        """Count a step of all processes."""
        samples = len(drawn[level][0]) * self.accelerator.num_processes
        return self.ledger.spend(level, samples=samples, forward=forward, backward=backward)

    def observe(self, level: str, drawn: dict[str, IndexedBatch], step: Step, means: dict[str, "Mean"]) -> None:
        """Let the pruner and the record see what the supernet answered."""
        rows, (_, labels) = drawn[level]
        self.pruner.observe(level, rows, step.logits, labels)
        means[level].add(step, labels)

    def record(self, used: dict[str, Tensor], means: dict[str, "Mean"]) -> dict[str, Any]:
        """Return what is kept of an epoch, see :class:`Found`."""
        labels, classes = self.images.labels.cpu(), len(self.images.classes)
        (loss, accuracy), (val_loss, val_accuracy) = (means[level].result(self.accelerator) for level in LEVELS)
        return {
            "epoch": self.done,
            "genotype": self.supernet.genotype(),
            "mixture": {name: weights.tolist() for name, weights in self.supernet.mixture().items()},
            "kept": {level: len(rows) for level, rows in used.items()},
            "classes": {level: labels[rows].bincount(minlength=classes).tolist() for level, rows in used.items()},
            "loss": loss,
            "accuracy": accuracy,
            "val_loss": val_loss,
            "val_accuracy": val_accuracy,
        }

    def conclude(self) -> Found:
        """Choose the architecture, and return what was found."""
        start, seen = perf_counter(), []
        counter = self.supernet.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
        with self.ledger.spend("selection", samples=0, forward=0, backward=0):
            genotype = self.searcher.select(self.supernet, (batch for _, batch in self.pruner.loaders()[1]))
        counter.remove()
        count = sum(seen) * self.accelerator.num_processes
        self.ledger.costs["selection"] += Cost(count, len(seen), flops=count * self.ledger.flops)
        self.seconds += perf_counter() - start
        total, space = self.ledger.total, get_space(self.config.space)
        operations = space.operations(genotype)
        return Found(
            genotype=genotype,
            samples={level: int(cost.samples) for level, cost in self.ledger.costs.items() if level in LEVELS},
            forward=float(total.forward),
            backward=float(total.backward),
            seconds=self.seconds,
            flops=float(total.flops),
            costs=self.ledger.state_dict(),
            history=self.history,
            kept={level: rows.sort().values.tolist() for level, rows in self.pruner.kept.items()},
            collapsed=operations.count(space.skip) > self.config.skip_limit * len(operations),
        )

    def state_dict(self) -> dict[str, Any]:
        """Return what the next epochs depend on, and which search it is."""
        tree = {"history": self.history, "seconds": self.seconds, "options": self.options()}
        return tree | {name: part.state_dict() for name, part in self.parts().items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there.

        Raises:
            UsageError: it is of another search.
        """
        for name, value in self.options().items():
            if state["options"][name] != value:
                raise UsageError(f"{name}={value!r} cannot go on from a checkpoint of {state['options'][name]!r}")
        for name, part in self.parts().items():
            part.load_state_dict(state[name])
        self.history, self.seconds = state["history"], state["seconds"]

    def parts(self) -> dict[str, Any]:
        """Return everything with a state."""
        names = ("supernet", "weights", "alphas", "searcher", "pruner", "ledger")
        return {name: getattr(self, name) for name in names}

    def options(self) -> dict[str, Any]:
        """Return what a checkpoint must agree in."""
        return {name: getattr(self.config, name) for name in OPTIONS} | {"seed": self.seed}


@dataclass(frozen=True)
class Late(KeepSchedule):
    """A keep ratio that is 1 at first, since a level that rests has no scores, and then joins the curve.

    Args:
        start: first epoch in which less may be kept.
    """

    start: int = 0

    def ratio(self, epoch: int) -> float:
        """Return r(t) for t = ``epoch``."""
        return 1.0 if epoch < self.start else super().ratio(epoch)


class Mean:
    """Loss and accuracy over an epoch, of all processes."""

    def __init__(self) -> None:
        self.sums: list[Tensor] = []

    def add(self, step: Step, labels: Tensor) -> None:
        """Take in a batch."""
        hits = (step.logits.argmax(1) == labels).sum()
        self.sums.append(torch.stack([step.loss * len(labels), hits, torch.full_like(hits, len(labels))]))

    def result(self, accelerator: Accelerator) -> tuple[float | None, float | None]:
        """Return both means, None where there was no batch."""
        if not self.sums:
            return None, None
        sums: Any = accelerator.reduce(torch.stack(self.sums).sum(0), "sum")
        loss, hits, count = sums.tolist()
        return loss / count, hits / count


def make_searcher(config: SearchConfig, seed: int) -> Searcher:
    """Return the searcher with its own options.

    Raises:
        ValueError: an option that it does not have, or a value that is not possible.
    """
    kind = get_searcher(config.searcher)
    numbers = {each.name: type(each.default) for each in fields(kind) if isinstance(each.default, int | float)}
    values: dict[str, Any] = {"seed": seed} if numbers.pop("seed", None) else {}
    for option in config.searcher_options:
        name, _, text = option.partition("=")
        try:
            values[name] = numbers[name](text)
        except (KeyError, ValueError):
            allowed = ", ".join(f"{name}=<{number.__name__}>" for name, number in numbers.items())
            raise UsageError(f"searcher_options={option!r} is not possible; allowed: {allowed}") from None
    return kind(**values)


def cosine(first: float, last: float, progress: float) -> float:
    """Return the learning rate at a share of the epochs."""
    return last + 0.5 * (first - last) * (1 + math.cos(math.pi * progress))
