"""``partial-finetune soup``: one model of several, saved as a delta like any other."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from frugal_shared.evaluation import chunks
from frugal_shared.run import Run
from partial_finetune.commands.models import data_of, find_deltas, open_base
from partial_finetune.commands.options import DELTA, SoupConfig
from partial_finetune.commands.task import eval_batches, predict_images
from partial_finetune.deltas import Delta, overwrite, save_delta
from partial_finetune.soups import greedy, per_part_mean, recalibrate, uniform, union, wise_ft

State = dict[str, Tensor]


def main(config: SoupConfig) -> None:
    """Make the soup, validate it, and save it in ``<output_dir>/delta``.

    Raises:
        ValueError: ingredients of another base, head, labels or normalisation, or folders that hold none.
        RunError: the base's weights cannot be fetched.
    """
    deltas = find_deltas(config.deltas)
    base = open_base(deltas[0], config.weights)
    splits = data_of(deltas[0])
    with Run(config, "partial-finetune", mixed_precision=config.mixed_precision) as run:
        base.model.to(run.accelerator.device)
        pretrained = {name: value.cpu().clone() for name, value in base.model.state_dict().items()}

        def accuracy(state: State) -> float:
            overwrite(base.model, state)
            spans = chunks(len(splits.train), config.batch_size, 0, 1)
            recalibrate(base.model, eval_batches(base, splits.train, spans))
            logits, labels = predict_images(base, splits.val, run.accelerator, config.batch_size)
            return (logits.argmax(1) == labels).double().mean().item()

        state, chosen = stir(config, deltas, pretrained, accuracy)
        found = accuracy(state)
        ingredients = [str(config.deltas[index]) for index in chosen]
        if run.accelerator.is_main_process:
            save_soup(config, base.model, deltas[0], ingredients)
        run.finish({"kind": config.kind, "val_accuracy": found, "ingredients": ingredients})


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


def save_soup(config: SoupConfig, model: nn.Module, first: Delta, ingredients: list[str]) -> None:
    """Save the model, which holds the soup, as a delta to the start that the ingredients, as the first, have."""
    facts: dict[str, Any] = {"soup": config.kind, "ingredients": ingredients}
    if config.kind in ("union", "wise-ft"):
        facts |= {"scale": config.scale} if config.kind == "union" else {"alpha": config.alpha}
    info = {key: value for key, value in first.info.items() if key not in ("head", "learning_rate", "fit_seed")}
    save_delta(
        config.output_dir / DELTA,
        model,
        first.base,
        selection=None,
        info=info | facts,
        initial_head=first.initial_head,
    )
