"""``partial-finetune sweep``: strategies × learning rates × seeds, then soups, judged on images nobody chose by.

Every seed has training images, batches and augmentation of its own; the test images are always the same. A strategy's
learning rate is the one with the best validation accuracy over the first seeds, for all strategies alike. Every cell
is resumable, and a sweep that is started again goes on where it was.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from frugal_shared.reading import read_json
from frugal_shared.run import Run
from frugal_shared.writing import write_json
from partial_finetune.commands.conditions import CLEAN, Condition, chosen_corruptions, judge, mean_accuracy
from partial_finetune.commands.fitting import FACTS, Facts, fit
from partial_finetune.commands.options import ANGLE, DELTA, SweepConfig
from partial_finetune.commands.rows import Row, write_rows
from partial_finetune.commands.select import choose
from partial_finetune.commands.sweep_report import FULL, report, show, summarise
from partial_finetune.commands.task import Task, open_task, predict_images
from partial_finetune.data.corruptions import Corrupted
from partial_finetune.deltas import Delta, open_delta, overwrite
from partial_finetune.soups import greedy, per_part_mean, uniform, union, wise_ft
from partial_finetune.strategy import GRID8

ALPHAS = (0.25, 0.5, 0.75)
LINEAR = "linear"


def main(config: SweepConfig) -> None:
    """Train all cells, judge the best of every strategy and the soups, and write rows and report.

    Raises:
        ValueError: model, data or a strategy cannot be had.
        RunError: an image cannot be read, or weights cannot be fetched.
    """
    chosen_corruptions(config.corruptions)
    with Run(config, "partial-finetune", mixed_precision=config.mixed_precision) as run:
        Sweep(run, config).run_all()


def default_strategies(config: SweepConfig) -> tuple[str, ...]:
    """Return the eight strategies, what they are to be compared with, the angle's choice, and random layers."""
    return (FULL, LINEAR, *GRID8, "bitfit", "apla", ANGLE, f"random_{config.top_k}")


@dataclass(frozen=True, eq=False)
class Sweep:
    """A sweep in its run folder: ``cells/<strategy>/<learning rate>/seed-<n>``."""

    run: Run
    config: SweepConfig

    @property
    def strategies(self) -> tuple[str, ...]:
        """All strategies, in the table's order."""
        return self.config.strategies or default_strategies(self.config)

    def run_all(self) -> None:
        """Search the learning rates, train the other seeds at the best, judge, and write."""
        config = self.config
        for seed in range(config.rate_seeds):
            self.train(seed, dict.fromkeys(self.strategies, config.learning_rates))
        rates = {strategy: self.best_rate(strategy) for strategy in self.strategies}
        for seed in range(config.rate_seeds, config.seeds):
            self.train(seed, {strategy: (rate,) for strategy, rate in rates.items()})
        self.drop_losers(rates)
        judged = [row for seed in range(config.seeds) for row in self.judge_seed(seed, rates)]
        rows = summarise(judged)
        if self.run.accelerator.is_main_process:
            write_rows(self.run.folder, config.json, rows)
            write_json(self.run.folder / "cells.json", judged)
            report(rows, judged, self.selections(), config).write(self.run.folder)
            show(rows)
        self.run.finish(
            {f"{row['strategy']}/{key}": row[key] for row in rows for key in ("accuracy", "shifted_accuracy")}
        )

    def task(self, seed: int) -> Task:
        """Return the task of one seed."""
        return open_task(self.config, self.run, data_seed=seed)

    def folder(self, strategy: str, rate: float, seed: int) -> Path:
        """Return a cell's folder."""
        return self.run.folder / "cells" / slug(strategy) / f"{rate:g}" / f"seed-{seed}"

    def facts(self, strategy: str, rate: float, seed: int) -> Facts | None:
        """Return what came out of a cell, or None if it is not done."""
        path = self.folder(strategy, rate, seed) / FACTS
        return read_json(path) if path.exists() else None

    def train(self, seed: int, rates: Mapping[str, Sequence[float]]) -> None:
        """Train the cells of one seed that are not done."""
        cells = [(strategy, rate) for strategy, each in rates.items() for rate in each]
        missing = [cell for cell in cells if self.facts(*cell, seed) is None]
        if not missing:
            return
        task = self.task(seed)
        for strategy, rate in self.run.progress(missing, desc=f"seed {seed}"):
            recipe = replace(self.config, learning_rate=rate)
            fit(self.run, task, recipe, self.expression(strategy, task, seed), self.folder(strategy, rate, seed), seed)

    def expression(self, strategy: str, task: Task, seed: int) -> str:
        """Return what is tuned: of the angle what it chooses for this seed."""
        if strategy != ANGLE:
            return strategy
        return choose(self.run, task, self.config, self.run.folder / "selection" / f"seed-{seed}", seed).expression

    def selections(self) -> list[dict[str, Any]]:
        """Return what the angle chose, seed by seed."""
        paths = sorted((self.run.folder / "selection").glob("seed-*/selection.json"))
        return [read_json(path) for path in paths]

    def best_rate(self, strategy: str) -> float:
        """Return the learning rate with the best mean validation accuracy; of equals, with the lower loss."""

        def score(rate: float) -> tuple[float, float]:
            found = [facts for seed in range(self.config.rate_seeds) if (facts := self.facts(strategy, rate, seed))]
            return fmean(each["val_accuracy"] for each in found), -fmean(each["val_loss"] for each in found)

        return max(self.config.learning_rates, key=score)

    def drop_losers(self, rates: Mapping[str, float]) -> None:
        """Delete the weights that were trained at other learning rates; what came out of them stays."""
        for strategy, best in rates.items():
            for rate in self.config.learning_rates:
                for seed in range(self.config.rate_seeds):
                    if rate != best and self.run.accelerator.is_main_process:
                        shutil.rmtree(self.folder(strategy, rate, seed) / DELTA, ignore_errors=True)
        self.run.accelerator.wait_for_everyone()

    def judge_seed(self, seed: int, rates: Mapping[str, float]) -> list[Row]:
        """Return a row for every strategy's model of one seed and for the soups of them."""
        path = self.run.folder / "judged" / f"seed-{seed}.json"
        if path.exists():
            return read_json(path, list)
        task = self.task(seed)
        task.model.to(self.run.accelerator.device)
        deltas = {strategy: open_delta(self.folder(strategy, rate, seed) / DELTA) for strategy, rate in rates.items()}
        rows = []
        for strategy, delta in deltas.items():
            facts = self.facts(strategy, rates[strategy], seed)
            task.reset()
            overwrite(task.model, delta.tensors())
            rows.append({**(facts or {}), "strategy": strategy, "expression": delta.expression, **self.judge(task)})
        for name, state in soups_of(task, deltas, self.run, self.config):
            overwrite(task.model, state)
            rows.append(
                {
                    "strategy": name,
                    "seed": seed,
                    "val_accuracy": validate(task, self.run, self.config),
                    **self.judge(task),
                }
            )
        if self.run.accelerator.is_main_process:
            write_json(path, rows)
        self.run.accelerator.wait_for_everyone()
        return rows

    def judge(self, task: Task) -> Row:
        """Return the accuracy of the task's model on clean and on corrupted test images."""
        config, test = self.config, task.splits.test
        images = test.limited(config.limit or len(test))
        conditions = [Condition("clean", CLEAN, None, images)]
        conditions += [
            Condition("corruption", kind, config.severity, Corrupted(images, kind, config.severity, config.seed))
            for kind in chosen_corruptions(config.corruptions)
        ]
        rows = [judge(task.base, each, self.run.accelerator, config.batch_size) for each in conditions]
        return {"accuracy": rows[0]["accuracy"], "shifted_accuracy": mean_accuracy(rows, "corruption")}


def validate(task: Task, run: Run, config: SweepConfig) -> float:
    """Return the accuracy of the task's model on validation images."""
    logits, labels = predict_images(task.base, task.splits.val, run.accelerator, config.batch_size, config.workers)
    return (logits.argmax(1) == labels).double().mean().item()


def soups_of(
    task: Task, deltas: Mapping[str, Delta], run: Run, config: SweepConfig
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield soups of different tuned parts, and full fine-tuning with WiSE-FT, which they have to be compared with.

    The ingredients are the eight strategies, as far as they are in the sweep; a greedy soup and WiSE-FT's α are chosen
    on validation images.
    """

    def score(state: dict[str, Any]) -> float:
        overwrite(task.model, state)
        return validate(task, run, config)

    parts = [delta for strategy, delta in deltas.items() if strategy in GRID8]
    if len(parts) > 1:
        yield "soup: uniform", uniform(parts, task.start)
        yield "soup: greedy", greedy(parts, task.start, score)[0]
        yield "soup: per-part mean", per_part_mean(parts, task.start)
    halves = [deltas[name] for name in ("first_half", "last_half") if name in deltas]
    if len(halves) == 2:
        yield "soup: union of halves", union(halves, task.start)
    if FULL in deltas:
        lines = {alpha: wise_ft(deltas[FULL], task.start, alpha) for alpha in ALPHAS}
        best = max(lines, key=lambda alpha: score(lines[alpha]))
        yield "full + WiSE-FT", lines[best]


def slug(strategy: str) -> str:
    """Return a folder's name for an expression."""
    return "".join(letter if letter.isalnum() or letter in "_-." else "_" for letter in strategy)
