"""The searches and retrainings that `ablate`, `bench` and `demo` compare."""

from dataclasses import dataclass
from typing import Any

from bdp_nas.commands.options import RetrainConfig, SearchConfig

Options = dict[str, Any]


@dataclass(frozen=True)
class Preset:
    """The searches and retrainings of all cells.

    Args:
        search: options of every search.
        retrain: options of every retraining.
    """

    search: SearchConfig
    retrain: RetrainConfig


SMALL: Options = {"data": "digits", "space": "nasbench201", "channels": 8, "cells": 1}
FEW_STEPS = ("learning_rate=0.01",)  # of α, above what is published for many times as many steps
PRESETS = {
    "small": Preset(SearchConfig(**SMALL, epochs=30, searcher_options=FEW_STEPS), RetrainConfig(**SMALL, epochs=15))
}
