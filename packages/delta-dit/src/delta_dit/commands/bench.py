"""``delta-dit bench``: every way to sample for less, side by side in one run, at the same number of MACs.

Fidelity is measured against the uncached images of the same seeds, and with ``--target exact`` also against those of
very many steps. On the embedded models the judge reads outline and texture, and a Fréchet distance compares all seeds'
images with real ones in DINOv2's features.
"""

import copy
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from delta_dit.adapters import blocks_of
from delta_dit.commands.bench_report import print_rows, report
from delta_dit.commands.comparisons import CALIBRATED, FIDELITY, Row, name_of, with_comparisons
from delta_dit.commands.feature_cache import features_of
from delta_dit.commands.foreign import on_copy
from delta_dit.commands.frechet import Frechet
from delta_dit.commands.methods import EXACT, UNCACHED, Method, counted, draw_with_latents, quality, ssim
from delta_dit.commands.models import EMBEDDED, Sampler, conditions, load_sampler, only_images
from delta_dit.commands.options import ABLATION, ANNEALED, METHODS, MOVED, BenchConfig
from delta_dit.commands.peers import PEERS
from delta_dit.commands.scores import Scores
from delta_dit.commands.tuning import Ground, Outcome, Tuning
from delta_dit.config import DeltaCacheConfig
from delta_dit.delta_plan import DeltaPlan
from delta_dit.embedded.judge import load_judge
from delta_dit.embedded.plans import shipped_plan
from delta_dit.moved_steps import Spacing
from delta_dit.planning.fidelity import psnr, relative_l1
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
REFERENCE = 20  # times the reference's steps count as exact
SHOWN = 12  # pictures per method in the report


def main(config: BenchConfig) -> None:
    """Draw, tune, judge, time, and write the rows and the report; a resumed run keeps the rows it has."""
    plans = [DeltaPlan.load(path) for path in config.plan]  # what is wrong with them is told at once
    sampler = load_sampler(config.model, random_weights=config.random_weights, dtype=config.dtype)
    only_images(sampler, "bench")
    sampler = replace(sampler, conditions=conditions(config, sampler))
    steps = config.steps or sampler.steps
    for budget in config.budget:
        check_range("budget", budget, 1, steps)
    for speedup in config.speedup:
        check_range("speedup", speedup, 1, steps)
    for plan in plans:
        blocks = len(blocks_of(sampler.pipe.transformer))
        DeltaCacheConfig(plan=plan).plan_for(plan.steps if config.target == "exact" else steps, blocks)
    with Run(config, "delta-dit") as run:
        sampler.pipe.to(run.accelerator.device)
        contest = Contest(config, sampler, run)
        ssim(torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 16, 16))  # missing packages are missed now, not after an hour
        # rows, the uncached and the exact images and latents by seed, by row a few images, and the PSNR of each sample
        state: Any
        done, state = run.restore() or (0, {"rows": [], "drawn": {}, "exact": {}, "shown": {}, "psnr": {}})
        contest.draw_exact(state)
        entries = contest.entries()
        for number, entry in enumerate(run.progress(entries[done:], desc="bench"), done + 1):
            state["rows"].append(contest.row(entry, state))
            run.save(number, state, keep=1)
        rows = with_comparisons(state["rows"], state["psnr"], FIDELITY[config.target])
        if run.accelerator.is_main_process:
            for path in (run.folder / "rows.json", config.json):
                if path is not None:
                    write_json(path, rows)
            page = report(rows, state["shown"], config, contest.steps, contest.samples)
            page.write(run.folder)
            print_rows(rows, f"{config.model}, {contest.steps} steps")
        run.finish(flat(rows))


@dataclass(frozen=True)
class Entry:
    """A row to come: a method, and what it may cost in full steps; of the references that is None."""

    method: str
    cost: float | None = None


@dataclass
class Contest:
    """What all rows of a comparison share."""

    config: BenchConfig
    sampler: Sampler
    run: Run

    def __post_init__(self) -> None:
        config = self.config
        self.steps = config.steps or self.sampler.steps
        self.costs = list(config.budget) or [self.steps / speedup for speedup in config.speedup]
        self.blocks = len(blocks_of(self.sampler.pipe.transformer))
        self.judge = load_judge() if config.model in EMBEDDED else None
        self.samples = config.samples or (400 if self.judge else 1)
        self.seeds = range(config.seed, config.seed + config.seeds)
        self.uncached = Method(UNCACHED, self.steps)
        self.reference = None if config.target == "uncached" else (config.reference_steps or REFERENCE * self.steps)
        # it draws: so labels that the model has not are told before real pictures of them are looked for
        self.tuning = Tuning(self.sampler, self.steps, self.reference, config.tuning, config.batch_size)
        labels = self.sampler.labels(range(self.samples)).repeat(config.seeds) if self.judge else None
        self.frechet = None if labels is None else Frechet(labels)
        self.scores = None if config.weights is None else Scores(config.weights, config.real)

    def entries(self) -> list[Entry]:
        """Return what the rows will be: the references, then cost by cost."""
        chosen = self.config.methods
        names = [name for name in (*METHODS, ANNEALED, *PEERS, *ABLATION) if not chosen or name in chosen]
        if not chosen:
            left_out = {*ABLATION, *([MOVED] if self.reference is None else [])}  # whose images are others by intent
            names = [name for name in names if name not in left_out]
        references = [Entry(UNCACHED), *([] if self.reference is None else [Entry(EXACT)])]
        return [*references, *(Entry(name, cost) for cost in self.costs for name in names)]

    def enter(self, entry: Entry) -> tuple[Method, Row]:
        """Return a row's method, and its setting.

        Raises:
            ValueError: there is no such plan, or none at this cost.
        """
        name, cost = entry.method, entry.cost
        if cost is None:
            return (self.uncached if name == UNCACHED else Method(EXACT, self.reference or 0)), {}
        if name in PEERS:
            return tuned(*self.tuning.of_peer(name, PEERS[name], self.grounds(cost), cost))
        if name == ANNEALED:
            return tuned(*self.tuning.of_mask(name, self.grounds(cost), cost))
        if name in ABLATION:
            return self.ablated(name, cost)
        return self.own(name, cost)

    def own(self, name: str, cost: float) -> tuple[Method, Row]:
        """Return a method that is not tuned here."""
        if name == "fewer-steps":  # more steps than allowed where it does not divide: in its favour
            return Method(name, math.ceil(cost - 1e-9)), {"setting": f"{math.ceil(cost - 1e-9)} steps"}
        if name == MOVED:
            spacing = self.spacing(self.plan(name, cost))
            if spacing is None:
                raise ValueError("the plan has the scheduler's own steps")
            return Ground(math.floor(cost), spacing).method(name), {"setting": f"{math.floor(cost)} steps"}
        if name == "naive-feature-cache":
            return self.ablated("paper-held-features", cost, name)
        if name != CALIBRATED:
            return Method(name, self.steps, self.schedule(name, cost)), {}
        plan = self.plan(name, cost)
        told = {"setting": f"{plan.steps} steps"} if plan.moved else {}
        return Method(name, plan.steps, DeltaCacheConfig(plan=plan)), told | tuned_on(plan)

    def ablated(self, name: str, cost: float, shown: str | None = None) -> tuple[Method, Row]:
        """Return a plan with another forecast, or one that keeps what the blocks give in place of Δ."""
        kind, forecast, *features = name.split("-")
        plan = with_forecast(self.plan(kind, cost), forecast)
        if not features:
            return Method(name, plan.steps, DeltaCacheConfig(plan=plan)), tuned_on(plan)
        return Method(shown or name, plan.steps, attach=features_of(plan), moved=plan.moved), tuned_on(plan)

    def plan(self, kind: str, cost: float) -> DeltaPlan:
        """Return the plan of a fixed schedule, or for all else the calibrated one: given, or shipped for this goal.

        Raises:
            ValueError: there is none.
        """
        if kind in ("paper", "generic"):
            return self.schedule(kind, cost).plan_for(self.steps, self.blocks)
        if self.config.plan:
            return DeltaPlan.load(self.config.plan[self.costs.index(cost)])
        if self.reference is not None:
            return shipped_plan(self.config.model, budget=cost)
        return shipped_plan(self.config.model, speedup=self.steps / cost)

    def schedule(self, kind: Any, cost: float) -> DeltaCacheConfig:
        """Return the cache with a fixed schedule."""
        return DeltaCacheConfig(speedup=self.steps / cost, schedule=kind)

    def spacing(self, plan: DeltaPlan) -> Spacing | None:
        """Return how a calibrated plan's steps lay before they were moved one by one."""
        share = plan.provenance.get("even_in_lambda")
        return None if share is None else Spacing.of(self.sampler.pipe.scheduler, share)

    def grounds(self, cost: float) -> list[Ground]:
        """Return the steps that others may take: the scheduler's, and near to exact images those that ours has, too."""
        own = [Ground(self.steps)]
        try:
            plan = self.plan(CALIBRATED, cost)
        except ValueError:
            return own
        spacing = self.spacing(plan)
        return own if self.reference is None or spacing is None else [*own, Ground(plan.steps, spacing)]

    def draw_exact(self, state: dict[str, Any]) -> None:
        """Draw what counts as exact, once, if it is what is to be met; kept at once, because it takes long."""
        if self.reference is None:
            return
        for seed in self.seeds:
            if str(seed) not in state["exact"]:
                state["exact"][str(seed)] = self.draw(Method(EXACT, self.reference), seed)
                self.run.save(len(state["rows"]), state, keep=1)

    def draw(self, method: Method, seed: int) -> list[Tensor]:
        """Return a seed's images and latents."""
        return [*draw_with_latents(method, self.sampler, self.run, seed, self.samples, self.config.batch_size)]

    def row(self, entry: Entry, state: dict[str, Any]) -> Row:
        """Return one method's figures; of a method that cannot be had, why."""
        row: Row = {"method": entry.method, "budget": entry.cost, **dict.fromkeys(COLUMNS + JUDGED), "why": None}
        try:
            method, setting = self.enter(entry)
            return row | setting | self.figures(method, entry, state)
        except Exception as error:  # somebody else's code on a model it was not made for
            if entry.cost is None:
                raise
            return row | {"why": " ".join(f"{error}".split()) or type(error).__name__}

    def figures(self, method: Method, entry: Entry, state: dict[str, Any]) -> Row:
        """Draw all seeds with a method and measure it."""
        per_seed, all_images, costs, fidelity = [], [], [], []
        for seed in self.seeds:
            exact = state["exact"].get(str(seed))
            images, latents = exact if method.name == EXACT else self.draw(method, seed)
            if method.name == UNCACHED:
                state["drawn"][str(seed)] = [images, latents]
            per_seed.append(self.measure(method, images, latents, *state["drawn"][str(seed)]))
            if exact is not None and method.name != EXACT:
                fidelity.append(psnr(images, exact[0]))
                per_seed[-1]["psnr_exact_db"] = fidelity[-1].mean().item()
            elif exact is None and method.name != UNCACHED:
                fidelity.append(psnr(images, state["drawn"][str(seed)][0]))
            costs.append(self.cost(method, seed))
            all_images.append(images)
        state["shown"][name_of(entry.method, entry.cost)] = all_images[0][:SHOWN]
        cost = float(np.mean(costs))
        row: Row = {
            "cost_steps": cost,
            "mac_speedup": self.steps / cost,
            "wall_speedup": self.wall_speedup(method),
        }
        if fidelity:
            every = torch.cat(fidelity)
            row |= {"worst_psnr_db": every.min().item(), "share_below_30_db": (every < 30).double().mean().item()}
            state["psnr"][name_of(entry.method, entry.cost)] = every
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

    def cost(self, method: Method, seed: int) -> float:
        """Return what a sample costs in full steps, counted on a batch of a seed."""
        if method.attach is None and method.cache is None:
            return float(method.steps)
        batch = range(min(self.samples, self.config.batch_size))
        return counted(method, self.sampler, seed, batch)[0] / self.tuning.step_macs

    def measure(self, method: Method, images: Tensor, latents: Tensor, uncached: Tensor, ended: Tensor) -> Row:
        """Return one seed's figures, as means over the samples; None where the reference would meet itself."""
        row: Row = dict.fromkeys(("psnr_db", "ssim", "latent_rel_l1"))
        if method.name != UNCACHED:
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

    def wall_speedup(self, method: Method) -> float | None:
        """Return the median over alternating pairs of the uncached time ÷ the method's; nobody waits for the exact."""
        if method.name in (UNCACHED, EXACT):
            return 1.0 if method.name == UNCACHED else None
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


def tuned(outcome: Outcome, generations: float) -> tuple[Method, Row]:
    """Return what a search found, and what it says of itself."""
    return outcome.method, {"setting": outcome.setting, "tuning_generations": generations}


def tuned_on(plan: DeltaPlan) -> Row:
    """Return how much was drawn for a plan; nothing for one that is not calibrated."""
    return {"tuning_generations": plan.provenance.get("generations")}


def with_forecast(plan: DeltaPlan, forecast: str) -> DeltaPlan:
    """Return a plan whose reuses are all held, or all linear; "fitted" leaves it as it is."""
    if forecast == "fitted":
        return plan
    order = int(forecast == "linear")
    reuses = [reuse and replace(reuse, order=order, weights=None) for reuse in plan.reuses]
    moved: Any = {} if plan.moved is None else {plan.moved[0]: plan.moved[1]}
    return DeltaPlan.of(plan.blocks, reuses, levels=plan.levels, provenance=plan.provenance, **moved)


def flat(rows: list[Row]) -> dict[str, Any]:
    """Return the figures under names of method and column, and of the cost where there are several."""
    several = len({row["budget"] for row in rows} - {None}) > 1
    return {
        f"{name_of(row['method'], row['budget'] if several else None)}_{key}".replace(" ", "_"): value
        for row in rows
        for key, value in row.items()
        if isinstance(value, float) or (key in COLUMNS + JUDGED and row["why"] is None)
    }
