"""``delta-dit analyze``: the paper's investigation (§3) on any model: which blocks draw what, and when?

The paper says that front blocks draw the outline and rear blocks the detail. Here the outline is what lies in the low
spatial frequencies of the picture and the detail what lies in the high ones. Two experiments:

- *one reuse*: a single step reuses the Δ of one range of blocks, all else is full; heat maps of range × step;
- *steady reuse*: one range is reused at every other, or at three of four steps.

On the embedded models the judge also reads outline and texture.
"""

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure as Plot
from torch import Tensor

from delta_dit.adapters import blocks_of
from delta_dit.attach import transformers_of
from delta_dit.commands.methods import Method, draw_all
from delta_dit.commands.models import EMBEDDED, load_sampler, only_images
from delta_dit.commands.options import AnalyzeConfig
from delta_dit.config import DeltaCacheConfig
from delta_dit.delta_plan import DeltaPlan, Range, Reuse
from delta_dit.embedded.judge import Judge, load_judge
from frugal_shared.report import Figure, Report
from frugal_shared.run import Run
from frugal_shared.writing import write_json

CUTOFF = 0.25  # of the Nyquist frequency: below it lies all that an 8×8 outline holds on 32×32 pixels
INTERVALS = (2, 4)  # of steady reuse
HEAT_MAPS = {  # what is drawn of one reuse: title of the map, and its caption
    "low_error": ("error in the outline (low frequencies)", "One reuse: the outline."),
    "high_error": ("error in the detail (high frequencies)", "One reuse: the detail."),
    "outline_accuracy": ("pictures whose digit the judge reads", "One reuse: the outline, as the judge reads it."),
    "texture_accuracy": ("pictures whose texture the judge reads", "One reuse: the texture, as the judge reads it."),
}


def main(config: AnalyzeConfig) -> None:
    """Run both experiments; write ``analysis.json``, ``rows.json``, the results and the report."""
    sampler = load_sampler(config.model, random_weights=config.random_weights, dtype=config.dtype)
    only_images(sampler, "analyze")
    judge = load_judge() if config.model in EMBEDDED else None
    steps = sampler.steps if config.steps is None else config.steps
    blocks = len(blocks_of(transformers_of(sampler.pipe)[0]))
    ranges = split(blocks, min(config.ranges, blocks))
    with Run(config, "delta-dit") as run:
        sampler.pipe.to(run.accelerator.device)

        def drawn(name: str, plan: DeltaPlan | None) -> Tensor:
            cache = None if plan is None else DeltaCacheConfig(plan=plan)
            return draw_all(Method(name, steps, cache), sampler, run, config.seed, config.samples, config.batch_size)

        reference = drawn("uncached", None)
        labels = sampler.labels(range(config.samples)) if judge is not None else None
        maps = {key: np.full((len(ranges), steps), np.nan) for key in HEAT_MAPS if judge is not None or "error" in key}
        for row, blocks_reused in enumerate(ranges):
            for step in range(1, steps):
                images = drawn(f"{span(blocks_reused)} step {step}", one_reuse(steps, blocks, blocks_reused, step))
                measured = damage(images, reference, labels, judge)
                for key, values in maps.items():
                    values[row, step] = measured[key]
        steady = []
        for interval in INTERVALS:
            for blocks_reused in ranges:
                images = drawn(f"{span(blocks_reused)} N={interval}", steadily(steps, blocks, blocks_reused, interval))
                steady.append({"blocks": span(blocks_reused), "interval": interval})
                steady[-1] |= damage(images, reference, labels, judge)
        if run.accelerator.is_main_process:
            once = {key: values[:, 1:].tolist() for key, values in maps.items()}  # nothing is there to reuse at step 0
            analysis = {"ranges": ranges, "once": once, "steady": steady}
            write_json(run.folder / "analysis.json", analysis)
            write_json(run.folder / "rows.json", steady)
            report(config, ranges, maps, steady).write(run.folder)
        run.finish(verdict(steady, ranges))


def split(blocks: int, count: int) -> list[Range]:
    """Return ``count`` neighbouring ranges that cover all blocks, as equal as can be."""
    edges = [round(i * blocks / count) for i in range(count + 1)]
    return list(pairwise(edges))


def span(blocks: Range) -> str:
    """Return a range as people count it: first to last block."""
    return f"{blocks[0]}–{blocks[1] - 1}"


def one_reuse(steps: int, blocks: int, blocks_reused: Range, step: int) -> DeltaPlan:
    """Return the plan that reuses one range at one step."""
    return DeltaPlan.of(blocks, [Reuse(*blocks_reused) if i == step else None for i in range(steps)])


def steadily(steps: int, blocks: int, blocks_reused: Range, interval: int) -> DeltaPlan:
    """Return the plan that reuses one range at all but every ``interval``-th step."""
    return DeltaPlan.of(blocks, [Reuse(*blocks_reused) if i % interval else None for i in range(steps)])


def band_errors(images: Tensor, reference: Tensor) -> tuple[float, float]:
    """Return ‖error‖ / ‖reference‖ in the low and in the high spatial frequencies (the mean colour left out).

    Args:
        images: ``(B, C, H, W)``.
        reference: of the same shape.
    """
    height, width = images.shape[-2:]
    y, x = torch.fft.fftfreq(height)[:, None] * 2, torch.fft.fftfreq(width)[None] * 2  # in units of Nyquist
    radius = (y.square() + x.square()).sqrt()
    error, whole = (torch.fft.fft2(value.double()).abs().square() for value in (images - reference, reference))
    bands = (radius > 0) & (radius <= CUTOFF), radius > CUTOFF
    low, high = ((error[..., band].sum() / whole[..., band].sum()).sqrt().item() for band in bands)
    return low, high


def damage(images: Tensor, reference: Tensor, labels: Tensor | None, judge: Judge | None) -> dict[str, float]:
    """Return what a plan did to the outline and to the detail."""
    low, high = band_errors(images, reference)
    measured = {"low_error": low, "high_error": high, "high_to_low": high / low}
    if judge is not None and labels is not None:
        outline, texture = judge.reads(images, labels)
        measured |= {
            "outline_accuracy": outline.double().mean().item(),
            "texture_accuracy": texture.double().mean().item(),
        }
    return measured


def verdict(steady: list[dict[str, Any]], ranges: list[Range]) -> dict[str, float]:
    """Return the claim in numbers: error in the detail ÷ error in the outline, for front and rear blocks.

    Where front blocks draw the outline and rear blocks the detail, the ratio is larger for the rear.
    """
    first, last = span(ranges[0]), span(ranges[-1])
    rows = {row["blocks"]: row for row in steady if row["interval"] == INTERVALS[0]}
    return {
        "front_high_to_low": rows[first]["high_to_low"],
        "rear_high_to_low": rows[last]["high_to_low"],
        "front_low_error": rows[first]["low_error"],
        "rear_low_error": rows[last]["low_error"],
        "front_high_error": rows[first]["high_error"],
        "rear_high_error": rows[last]["high_error"],
    }


def report(
    config: AnalyzeConfig, ranges: list[Range], maps: dict[str, np.ndarray], steady: list[dict[str, Any]]
) -> Report:
    """Return the report: heat maps, then the table."""
    page = Report(
        "Which blocks draw the outline?", f"{config.model}: what reusing a range of blocks does to the picture"
    )
    page.figures([Figure(heat_map(ranges, values, key), HEAT_MAPS[key][1]) for key, values in maps.items()])
    page.table(steady, f"Steady reuse of one range, {config.samples} samples; errors relative to the uncached picture.")
    page.command(f"delta-dit analyze --model {config.model} --samples {config.samples} --seed {config.seed}")
    return page


def heat_map(ranges: list[Range], values: np.ndarray, key: str) -> Plot:
    """Draw values ``(ranges, steps)``, errors in decibels: range upwards, step to the right."""
    plot = Plot(figsize=(6, 2.6), layout="constrained")
    axes = plot.subplots()
    error = key.endswith("error")
    shown = 20 * np.log10(np.where(values > 0, values, np.nan)) if error else 100 * values
    image = axes.imshow(shown, origin="lower", aspect="auto", cmap="viridis" if error else "viridis_r")
    axes.set(title=HEAT_MAPS[key][0], xlabel="sampling step (noise to the left)", ylabel="blocks reused")
    axes.set_yticks(range(len(ranges)), [span(blocks) for blocks in ranges])
    plot.colorbar(image, label="dB" if error else "%")
    return plot
