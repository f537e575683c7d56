"""``partial-finetune soup``: one model of several, saved as a delta like any other."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from frugal_shared.run import Run
from partial_finetune.checkpoint import Delta, base_hashes, save_delta, start_of
from partial_finetune.commands.base import Base
from partial_finetune.commands.fit import DELTA
from partial_finetune.commands.options import SoupConfig
from partial_finetune.commands.task import overwrite, predict
from partial_finetune.commands.tuned import base_of, data_of, find_deltas
from partial_finetune.data.images import Images
from partial_finetune.data.loading import Transformed, batches
from partial_finetune.soups import greedy, per_part_mean, uniform, union, wise_ft

State = dict[str, Tensor]


def soup(config: SoupConfig) -> None:
    """Make the soup, validate it, and save it in ``<output_dir>/delta``.

    Raises:
        ValueError: ingredients of another base, head, labels or normalisation, or folders that hold none.
        RunError: the base's weights cannot be fetched.
    """
    deltas = find_deltas(config.deltas)
    base = base_of(deltas[0], config.weights)
    splits = data_of(deltas[0])
    with Run(config, "partial-finetune") as run:
        base.model.to(run.accelerator.device)
        pretrained = {name: value.cpu().clone() for name, value in base.model.state_dict().items()}

        def accuracy(state: State) -> float:
            overwrite(base.model, state)
            recalibrate(base, splits.train, config.batch_size)
            logits, labels = predict(base, splits.val, run.accelerator, config.batch_size)
            return (logits.argmax(1) == labels).double().mean().item()

        state, chosen = stir(config, deltas, pretrained, accuracy)
        found = accuracy(state)
        if run.accelerator.is_main_process:
            save_soup(config, base.model, deltas, [str(config.deltas[index]) for index in chosen], pretrained)
        run.finish({"kind": config.kind, "val_accuracy": found, "ingredients": [str(config.deltas[k]) for k in chosen]})


def stir(
    config: SoupConfig, deltas: list[Delta], pretrained: State, accuracy: Callable[[State], float]
) -> tuple[State, list[int]]:
    """Return the soup of the wanted kind, and the numbers of its ingredients."""
    everybody = list(range(len(deltas)))
    if config.kind == "greedy":
        return greedy(deltas, pretrained, accuracy)
    if config.kind == "wise-ft":
        return wise_ft(deltas[0], pretrained, config.alpha), everybody
    if config.kind == "union":
        return union(deltas, pretrained, config.scale), everybody
    means = {"uniform": uniform, "per-part-mean": per_part_mean}
    return means[config.kind](deltas, pretrained), everybody


def save_soup(config: SoupConfig, model: nn.Module, deltas: list[Delta], paths: list[str], pretrained: State) -> None:
    """Save the model, which holds the soup, as a delta to the ingredients' own start."""
    cooked = {name: value.cpu().clone() for name, value in model.state_dict().items()}
    overwrite(model, start_of(deltas[0], pretrained))
    hashes = base_hashes(model)
    overwrite(model, cooked)
    facts: dict[str, Any] = {"soup": config.kind, "ingredients": paths}
    if config.kind in ("union", "wise-ft"):
        facts |= {"scale": config.scale} if config.kind == "union" else {"alpha": config.alpha}
    info = {key: value for key, value in deltas[0].info.items() if key not in ("head", "learning_rate", "fit_seed")}
    save_delta(
        config.output_dir / DELTA,
        model,
        hashes,
        selection=None,
        info=info | facts,
        initial_head=deltas[0].initial_head,
    )


@torch.no_grad()
def recalibrate(base: Base, images: Images, batch_size: int) -> None:
    """Measure the statistics of every batch norm anew on training images: the mean of several is not the soup's own."""
    norms = [module for module in base.model.modules() if isinstance(module, _BatchNorm)]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over all batches
        norm.train()
    device = next(base.model.parameters()).device
    keys = [
        [(0, row) for row in range(start, min(start + batch_size, len(images)))]
        for start in range(0, len(images), batch_size)
    ]
    for batch, _ in batches(Transformed(images, base.eval_transform()), keys):
        base.model(batch.to(device))
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum
    base.model.eval()
