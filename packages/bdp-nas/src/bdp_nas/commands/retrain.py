"""``bdp-nas retrain``: the network of a genotype, trained from scratch on any number of processes, resumable."""

from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from bdp_nas.blueprint import Blueprint
from bdp_nas.commands.bilevel import MOMENTUM, cosine
from bdp_nas.commands.data import Images, open_data
from bdp_nas.commands.folders import FACTS, NETWORK, blueprint_of, genotype_of
from bdp_nas.commands.loading import Augmented, loader_of, normalise
from bdp_nas.commands.options import RetrainConfig
from bdp_nas.processes import average
from frugal_shared.errors import UsageError
from frugal_shared.evaluation import chunks, gather_chunks
from frugal_shared.reading import read_json
from frugal_shared.run import Run
from frugal_shared.seeds import derived_seed
from frugal_shared.tensors import pack_tensors
from frugal_shared.training import Resumable
from frugal_shared.writing import write_bytes, write_json

EVAL_BATCH = 256
INIT, DATA, STEP = 30, 31, 32  # streams of random numbers


def main(config: RetrainConfig) -> None:
    """Train, and write results and network into the run folder.

    Raises:
        ValueError: a genotype, data, or options that do not go together.
        RunError: an image or a folder cannot be read, or the ``[demo]`` extra is missing.
    """
    genotype = genotype_of(config.genotype)
    if found := blueprint_of(config.genotype):
        config = replace(config, space=found.space)
    with Run(config, "bdp-nas") as run:
        run.restore()  # what was logged after the checkpoint
        facts = run_retrain(run, config, genotype, run.folder, config.seed)
        run.finish({name: value for name, value in facts.items() if isinstance(value, int | float)})


def run_retrain(run: Run, config: RetrainConfig, genotype: str, folder: Path, seed: int) -> dict[str, Any]:
    """Train in a folder, or go on there, or read back what came out there.

    Args:
        run: where the processes and the log are.
        config: the recipe; its own genotype does not count.
        genotype: what to train.
        folder: gets ``retrain.json``, ``genotype.json``, ``network.safetensors``, and checkpoints meanwhile.
        seed: of everything random, and of what validates.

    Returns:
        ``genotype``, ``space``, ``seed``, ``accuracy`` on the test images, ``val_accuracy`` (None without such images),
        ``loss`` of the last epoch, ``parameters``, ``epochs``, ``samples`` that were drawn, ``seconds`` of training.

    Raises:
        ValueError: a genotype, data, or options that do not go together, or a checkpoint of another training.
        RunError: data that cannot be read.
    """
    if (folder / FACTS).exists():
        return read_json(folder / FACTS)
    splits = open_data(config, seed)
    blueprint = Blueprint.of(splits.train, config.space, genotype, config.channels, config.cells)
    training = Training(run.accelerator, config, blueprint, splits.train, seed)
    training.restore(folder)
    training.train(run, folder, config.epochs, log=folder == run.folder)
    accuracies = [accuracy(training.network, blueprint, part, run.accelerator) for part in (splits.test, splits.val)]
    facts = training.facts() | dict(zip(("accuracy", "val_accuracy"), accuracies))

    def write() -> None:
        write_bytes(folder / NETWORK, pack_tensors(training.weights()))
        blueprint.write(folder)
        write_json(folder / FACTS, facts)

    training.finish(folder, write)
    return facts


class Training(Resumable):
    """One training of a network.

    Args:
        accelerator: the run's.
        config: the recipe.
        blueprint: of the network.
        images: to train on.
        seed: of everything random.

    Raises:
        ValueError: a genotype that is none of the space, or options that do not go together.
    """

    def __init__(
        self, accelerator: Accelerator, config: RetrainConfig, blueprint: Blueprint, images: Images, seed: int
    ) -> None:
        super().__init__(accelerator)
        self.config, self.blueprint, self.seed = config, blueprint, seed
        self.images, self.average = images.to(accelerator.device), average
        torch.manual_seed(derived_seed(seed, INIT))
        self.network = blueprint.network(config.auxiliary > 0).to(accelerator.device)
        self.optimizer = torch.optim.SGD(
            self.network.parameters(), config.learning_rate, MOMENTUM, weight_decay=config.weight_decay
        )
        self.samples, self.seconds, self.loss = 0, 0.0, 0.0

    def advance(self) -> dict[str, float]:
        """Train for one epoch."""
        start, config, rank = perf_counter(), self.config, self.accelerator.process_index
        torch.manual_seed(derived_seed(self.seed, STEP, self.done, rank))  # of dropped paths
        self.network.train()
        self.network.drop_path = config.drop_path * self.done / max(1, config.epochs - 1)
        for group in self.optimizer.param_groups:
            group["lr"] = cosine(config.learning_rate, 0.0, self.done / config.epochs)
        losses = [self.step(images, labels) for _, (images, labels) in self.batches()]
        self.average(losses)
        self.done, self.loss = self.done + 1, torch.stack(losses).mean().item()
        self.seconds += perf_counter() - start
        return {"loss": self.loss}

    def batches(self) -> Any:
        """Return this process's batches of the epoch.

        Raises:
            UsageError: there is none.
        """
        seed = derived_seed(self.seed, DATA)
        data = Augmented(self.images, *self.blueprint.moments, self.config.augment, seed, self.done)
        rows, stream = range(len(self.images)), (seed, 0, self.done)
        loader = loader_of(data, rows, self.config.batch_size, stream, self.accelerator)
        if not len(loader):
            raise UsageError(f"{len(rows)} training images make no batch of {self.config.batch_size}; allowed: more")
        return loader

    def step(self, images: Tensor, labels: Tensor) -> Tensor:
        """Change the weights; return the loss."""
        loss = self.loss_of(self.network(images), labels)
        weights = list(self.network.parameters())
        gradients = torch.autograd.grad(loss, weights, materialize_grads=True)
        self.average(gradients)
        for weight, gradient in zip(weights, gradients):
            weight.grad = gradient
        nn.utils.clip_grad_norm_(weights, self.config.clip_grad)
        self.optimizer.step()
        self.samples += len(labels) * self.accelerator.num_processes
        return loss.detach()

    def loss_of(self, answer: Any, labels: Tensor) -> Tensor:
        """Return the cross-entropy, with the auxiliary classifier's where there is one."""
        smoothing = self.config.label_smoothing
        if not isinstance(answer, tuple):
            return F.cross_entropy(answer, labels, label_smoothing=smoothing)
        main, second = (F.cross_entropy(logits, labels, label_smoothing=smoothing) for logits in answer)
        return main + self.config.auxiliary * second

    def weights(self) -> dict[str, Tensor]:
        """Return parameters and buffers, on the CPU, without the auxiliary classifier: it has done its work."""
        state = self.network.state_dict()
        return {name: value.cpu().contiguous() for name, value in state.items() if ".auxiliary." not in name}

    def facts(self) -> dict[str, Any]:
        """Return what came out."""
        weights = {name for name, _ in self.network.named_parameters()} & self.weights().keys()
        return {
            "genotype": self.network.genotype,
            "space": self.config.space,
            "seed": self.seed,
            "loss": self.loss,
            "parameters": sum(self.network.get_parameter(name).numel() for name in weights),
            "epochs": self.done,
            "samples": self.samples,
            "seconds": self.seconds,
        }

    def state_dict(self) -> dict[str, Any]:
        """Return what the next epochs depend on, and which training it is."""
        facts = {name: getattr(self, name) for name in ("samples", "seconds", "loss")}
        tree = {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}
        return tree | {"facts": facts, "genotype": self.network.genotype}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there.

        Raises:
            UsageError: it is of another genotype.
        """
        if state["genotype"] != self.network.genotype:
            raise UsageError(f"genotype {self.network.genotype!r} cannot go on from that of {state['genotype']!r}")
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        for name, value in state["facts"].items():
            setattr(self, name, value)


@torch.no_grad()
def accuracy(network: nn.Module, blueprint: Blueprint, images: Images, accelerator: Accelerator) -> float | None:
    """Return the share of images on which a network is right, the same on any number of processes; None of none."""
    if not len(images):
        return None
    network.eval()
    pieces = []
    for chunk in chunks(len(images), EVAL_BATCH, accelerator.process_index, accelerator.num_processes):
        pixels, labels = (part.to(accelerator.device) for part in images[torch.tensor(chunk)])
        hits = network(normalise(pixels, *blueprint.moments)).argmax(1) == labels
        pieces.append((chunk, hits))
    return gather_chunks(pieces).double().mean().item()
