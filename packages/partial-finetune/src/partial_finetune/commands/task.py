"""What every training here has: a pretrained model with a fitted head, data, and the bytes that it all starts from."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from frugal_shared.evaluation import chunks, gather_chunks
from frugal_shared.run import Run
from partial_finetune.checkpoint import base_hashes
from partial_finetune.commands.base import Base, open_base
from partial_finetune.commands.options import BaseConfig, RecipeConfig
from partial_finetune.data.images import Images, Splits, check_images, open_data
from partial_finetune.data.loading import Transformed, batches
from partial_finetune.head import features, fit_head, linear_classifier
from partial_finetune.parts import anatomy


@dataclass(frozen=True, eq=False)
class Task:
    """A base, what it is tuned on, and where it starts."""

    base: Base
    splits: Splits
    start: dict[str, Tensor]
    """Every parameter and buffer: the pretrained bytes, and the head as it was fitted."""
    hashes: dict[str, str]
    """Of ``start``."""
    head: tuple[str, ...]
    """Names of the classifier's tensors."""
    data_seed: int
    """Of the training images and the split."""
    linear_accuracy: float | None
    """On validation images, of the fitted head on the pretrained features; None: the head is random."""

    @property
    def model(self) -> nn.Module:
        """The model that all trainings of this task share; see :meth:`reset`."""
        return self.base.model

    def reset(self) -> None:
        """Bring the model back to the start, byte for byte."""
        overwrite(self.model, self.start)

    @property
    def initial_head(self) -> dict[str, Tensor]:
        """The head's tensors at the start."""
        return {name: self.start[name] for name in self.head}

    def info(self, config: BaseConfig) -> dict[str, Any]:
        """Return what a delta has to say of its task."""
        return {
            "model": self.base.name,
            "weights": str(config.weights) if config.weights else None,
            "classes": list(self.splits.train.classes),
            "mean": list(self.base.mean),
            "std": list(self.base.std),
            "image_size": self.base.image_size,
            "crop": self.base.crop,
            "data": config.data,
            "samples": config.samples,
            "val_share": config.val_share,
            "data_seed": self.data_seed,
            "seed": config.seed,
        }


def open_task(config: RecipeConfig, run: Run, *, data_seed: int = 0) -> Task:
    """Return the task of a command, its model on the run's device.

    Args:
        config: model, data and recipe.
        run: where the device is.
        data_seed: of which training images are taken, where not all are, and of the split, where one has to be made.

    Raises:
        UsageError: a model or data that cannot be had, or a head that cannot be fitted.
        RunError: an image cannot be read, or the ``[demo]`` extra is missing.
    """
    splits = open_data(config.data, seed=data_seed, samples=config.samples, val_share=config.val_share)
    splits = replace(splits, val=splits.val.limited(config.val_samples or len(splits.val)))
    for images in (splits.train, splits.val):  # a file that is none is told now, not in the middle of an epoch
        check_images(images)
    base = open_base(
        config.model,
        len(splits.train.classes),
        weights=config.weights,
        image_size=config.image_size,
        drop_path=config.drop_path,
        seed=config.seed,
    )
    accuracy = None
    if config.fit_head:
        classifier = linear_classifier(base.model)
        base.model.to(run.accelerator.device)
        train = embed(base, splits.train, run.accelerator, config)
        accuracy = fit_head(classifier, train, embed(base, splits.val, run.accelerator, config))
    start = {name: value.detach().to("cpu", copy=True) for name, value in base.model.state_dict().items()}
    head = anatomy(base.model).unit("classifier").parameters
    return Task(base, splits, start, base_hashes(base.model), head, data_seed, accuracy)


def overwrite(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy tensors into the model's parameters and buffers of the same names, byte for byte."""
    state = model.state_dict()
    for name, value in tensors.items():
        state[name].copy_(value)


def embed(base: Base, images: Images, accelerator: Accelerator, config: RecipeConfig) -> tuple[Tensor, Tensor]:
    """Return the pretrained features ``(N, C)`` and labels ``(N,)`` of some images."""
    return forward(base, images, accelerator, features, config.batch_size, config.workers)


def predict(
    base: Base, images: Images, accelerator: Accelerator, batch_size: int, workers: int = 0
) -> tuple[Tensor, Tensor]:
    """Return the logits ``(N, K)`` and labels ``(N,)`` of some images."""
    return forward(base, images, accelerator, lambda model, batch: model(batch), batch_size, workers)


@torch.no_grad()
def forward(
    base: Base, images: Images, accelerator: Accelerator, function: Any, batch_size: int, workers: int
) -> tuple[Tensor, Tensor]:
    """Return ``function(model, batch)`` and the labels of all images, the same bytes on any number of processes."""
    device = next(base.model.parameters()).device
    mode = base.model.training
    base.model.eval()
    mine = list(chunks(len(images), batch_size, accelerator.process_index, accelerator.num_processes))
    data = Transformed(images, base.eval_transform())
    pieces = []
    for chunk, (batch, labels) in zip(mine, batches(data, [[(0, row) for row in chunk] for chunk in mine], workers)):
        pieces.append((chunk, function(base.model, batch.to(device)).float().cpu(), labels))
    base.model.train(mode)
    return gather_chunks([piece[:2] for piece in pieces]), gather_chunks([piece[::2] for piece in pieces])
