"""``delta-dit bench``: every way to sample for less, side by side in one run, at the same number of MACs.

Fidelity is measured against the uncached images of the same seeds, and with ``--target exact`` also against those of
very many steps. On the embedded models the judge reads outline and texture, and a Fréchet distance compares all seeds'
images with real ones in DINOv2's features.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from delta_dit.adapters import blocks_of
from delta_dit.commands.bench_report import Row, print_rows, report
from delta_dit.commands.frechet import Frechet
from delta_dit.commands.methods import UNCACHED, Method, counted, draw_with_latents, macs, quality, ssim
from delta_dit.commands.models import EMBEDDED, Sampler, conditions, load_sampler, only_images
from delta_dit.commands.options import METHODS, MOVED, BenchConfig
from delta_dit.commands.peers import PEERS, TUNING_SEED, Dial, Peer, Setting, naive_feature_cache, on_copy
from delta_dit.commands.scores import Scores
from delta_dit.config import DeltaCacheConfig
from delta_dit.delta_plan import DeltaPlan
from delta_dit.embedded.judge import load_judge
from delta_dit.embedded.plans import shipped_plan
from delta_dit.fidelity import psnr, relative_l1
from delta_dit.moved_steps import Spacing
from frugal_shared.errors import check_range
from frugal_shared.evaluation import mean_interval
from frugal_shared.run import Run
from frugal_shared.timing import compare
from frugal_shared.writing import write_json

COLUMNS = (
    "cost_steps",
    "mac_speedup",
    "wall_speedup",
    "psnr_exact_db",
    "psnr_db",
    "worst_psnr_db",
    "ssim",
    "latent_rel_l1",
)
JUDGED = ("outline_accuracy", "texture_accuracy", "frechet_distance")
SLOWER = 0.96  # of the wanted speed-up: what a foreign cache may take more, because it cannot always hit it
TUNING_SAMPLES = 8  # at most: images that the settings of a foreign cache are compared on
EXACT = 20  # times the reference's steps count as exact
SHOWN = 12  # pictures per method in the report


def main(config: BenchConfig) -> None:
    """Draw, tune, judge, time, and write the rows and the report; a resumed run keeps the rows it has."""
    plan = None if config.plan is None else DeltaPlan.load(config.plan)  # what is wrong with it is told at once
    sampler = load_sampler(config.model, random_weights=config.random_weights, dtype=config.dtype)
    only_images(sampler, "bench")
    sampler = replace(sampler, conditions=conditions(config, sampler))
    steps = config.steps or sampler.steps
    if config.budget is not None:
        check_range("budget", config.budget, 1, steps)
    check_range("speedup", config.speedup, 1, steps)
    if plan is not None:
        blocks = len(blocks_of(sampler.pipe.transformer))
        DeltaCacheConfig(plan=plan).plan_for(plan.steps if config.target == "exact" else steps, blocks)
    with Run(config, "delta-dit") as run:
        sampler.pipe.to(run.accelerator.device)
        contest = Contest(config, sampler, run)
        ssim(torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 16, 16))  # missing packages are missed now, not after an hour
        state: Any  # rows, the uncached images and latents and the exact images by seed, a few images by method
        done, state = run.restore() or (0, {"rows": [], "drawn": {}, "exact": {}, "shown": {}})
        contest.draw_exact(state)
        entries = contest.entries()
        for number, (name, enter) in enumerate(run.progress(entries[done:], desc="bench"), done + 1):
            state["rows"].append(contest.row(name, enter, state))
            run.save(number, state, keep=1)
        if run.accelerator.is_main_process:
            for path in (run.folder / "rows.json", config.json):
                if path is not None:
                    write_json(path, state["rows"])
            page = report(state["rows"], state["shown"], config, contest.steps, contest.samples)
            page.write(run.folder)
            print_rows(state["rows"], f"{config.model}, {contest.steps} steps, {contest.speedup:.4g}×")
        run.finish(flat(state["rows"]))


@dataclass
class Contest:
    """What all rows of a comparison share."""

    config: BenchConfig
    sampler: Sampler
    run: Run

    def __post_init__(self) -> None:
        config = self.config
        self.steps = config.steps or self.sampler.steps
        self.speedup = config.speedup if config.budget is None else self.steps / config.budget
        self.judge = load_judge() if config.model in EMBEDDED else None
        self.samples = config.samples or (400 if self.judge else 1)
        self.seeds = range(config.seed, config.seed + config.seeds)
        self.uncached = Method(UNCACHED, self.steps)
        self.full_macs = macs(self.uncached, self.sampler)
        labels = self.sampler.labels(range(self.samples)).repeat(config.seeds) if self.judge else None
        self.frechet = None if labels is None else Frechet(labels)
        self.scores = None if config.weights is None else Scores(config.weights, config.real)

    def entries(self) -> list[tuple[str, Callable[[], tuple[Method, Row]]]]:
        """Return the name of every row, and what makes its method and tells its setting."""
        names = [name for name in (*METHODS, *PEERS) if not self.config.methods or name in self.config.methods]
        if self.config.target == "uncached" and MOVED not in self.config.methods:
            names = [name for name in names if name != MOVED]  # whose images are others by intent
        own = {name: lambda name=name: self.own(name) for name in METHODS}
        foreign = {name: lambda name=name: self.tune(name, PEERS[name]) for name in PEERS}
        return [(UNCACHED, lambda: (self.uncached, {})), *((name, (own | foreign)[name]) for name in names)]

    def own(self, name: str) -> tuple[Method, Row]:
        """Return a method that needs no tuning.

        Raises:
            ValueError: there is no such plan.
        """
        steps, speedup = self.steps, self.speedup
        if name == "fewer-steps":  # more steps than allowed where it does not divide: in its favour
            return Method(name, math.ceil(steps / speedup)), {"setting": f"{math.ceil(steps / speedup)} steps"}
        if name == "naive-feature-cache":
            setting = naive_feature_cache(DeltaCacheConfig(speedup=speedup, schedule="paper"))
            return Method(name, steps, attach=setting.attach), {"setting": "the paper's schedule"}
        if name in ("calibrated", MOVED):
            plan = self.plan()
            if name == MOVED:
                return self.moved(plan)
            told = {"setting": f"{plan.steps} steps"} if self.config.target == "exact" else {}
            told |= {"tuning_generations": plan.provenance.get("generations")}
            return Method(name, plan.steps, DeltaCacheConfig(plan=plan)), told
        schedule: Any = name
        return Method(name, steps, DeltaCacheConfig(speedup=speedup, schedule=schedule)), {}

    def plan(self) -> DeltaPlan:
        """Return the plan that was given, or the one that is shipped for this goal.

        Raises:
            ValueError: there is none.
        """
        if self.config.plan is not None:
            return DeltaPlan.load(self.config.plan)
        if self.config.target == "exact":
            return shipped_plan(self.config.model, budget=self.steps / self.speedup)
        return shipped_plan(self.config.model, speedup=self.speedup)

    def moved(self, plan: DeltaPlan) -> tuple[Method, Row]:
        """Return the uncached run of as many steps as the cost allows, spaced as the calibrated plan's were at first.

        Raises:
            ValueError: the plan has the scheduler's own steps.
        """
        share, steps = plan.provenance.get("even_in_lambda"), math.floor(self.steps / self.speedup)
        if share is None:
            raise ValueError("the plan has the scheduler's own steps")
        spacing = Spacing.of(self.sampler.pipe.scheduler, share)
        blocks = len(blocks_of(self.sampler.pipe.transformer))
        full = DeltaPlan.of(blocks, [None] * steps, **{spacing.argument: spacing.values(steps)})
        return Method(MOVED, steps, DeltaCacheConfig(plan=full)), {"setting": f"{steps} steps"}

    def draw_exact(self, state: dict[str, Any]) -> None:
        """Draw what counts as exact, once, if it is what is to be met; kept at once, because it takes long."""
        if self.config.target == "uncached":
            return
        many = Method("exact", self.config.reference_steps or EXACT * self.steps)
        for seed in self.seeds:
            if str(seed) not in state["exact"]:
                found, _ = draw_with_latents(many, self.sampler, self.run, seed, self.samples, self.config.batch_size)
                state["exact"][str(seed)] = found
                self.run.save(len(state["rows"]), state, keep=1)

    def tune(self, name: str, peer: Peer) -> tuple[Method, Row]:
        """Return a foreign cache with the setting that is best at the wanted cost.

        Every try is a real run on samples of its own. Among those that are fast enough, within 4 %, and not much
        faster, the highest PSNR wins; where none is, the nearest speed-up.
        """
        indices = range(min(TUNING_SAMPLES, self.samples, self.config.batch_size))
        reference = self.sampler.draw(TUNING_SEED, indices, steps=self.steps)
        outcomes: list[Outcome] = []

        def attempt(setting: Setting) -> float:
            cost, images = counted(Method(name, self.steps, attach=setting.attach), self.sampler, TUNING_SEED, indices)
            outcomes.append(Outcome(setting, self.full_macs / cost, psnr(images, reference).mean().item()))
            return outcomes[-1].speedup

        options = peer(self.sampler, self.steps, self.speedup)
        dials = [option for option in options if isinstance(option, Dial)]
        for option in options:
            left = self.config.tries - len(outcomes)
            if isinstance(option, Setting) and left > 0:
                attempt(option)
            elif isinstance(option, Dial) and left > 0:
                bisect(option, self.speedup, attempt, min(left, math.ceil(self.config.tries / len(dials))))
        best = self.best(outcomes)
        return Method(name, self.steps, attach=best.setting.attach), {
            "setting": ", ".join(
                f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}"
                for key, value in best.setting.knobs.items()
            ),
            "tries": len(outcomes),
            "tuning_generations": sum(1 / outcome.speedup for outcome in outcomes) * len(indices),
        }

    def best(self, outcomes: "list[Outcome]") -> "Outcome":
        """Return the outcome to compete with."""
        wanted = self.speedup
        near = [outcome for outcome in outcomes if SLOWER <= outcome.speedup / wanted <= 1 / SLOWER]
        if near:
            return max(near, key=lambda outcome: outcome.psnr)
        saving = [outcome for outcome in outcomes if outcome.speedup > 1.001] or outcomes
        return min(saving, key=lambda outcome: abs(math.log(outcome.speedup / wanted)))

    def row(self, name: str, enter: Callable[[], tuple[Method, Row]], state: dict[str, Any]) -> Row:
        """Return one method's figures; of a method that cannot be had, why."""
        row: Row = {"method": name, **dict.fromkeys(COLUMNS + JUDGED), "why": None}
        try:
            method, setting = enter()
            return row | setting | self.figures(method, state)
        except Exception as error:  # somebody else's code on a model it was not made for
            if name == UNCACHED:
                raise
            return row | {"why": " ".join(f"{error}".split()) or type(error).__name__}

    def figures(self, method: Method, state: dict[str, Any]) -> Row:
        """Draw all seeds with a method and measure it."""
        per_seed, all_images, costs, fidelity = [], [], [], []
        for seed in self.seeds:
            images, latents = draw_with_latents(
                method, self.sampler, self.run, seed, self.samples, self.config.batch_size
            )
            if method is self.uncached:
                state["drawn"][str(seed)] = [images, latents]
            per_seed.append(self.measure(method, images, latents, *state["drawn"][str(seed)]))
            if self.config.target == "exact":
                fidelity.append(psnr(images, state["exact"][str(seed)]))
                per_seed[-1]["psnr_exact_db"] = fidelity[-1].mean().item()
            elif method is not self.uncached:
                fidelity.append(psnr(images, state["drawn"][str(seed)][0]))
            batch = range(min(self.samples, self.config.batch_size))
            costs.append(self.full_macs / counted(method, self.sampler, seed, batch)[0])
            all_images.append(images)
        state["shown"][method.name] = all_images[0][:SHOWN]
        speedup = float(np.mean(costs))
        row: Row = {
            "cost_steps": self.steps / speedup,
            "mac_speedup": speedup,
            "wall_speedup": self.wall_speedup(method),
        }
        if fidelity:
            every = torch.cat(fidelity)
            row |= {"worst_psnr_db": every.min().item(), "share_below_30_db": (every < 30).double().mean().item()}
        for key in per_seed[0]:
            values = [figures[key] for figures in per_seed]
            row[key], half = mean_interval(values) if None not in values else (None, math.nan)
            if not math.isnan(half):
                row[f"{key}_ci"] = half
        if self.frechet is not None:
            row["frechet_distance"] = self.frechet.of(torch.cat(all_images))
        if self.scores is not None:
            uncached = torch.cat([state["drawn"][str(seed)][0] for seed in self.seeds])
            row |= self.scores.of(torch.cat(all_images), uncached, self.prompts())
        return row | {"samples": self.samples, "seeds": len(self.seeds)}

    def measure(self, method: Method, images: Tensor, latents: Tensor, uncached: Tensor, ended: Tensor) -> Row:
        """Return one seed's figures, as means over the samples; None where the reference would meet itself."""
        row: Row = dict.fromkeys(("psnr_db", "ssim", "latent_rel_l1"))
        if method is not self.uncached:
            row["psnr_db"] = psnr(images, uncached).mean().item()
            row["ssim"] = ssim(images, uncached).mean().item()
            row["latent_rel_l1"] = relative_l1(latents, ended).mean().item()
        if self.judge is not None:
            read = quality(images, None, self.sampler.labels(range(self.samples)), self.judge)
            row |= {key: read[key] for key in ("outline_accuracy", "texture_accuracy")}
        return row

    def prompts(self) -> list[str] | None:
        """Return the text of every picture of every seed; None of a model that draws classes."""
        asked = self.sampler.conditions
        one_seed = [asked[index % len(asked)] for index in range(self.samples)]
        return one_seed * len(self.seeds) if self.sampler.argument == "prompt" else None

    def wall_speedup(self, method: Method) -> float:
        """Return the median over alternating pairs of the uncached time ÷ the method's."""
        if method is self.uncached:
            return 1.0
        batch = range(min(self.samples, self.config.batch_size))
        other = replace(self.sampler, pipe=copy.copy(self.sampler.pipe))
        other.pipe.scheduler = copy.deepcopy(self.sampler.pipe.scheduler)  # a plan may move its steps
        # put on once and left on, as a user does, beside the one without
        with on_copy(other.pipe), method.on(other):
            return compare(
                lambda: self.sampler.draw(self.config.seed, batch, steps=self.steps),
                lambda: other.draw(self.config.seed, batch, steps=method.steps),
                repeats=self.config.repeats,
            ).ratio


@dataclass(frozen=True)
class Outcome:
    """What one setting of a foreign cache cost and gave."""

    setting: Setting
    speedup: float
    psnr: float


def bisect(dial: Dial, wanted: float, attempt: Callable[[Setting], float], tries: int) -> None:
    """Turn a dial, in equal ratios, to where ``attempt``, which returns the speed-up, comes closest to ``wanted``."""
    low, high = math.log(dial.low), math.log(dial.high)
    for _ in range(tries):
        middle = (low + high) / 2
        if attempt(dial.setting(math.exp(middle))) < wanted:
            low = middle
        else:
            high = middle


def flat(rows: list[Row]) -> dict[str, Any]:
    """Return the figures under names of method and column."""
    return {
        f"{row['method']}_{key}": value
        for row in rows
        for key, value in row.items()
        if isinstance(value, float) or (key in COLUMNS + JUDGED and row["why"] is None)
    }
