"""What a tuned model is judged by: clean, corrupted and shifted images, each a condition of its own."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from accelerate import Accelerator
from scipy.stats import binomtest

from frugal_shared.errors import check_choice
from frugal_shared.labelled import Images
from partial_finetune.commands.rows import Row
from partial_finetune.commands.task import predict_images
from partial_finetune.data.corruptions import CORRUPTIONS
from partial_finetune.network import Network

CLEAN, ALL, NONE = "clean", "all", "none"


@dataclass(frozen=True)
class Condition:
    """Images to judge a model by."""

    kind: str
    """"clean", "corruption" or "shift"."""
    name: str
    severity: int | None
    images: Images
    mask: tuple[int, ...] | None = None
    """Columns of the logits that count: the classes that a shifted data set has; None: all."""


def chosen_corruptions(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the corruptions that are meant by names, "all" or "none".

    Raises:
        UsageError: an unknown one.
    """
    if names == (ALL,):
        return tuple(CORRUPTIONS)
    if names == (NONE,):
        return ()
    for name in names:
        check_choice("corruptions", name, (*CORRUPTIONS, ALL, NONE))
    return names


def judge(tuned: Network, condition: Condition, accelerator: Accelerator, batch_size: int) -> Row:
    """Return one row: accuracy with its exact 95 % interval (Clopper and Pearson)."""
    logits, labels = predict_images(tuned, condition.images, accelerator, batch_size)
    if condition.mask is not None:
        logits = logits[:, list(condition.mask)]
    right, count = int((logits.argmax(1) == labels).sum()), len(labels)
    interval = binomtest(right, count).proportion_ci()
    return {
        "kind": condition.kind,
        "name": condition.name,
        "severity": condition.severity,
        "accuracy": right / count,
        "accuracy_low": float(interval.low),
        "accuracy_high": float(interval.high),
        "images": count,
    }


def mean_accuracy(rows: Iterable[Row], kind: str) -> float:
    """Return the mean accuracy over all rows of a kind; NaN if there are none."""
    values = [row["accuracy"] for row in rows if row["kind"] == kind]
    return float(np.mean(values)) if values else float("nan")
