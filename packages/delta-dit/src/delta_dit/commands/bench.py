"""``delta-dit bench``: every way to sample for less, side by side in one run, at the same number of MACs.

Fidelity is measured against the uncached images of the same seeds. On the embedded models the judge reads outline and
texture, and a Fréchet distance compares all seeds' images with real ones in DINOv2's features.
"""

import copy
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure as Plot
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from delta_dit.adapters import blocks_of
from delta_dit.commands.methods import (
    Method,
    counted,
    draw_with_latents,
    frechet_distance,
    macs,
    psnr,
    quality,
    relative_l1,
    ssim,
)
from delta_dit.commands.models import EMBEDDED, Sampler, conditions, load_sampler
from delta_dit.commands.options import METHODS, BenchConfig
from delta_dit.commands.peers import PEERS, TUNING_SEED, Dial, Peer, Setting, naive_feature_cache, on_copy
from delta_dit.commands.scores import Scores
from delta_dit.config import DeltaCacheConfig
from delta_dit.delta_plan import DeltaPlan
from delta_dit.embedded.judge import load_judge
from delta_dit.embedded.plans import shipped_plan
from frugal_shared.checkpoint import write_json
from frugal_shared.datasets import TexturedDigits
from frugal_shared.errors import check_range
from frugal_shared.evaluation import mean_interval
from frugal_shared.report import Figure, Report, grid
from frugal_shared.run import Run
from frugal_shared.timing import compare
from frugal_shared.weights import DINOV2_VITS14, dinov2_vits14

UNCACHED = "uncached"
COLUMNS = ("mac_speedup", "wall_speedup", "psnr_db", "ssim", "latent_rel_l1")
JUDGED = ("outline_accuracy", "texture_accuracy", "frechet_distance")
SLOWER = 0.96  # of the wanted speed-up: what a foreign cache may take more, because it cannot always hit it
TUNING_SAMPLES = 8  # at most: images that the settings of a foreign cache are compared on
FEATURE_PIXELS = 70  # side of the images that DINOv2 sees; 5 × 5 patches
REAL_SEED = 3000  # of the real images in the Fréchet distance, other than the training's
SHOWN = 12  # pictures per method in the report

Row = dict[str, Any]


def bench(config: BenchConfig) -> None:
    """Draw, tune, judge, time, and write the rows and the report; a resumed run keeps the rows it has."""
    plan = None if config.plan is None else DeltaPlan.load(config.plan)  # what is wrong with it is told at once
    sampler = load_sampler(config.model, random_weights=config.random_weights)
    sampler = replace(sampler, conditions=conditions(config, sampler))
    check_range("speedup", config.speedup, 1, config.steps or sampler.steps)
    if plan is not None:
        blocks = len(blocks_of(sampler.pipe.transformer))
        DeltaCacheConfig(plan=plan).plan_for(config.steps or sampler.steps, blocks)
    with Run(config, "delta-dit") as run:
        sampler.pipe.to(run.accelerator.device)
        contest = Contest(config, sampler, run)
        ssim(torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 16, 16))  # missing packages are missed now, not after an hour
        state: Any  # rows, the uncached images and latents by seed, a few images by method
        done, state = run.restore() or (0, {"rows": [], "drawn": {}, "shown": {}})
        entries = contest.entries()
        for number, (name, enter) in enumerate(run.progress(entries[done:], desc="bench"), done + 1):
            state["rows"].append(contest.row(name, enter, state))
            run.save(number, state, keep=1)
        if run.accelerator.is_main_process:
            for path in (run.folder / "rows.json", config.json):
                if path is not None:
                    write_json(path, state["rows"])
            report(state["rows"], state["shown"], contest).write(run.folder)
            show(state["rows"], f"{config.model}, {contest.steps} steps, {config.speedup:g}×")
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
        own = {name: lambda name=name: self.own(name) for name in METHODS}
        foreign = {name: lambda name=name: self.tune(name, PEERS[name]) for name in PEERS}
        return [(UNCACHED, lambda: (self.uncached, {})), *((name, (own | foreign)[name]) for name in names)]

    def own(self, name: str) -> tuple[Method, Row]:
        """Return a method that needs no tuning.

        Raises:
            ValueError: there is no such plan.
        """
        steps, speedup = self.steps, self.config.speedup
        if name == "fewer-steps":  # more steps than allowed where it does not divide: in its favour
            return Method(name, math.ceil(steps / speedup)), {"setting": f"{math.ceil(steps / speedup)} steps"}
        if name == "naive-feature-cache":
            setting = naive_feature_cache(DeltaCacheConfig(speedup=speedup, schedule="paper"))
            return Method(name, steps, attach=setting.attach), {"setting": "the paper's schedule"}
        if name == "calibrated":
            path = self.config.plan
            plan = shipped_plan(self.config.model, speedup) if path is None else DeltaPlan.load(path)
            return Method(name, steps, DeltaCacheConfig(plan=plan)), {}
        schedule: Any = name
        return Method(name, steps, DeltaCacheConfig(speedup=speedup, schedule=schedule)), {}

    def tune(self, name: str, peer: Peer) -> tuple[Method, Row]:
        """Return a foreign cache with the setting that is best at the wanted cost.

        Every trial is a real run on samples of its own. Among those that are fast enough, within 4 %, and not much
        faster, the highest PSNR wins; where none is, the nearest speed-up.
        """
        indices = range(min(TUNING_SAMPLES, self.samples, self.config.batch_size))
        reference = self.sampler.draw(TUNING_SEED, indices, steps=self.steps)
        trials: list[Trial] = []

        def attempt(setting: Setting) -> float:
            cost, images = counted(Method(name, self.steps, attach=setting.attach), self.sampler, TUNING_SEED, indices)
            trials.append(Trial(setting, self.full_macs / cost, psnr(images, reference).mean().item()))
            return trials[-1].speedup

        options = peer(self.sampler, self.steps, self.config.speedup)
        dials = [option for option in options if isinstance(option, Dial)]
        for option in options:
            left = self.config.tries - len(trials)
            if isinstance(option, Setting) and left > 0:
                attempt(option)
            elif isinstance(option, Dial) and left > 0:
                bisect(option, self.config.speedup, attempt, min(left, math.ceil(self.config.tries / len(dials))))
        best = self.best(trials)
        return Method(name, self.steps, attach=best.setting.attach), {
            "setting": ", ".join(
                f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}"
                for key, value in best.setting.knobs.items()
            ),
            "tries": len(trials),
        }

    def best(self, trials: "list[Trial]") -> "Trial":
        """Return the trial to compete with."""
        wanted = self.config.speedup
        near = [trial for trial in trials if SLOWER <= trial.speedup / wanted <= 1 / SLOWER]
        if near:
            return max(near, key=lambda trial: trial.psnr)
        saving = [trial for trial in trials if trial.speedup > 1.001] or trials
        return min(saving, key=lambda trial: abs(math.log(trial.speedup / wanted)))

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
        per_seed, all_images, costs = [], [], []
        for seed in self.seeds:
            images, latents = draw_with_latents(
                method, self.sampler, self.run, seed, self.samples, self.config.batch_size
            )
            if method is self.uncached:
                state["drawn"][str(seed)] = [images, latents]
            per_seed.append(self.measure(method, images, latents, *state["drawn"][str(seed)]))
            batch = range(min(self.samples, self.config.batch_size))
            costs.append(self.full_macs / counted(method, self.sampler, seed, batch)[0])
            all_images.append(images)
        state["shown"][method.name] = all_images[0][:SHOWN]
        row: Row = {"mac_speedup": float(np.mean(costs)), "wall_speedup": self.wall_speedup(method)}
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
        # put on once and left on, as a user does, beside the one without
        with on_copy(other.pipe), method.on(other):
            return compare(
                lambda: self.sampler.draw(self.config.seed, batch, steps=self.steps),
                lambda: other.draw(self.config.seed, batch, steps=method.steps),
                repeats=self.config.repeats,
            ).ratio


@dataclass(frozen=True)
class Trial:
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


class Frechet:
    """Fréchet distance to real textured digits with the same labels, in the features of DINOv2 ViT-S/14."""

    def __init__(self, labels: Tensor) -> None:
        self.model = dinov2_vits14(FEATURE_PIXELS)
        self.real = self.features(real_images(labels))

    def of(self, images: Tensor) -> float | None:
        """Return the distance of images ``(N, 3, H, W)`` in [0, 1]; None of a single one."""
        return frechet_distance(self.features(images), self.real) if len(images) > 1 else None

    @torch.no_grad()
    def features(self, images: Tensor) -> np.ndarray:
        """Return the class tokens ``(N, 384)`` in float64."""
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (DINOV2_VITS14.mean, DINOV2_VITS14.std))
        size = [FEATURE_PIXELS] * 2
        batches = [F.interpolate(b, size, mode="bicubic", antialias=True) for b in images.split(100)]
        return torch.cat([self.model((batch - mean) / std) for batch in batches]).double().numpy()


def real_images(labels: Tensor) -> Tensor:
    """Return one real textured digit for each label ``(N,)``, in another order: ``(N, 3, 32, 32)`` in [0, 1]."""
    missing = torch.bincount(labels, minlength=TexturedDigits.num_classes)
    found: list[Tensor] = []
    for index in itertools.count():
        if not missing.any():
            return torch.stack(found)
        for image, label in zip(*TexturedDigits("train", REAL_SEED).batch(index, 500)):
            if missing[label]:
                missing[label] -= 1
                found.append(image)
    raise AssertionError


def flat(rows: list[Row]) -> dict[str, Any]:
    """Return the figures under names of method and column."""
    return {
        f"{row['method']}_{key}": value
        for row in rows
        for key, value in row.items()
        if isinstance(value, float) or (key in COLUMNS + JUDGED and row["why"] is None)
    }


def shown(rows: list[Row]) -> list[Row]:
    """Return rows under the headings of the tables, without the columns that no row fills."""
    titles = {"method": "method", "mac_speedup": "MACs ×", "wall_speedup": "wall ×", "psnr_db": "PSNR dB"}
    titles |= {"psnr_db_ci": "±", "ssim": "SSIM", "latent_rel_l1": "latent L1", "outline_accuracy": "outline right"}
    titles |= {"texture_accuracy": "texture right", "frechet_distance": "Fréchet"}
    titles |= {"fid": "FID", "inception_score": "IS", "clip_score": "CLIP score", "setting": "setting", "why": "why"}
    filled = [key for key in titles if any(row.get(key) is not None for row in rows)]
    return [{titles[key]: row.get(key) for key in filled} for row in rows]


def show(rows: list[Row], title: str) -> None:
    """Print the rows as a table."""
    table = Table(title=title)
    for name in shown(rows)[0]:
        table.add_column(name, justify="left" if name in ("method", "setting", "why") else "right")
    for row in shown(rows):
        values = ("" if v is None else f"{v:.4g}" if isinstance(v, float) else escape(str(v)) for v in row.values())
        table.add_row(*values)
    Console().print(table)


def report(rows: list[Row], images: dict[str, Tensor], contest: Contest) -> Report:
    """Return the report: pictures, table, plot."""
    config = contest.config
    subtitle = f"{config.model}, {contest.steps} steps: every way at the same cost"
    page = Report(f"{config.speedup:g}× for the same pictures", subtitle)
    ranked = sorted((row for row in rows if row["psnr_db"] is not None), key=lambda row: -row["psnr_db"])
    pictured = [UNCACHED, *(row["method"] for row in ranked[:1]), *(row["method"] for row in ranked[-1:])]
    page.figures([Figure(tiles(images[name]), caption(name, rows)) for name in dict.fromkeys(pictured)])
    counts = f"{contest.samples} samples of each of {config.seeds} seeds; fidelity to the uncached."
    page.table(shown(rows), counts)
    page.command(f"delta-dit bench --model {config.model} --steps {contest.steps} --speedup {config.speedup:g}")
    if ranked:
        page.section("Fidelity at the same cost")
        page.figures([Figure(plot(ranked), "PSNR to the uncached images, and its 95 % interval over the seeds.")])
    page.note(
        "± is half of a 95 % interval over the seeds. Every foreign cache was tuned to this cost on other samples: of "
        f"up to {config.tries} settings, the best PSNR among those within 4 % of the wanted speed-up. The Fréchet "
        f"distance is one of {contest.samples * config.seeds} images to as many real ones in 384 features of DINOv2 "
        f"({DINOV2_VITS14.provenance}): of so few it is too large, for all rows alike. Wall times are medians of "
        "alternating pairs on this machine."
    )
    return page


def tiles(images: Tensor) -> Any:
    """Return pictures side by side, small ones enlarged."""
    return grid(images.permute(0, 2, 3, 1).numpy(), 6, scale=max(1, 96 // images.shape[-1]))


def caption(name: str, rows: list[Row]) -> str:
    """Return what a row's pictures cost and how close they are."""
    row = next(row for row in rows if row["method"] == name)
    fidelity = "" if row["psnr_db"] is None else f", {row['psnr_db']:.1f} dB to the uncached"
    return f"{name}: {row['mac_speedup']:.2f}× fewer MACs{fidelity}."


def plot(rows: list[Row]) -> Plot:
    """Draw one bar per method, the best on top."""
    figure = Plot(figsize=(7, 0.35 * len(rows) + 0.8), layout="constrained")
    axes = figure.subplots()
    axes.barh(
        [f"{row['method']} ({row['mac_speedup']:.2f}×)" for row in reversed(rows)],
        [row["psnr_db"] for row in reversed(rows)],
        xerr=[row.get("psnr_db_ci", 0.0) for row in reversed(rows)],
        color=["C0" if row["method"] in METHODS else "C7" for row in reversed(rows)],
    )
    axes.set_xlabel("PSNR dB")
    return figure
