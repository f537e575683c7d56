"""What every training here has: a pretrained model with a fitted head, data, and the bytes that it all starts from."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from accelerate import Accelerator
from torch import Tensor, nn

from frugal_shared.evaluation import chunks, gather_chunks
from frugal_shared.labelled import Images, Splits
from frugal_shared.run import Run
from frugal_shared.seeds import derived_seed
from partial_finetune.commands.models import open_model
from partial_finetune.commands.options import BaseConfig, RecipeConfig
from partial_finetune.data.images import open_data
from partial_finetune.data.loading import Transformed, batches
from partial_finetune.deltas import base_hashes, overwrite
from partial_finetune.head import features, fit_head, linear_classifier
from partial_finetune.network import Network, with_classes, with_drop_path
from partial_finetune.parts import anatomy
from partial_finetune.prediction import Batches, Function, forward

_HEAD = 1  # stream of random numbers


@dataclass(frozen=True, eq=False)
class Task:
    """A base, what it is tuned on, and where it starts."""

    base: Network
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
        images.check()
    base = open_model(config.model, weights=config.weights, image_size=config.image_size)
    base = with_drop_path(base, config.drop_path)
    base = with_classes(base, len(splits.train.classes), seed=derived_seed(config.seed, _HEAD))
    accuracy = None
    if config.fit_head:
        classifier = linear_classifier(base.model)
        base.model.to(run.accelerator.device)
        train = embed_images(base, splits.train, run.accelerator, config)
        accuracy = fit_head(classifier, train, embed_images(base, splits.val, run.accelerator, config))
    start = {name: value.detach().to("cpu", copy=True) for name, value in base.model.state_dict().items()}
    head = anatomy(base.model).unit("classifier").parameters
    return Task(base, splits, start, base_hashes(base.model), head, data_seed, accuracy)


def embed_images(
    base: Network, images: Images, accelerator: Accelerator, config: RecipeConfig
) -> tuple[Tensor, Tensor]:
    """Return the pretrained features ``(N, C)`` and labels ``(N,)`` of some images."""
    return outputs(features, base, images, accelerator, config.batch_size, config.workers)


def predict_images(
    network: Network, images: Images, accelerator: Accelerator, batch_size: int, workers: int = 0
) -> tuple[Tensor, Tensor]:
    """Return the logits ``(N, K)`` and labels ``(N,)`` of some images."""
    return outputs(lambda model, batch: model(batch), network, images, accelerator, batch_size, workers)


def outputs(
    function: Function, network: Network, images: Images, accelerator: Accelerator, batch_size: int, workers: int
) -> tuple[Tensor, Tensor]:
    """Return ``function(model, batch)`` and the labels of all images, the same bytes on any number of processes."""
    mine = list(chunks(len(images), batch_size, accelerator.process_index, accelerator.num_processes))
    with accelerator.autocast():
        found = list(forward(network.model, eval_batches(network, images, mine, workers), function))
    results, labels = ([piece[column] for piece in found] for column in (0, 1))
    return gather_chunks(list(zip(mine, results))), gather_chunks(list(zip(mine, labels)))


def eval_batches(network: Network, images: Images, spans: Iterable[range], workers: int = 0) -> Batches:
    """Return batches of images as the network sees them in evaluation: one of every span of rows."""
    data = Transformed(images, network.eval_transform())
    return batches(data, [[(0, row) for row in span] for span in spans], workers)
