"""The training loop: freeze, tune, validate, save what was tuned; resumes from any kill with the same final bytes."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from timm.data import Mixup
from torch import Tensor, nn

from frugal_shared.checkpoint import latest_checkpoint, read_json, save_checkpoint, write_json
from frugal_shared.run import Run
from frugal_shared.seeds import derived_seed
from frugal_shared.training import share, warm_up_cosine
from partial_finetune.checkpoint import open_delta, save_delta
from partial_finetune.commands.options import RecipeConfig
from partial_finetune.commands.task import Task, overwrite, predict
from partial_finetune.cost import saved_bytes
from partial_finetune.data.loading import Transformed, batches, epoch_batches, own_random_numbers
from partial_finetune.ema import TunedEma
from partial_finetune.frozen import Frozen, freeze
from partial_finetune.groups import parameter_groups
from partial_finetune.strategy import Selection

DELTA, FACTS, CHECKPOINTS = "delta", "fit.json", "checkpoints"
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
        training = Training(run.accelerator, task, config, frozen, folder, seed)
        training.run(lambda step, **values: run.log(step, **values), run.progress)
        facts = training.facts()
        if run.accelerator.is_main_process:
            save_delta(
                folder / DELTA,
                task.model,
                task.hashes,
                selection=frozen.selection,
                info=task.info(config) | {"learning_rate": config.learning_rate, "fit_seed": seed},
                initial_head=task.initial_head,
            )
            write_json(folder / FACTS, facts)
            shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
        run.accelerator.wait_for_everyone()
    return facts


class Training:
    """One fine-tuning, step by step.

    Args:
        accelerator: the run's.
        task: model, data and start; the model is at its start.
        config: the recipe.
        frozen: the model, frozen.
        folder: of the checkpoints.
        seed: of everything random.
    """

    def __init__(
        self, accelerator: Accelerator, task: Task, config: RecipeConfig, frozen: Frozen, folder: Path, seed: int
    ) -> None:
        self.accelerator, self.task, self.config, self.frozen = accelerator, task, config, frozen
        self.folder, self.seed = folder, seed
        groups = parameter_groups(
            frozen, config.learning_rate, weight_decay=config.weight_decay, layer_decay=config.layer_decay
        )
        self.optimizer = torch.optim.AdamW(groups, fused=True)
        frozen.check(self.optimizer)
        self.peaks = [group["lr"] for group in self.optimizer.param_groups]
        self.ema = TunedEma(frozen, config.ema) if config.ema is not None else None
        self.mixup = mixup(config, len(task.splits.train.classes))
        self.data = Transformed(task.splits.train, task.base.train_transform(config), derived_seed(seed, _DATA))
        self.plan = plan(len(task.splits.train), config, seed)
        self.seconds, self.activation_bytes, self.done = 0.0, 0, 0

    def run(self, log: Callable[..., None], progress: Callable[..., Any]) -> None:
        """Train to the end; the model then holds the tuned (with EMA: the averaged) weights."""
        self._restore()
        model, self.optimizer = self.accelerator.prepare(self.task.model, self.optimizer)
        model.train()
        steps = len(self.plan)
        bar = progress(self._batches(), initial=self.done, total=steps, desc=self.folder.name)
        for images, labels in bar:
            began = perf_counter()
            loss = self._step(model, images, labels)
            self.seconds += perf_counter() - began
            self.done += 1
            if self.done % LOG_EVERY == 0 or self.done == steps:
                log(self.done, loss=loss)
            if self.done % self.config.save_every == 0 and self.done < steps:
                self._save()
        self.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
        self.accelerator.free_memory()
        if self.ema is not None:
            self.ema.swap()
        self.task.model.eval()

    def facts(self) -> Facts:
        """Return accuracy on validation images, and what it cost."""
        logits, labels = predict(
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

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        mine = [share(self.accelerator, keys) for keys in self.plan[self.done :]]
        return batches(self.data, mine, self.config.workers)

    def _step(self, model: nn.Module, images: Tensor, labels: Tensor) -> float:
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
            loss = F.cross_entropy(model(images), targets, label_smoothing=smoothing)
        self.activation_bytes = max(self.activation_bytes, saved.bytes)
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.frozen.parameters(), self.config.clip_grad)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.ema is not None:
            self.ema.update()
        return loss.item()

    def _save(self) -> None:
        if self.accelerator.is_main_process:
            state = self.task.model.state_dict()
            frozen = {name for name, value in self.task.model.named_parameters() if not value.requires_grad}
            tree = {
                "model": {name: value for name, value in state.items() if name not in frozen},
                "optimizer": self.optimizer.state_dict(),
                "ema": self.ema.state_dict() if self.ema else None,
                "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler else None,
                "seconds": self.seconds,
                "activation_bytes": self.activation_bytes,
            }
            save_checkpoint(self.folder / CHECKPOINTS, self.done, tree, keep=2)
        self.accelerator.wait_for_everyone()

    def _restore(self) -> None:
        found = latest_checkpoint(self.folder / CHECKPOINTS)
        self.accelerator.wait_for_everyone()
        if found is None:
            return
        self.done, tree = found
        overwrite(self.task.model, tree["model"])
        self.optimizer.load_state_dict(tree["optimizer"])
        if self.ema is not None:
            self.ema.load_state_dict(tree["ema"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(tree["scaler"])
        self.seconds, self.activation_bytes = tree["seconds"], tree["activation_bytes"]


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
