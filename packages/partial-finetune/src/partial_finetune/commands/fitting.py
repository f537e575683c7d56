"""The training loop: freeze, tune, validate, save what was tuned; resumes from any kill with the same final bytes."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from timm.data import Mixup
from torch import Tensor

from frugal_shared.reading import read_json
from frugal_shared.run import Run
from frugal_shared.seeds import derived_seed
from frugal_shared.training import Resumable, share, warm_up_cosine
from frugal_shared.writing import write_json
from partial_finetune.commands.options import DELTA, RecipeConfig
from partial_finetune.commands.task import Task, predict_images
from partial_finetune.cost import saved_bytes
from partial_finetune.data.loading import Transformed, batches, epoch_batches, own_random_numbers
from partial_finetune.deltas import open_delta, overwrite, save_delta
from partial_finetune.ema import TunedEma
from partial_finetune.frozen import Frozen, freeze
from partial_finetune.optimizer_groups import parameter_groups
from partial_finetune.strategy import Selection

FACTS = "fit.json"
LOG_EVERY = 10
_DATA, _STEP, _MIX = 10, 11, 12  # streams of random numbers

Facts = dict[str, Any]


def fit(run: Run, task: Task, config: RecipeConfig, strategy: str | Selection, folder: Path, seed: int) -> Facts:
    """Tune the task's model from its start and leave it tuned; save the delta and return what came out.

    A folder that holds the result already gives it back; one with checkpoints goes on from the newest.

    Args:
        run: where the processes and the log are.
        task: model, data and start.
        config: the recipe.
        strategy: what is tuned.
        folder: gets ``delta/`` and ``fit.json``.
        seed: of batches, augmentation and dropout, and of random layers.

    Raises:
        ValueError: a strategy that selects nothing, or a batch that does not divide among the processes.
    """
    if (folder / FACTS).exists() and (folder / DELTA).exists():
        task.reset()
        overwrite(task.model, open_delta(folder / DELTA).tensors())
        return read_json(folder / FACTS)
    task.reset()
    with freeze(task.model, strategy, seed=seed) as frozen:
        training = Training(run.accelerator, task, config, frozen, seed)
        training.restore(folder)
        with training.prepared():
            training.train(run, folder, len(training.plan), save_every=config.save_every)
        facts = training.facts()

        def write() -> None:
            info = task.info(config) | {"learning_rate": config.learning_rate, "fit_seed": seed}
            save_delta(
                folder / DELTA,
                task.model,
                task.hashes,
                selection=frozen.selection,
                info=info,
                initial_head=task.initial_head,
            )
            write_json(folder / FACTS, facts)

        training.finish(folder, write)
    return facts


class Training(Resumable):
    """One fine-tuning, step by step.

    Args:
        accelerator: the run's.
        task: model, data and start; the model is at its start.
        config: the recipe.
        frozen: the model, frozen.
        seed: of everything random.
    """

    def __init__(self, accelerator: Accelerator, task: Task, config: RecipeConfig, frozen: Frozen, seed: int) -> None:
        super().__init__(accelerator)
        self.task, self.config, self.frozen, self.seed = task, config, frozen, seed
        groups = parameter_groups(
            frozen, config.learning_rate, weight_decay=config.weight_decay, layer_decay=config.layer_decay
        )
        self.optimizer = torch.optim.AdamW(groups, fused=True)
        frozen.check(self.optimizer)
        self.peaks = [group["lr"] for group in self.optimizer.param_groups]
        self.ema = TunedEma(frozen, config.ema) if config.ema is not None else None
        self.mixup = mixup(config, len(task.splits.train.classes))
        transform = task.base.train_transform(crop_scale=config.crop_scale, auto_augment=config.auto_augment)
        self.data = Transformed(task.splits.train, transform, derived_seed(seed, _DATA))
        self.plan = plan(len(task.splits.train), config, seed)
        self.seconds, self.activation_bytes = 0.0, 0

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """Train inside; in the end the model holds the tuned (with EMA: the averaged) weights."""
        self.wrapped, self.optimizer = self.accelerator.prepare(self.task.model, self.optimizer)
        self.wrapped.train()
        mine = [share(self.accelerator, keys) for keys in self.plan[self.done :]]
        self.batches = batches(self.data, mine, self.config.workers)
        yield
        self.accelerator.unwrap_model(self.wrapped, keep_fp32_wrapper=False)
        self.accelerator.free_memory()
        if self.ema is not None:
            self.ema.swap()
        self.task.model.eval()

    def advance(self) -> dict[str, float]:
        """Do a step; return the loss now and then."""
        images, labels = next(self.batches)
        began = perf_counter()
        loss = self._step(images, labels)
        self.seconds += perf_counter() - began
        self.done += 1
        return {"loss": loss} if self.done % LOG_EVERY == 0 or self.done == len(self.plan) else {}

    def facts(self) -> Facts:
        """Return accuracy on validation images, and what it cost."""
        logits, labels = predict_images(
            self.task.base, self.task.splits.val, self.accelerator, self.config.batch_size, self.config.workers
        )
        values = self.frozen.parameters()
        tuned = sum(value.numel() for value in values)
        head = sum(self.task.start[name].numel() for name in self.task.head)
        return {
            "strategy": self.frozen.selection.expression,
            "learning_rate": self.config.learning_rate,
            "seed": self.seed,
            "steps": self.done,
            "val_accuracy": (logits.argmax(1) == labels).double().mean().item(),
            "val_loss": F.cross_entropy(logits, labels).item(),
            "tuned_parameters": tuned,
            "tuned_backbone_parameters": tuned - head,
            "state_bytes": sum(value.nbytes for value in self.task.start.values()) + 3 * sum(v.nbytes for v in values),
            "activation_bytes": self.activation_bytes,
            "train_seconds": self.seconds,
        }

    def _step(self, images: Tensor, labels: Tensor) -> float:
        device = self.accelerator.device
        step, rank = self.done, self.accelerator.process_index
        for group, peak in zip(self.optimizer.param_groups, self.peaks):
            group["lr"] = peak * warm_up_cosine(step, len(self.plan), round(self.config.warm_up * len(self.plan)))
        images, labels = images.to(device), labels.to(device)
        with own_random_numbers(derived_seed(self.seed, _MIX, step, rank)):
            images, targets = self.mixup(images, labels) if self.mixup else (images, labels)
        torch.manual_seed(derived_seed(self.seed, _STEP, step, rank))  # of dropout and stochastic depth
        smoothing = 0.0 if self.mixup else self.config.label_smoothing  # timm's Mixup smooths by itself
        with saved_bytes(self.task.model) as saved:
            loss = F.cross_entropy(self.wrapped(images), targets, label_smoothing=smoothing)
        self.activation_bytes = max(self.activation_bytes, saved.bytes)
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.frozen.parameters(), self.config.clip_grad)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.ema is not None:
            self.ema.update()
        return loss.item()

    def state_dict(self) -> dict[str, Any]:
        """Return what the next steps depend on."""
        state = self.task.model.state_dict()
        frozen = {name for name, value in self.task.model.named_parameters() if not value.requires_grad}
        return {
            "model": {name: value for name, value in state.items() if name not in frozen},
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.state_dict() if self.ema else None,
            "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler else None,
            "seconds": self.seconds,
            "activation_bytes": self.activation_bytes,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        overwrite(self.task.model, state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.seconds, self.activation_bytes = state["seconds"], state["activation_bytes"]


def plan(count: int, config: RecipeConfig, seed: int) -> list[list[tuple[int, int]]]:
    """Return the global batches of all epochs."""
    each = (epoch_batches(count, config.batch_size, derived_seed(seed, _DATA), e) for e in range(config.epochs))
    return [batch for epoch in each for batch in epoch]


def mixup(config: RecipeConfig, classes: int) -> Mixup | None:
    """Return timm's Mixup as the recipe wants it, or None."""
    if config.mixup == 0 and config.cutmix == 0:
        return None
    options = {"label_smoothing": config.label_smoothing, "num_classes": classes}
    return Mixup(mixup_alpha=config.mixup, cutmix_alpha=config.cutmix, **options)
