"""``delta-dit demo``: the same seeds uncached, with fewer steps, and with Δ-DiT on several schedules, at one cost."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.figure import Figure as Plot
from PIL import Image
from safetensors.torch import save
from torch import Tensor

from delta_dit.adapters import blocks_of
from delta_dit.commands.methods import Method, draw_all, macs, psnr, quality, to_bytes
from delta_dit.commands.models import Sampler, load_sampler
from delta_dit.commands.options import DemoConfig
from delta_dit.config import DeltaCacheConfig
from delta_dit.delta_plan import DeltaPlan, Reuse
from delta_dit.embedded.judge import load_judge
from delta_dit.embedded.plans import shipped_plan
from frugal_shared.checkpoint import write_bytes
from frugal_shared.report import Claim, Figure, Report, grid
from frugal_shared.run import Run
from frugal_shared.timing import compare

UNCACHED, FEWER, PAPER = "uncached", "fewer steps", "Δ-DiT, paper's schedule"
OURS, CALIBRATED = "Δ-DiT, sensitive steps full", "Δ-DiT, calibrated"
SHOWN = 12  # pictures per method in the report
TIMED = 10  # images of a timed draw: the demo would else spend half its time on timing


def demo(config: DemoConfig) -> None:
    """Draw, judge, time, and write the results, the samples and the report."""
    sampler = load_sampler("demo")
    judge = load_judge()
    with Run(config, "delta-dit") as run:
        sampler.pipe.to(run.accelerator.device)
        rows, images = [], {}
        compared = methods(config)
        full = macs(compared[0], sampler)
        for method in compared:
            drawn = draw_all(method, sampler, run, config.seed, config.samples, config.batch_size)
            row = cost(method, full, sampler)
            row["wall_speedup"] = wall_speedup(method, compared[0], sampler, config)
            row |= quality(drawn, images.get(UNCACHED), sampler.labels(range(config.samples)), judge)
            rows.append({"method": method.name, **row})
            images[method.name] = drawn
        if run.accelerator.is_main_process:
            samples = {name: to_bytes(drawn) for name, drawn in images.items()}
            write_bytes(run.folder / "samples.safetensors", save(samples))
            report(rows, images, sampler, config).write(run.folder)
        run.finish(flat(rows, config))


def methods(config: DemoConfig) -> list[Method]:
    """Return what is compared; the first is the reference, the others cost about the same."""
    steps, speedup = config.steps, config.speedup
    compared = [
        Method(UNCACHED, steps),
        Method(FEWER, math.ceil(steps / speedup)),  # where it does not divide, in favour of this one
        Method(PAPER, steps, DeltaCacheConfig(speedup=speedup, schedule="paper")),
        Method(OURS, steps, DeltaCacheConfig(speedup=speedup)),
    ]
    try:
        plan = shipped_plan("demo", speedup)
    except ValueError:  # none was calibrated for this speed-up
        return compared
    return [*compared, Method(CALIBRATED, steps, DeltaCacheConfig(plan=plan))] if plan.steps == steps else compared


def cost(method: Method, full: float, sampler: Sampler) -> dict[str, float]:
    """Return how much a method computes, and how many times less than the ``full`` MACs."""
    blocks = len(blocks_of(sampler.pipe.transformer))
    run = method.steps * blocks
    if method.cache is not None:
        run = method.cache.plan_for(method.steps, blocks).blocks_run()
    own = macs(method, sampler)
    return {
        "steps": method.steps,
        "block_evaluations": run,
        "gmacs": own / 1e9,
        "mac_speedup": full / own,
    }


def wall_speedup(method: Method, reference: Method, sampler: Sampler, config: DemoConfig) -> float:
    """Return the median over alternating pairs of the reference's time ÷ the method's; 1 for the reference itself."""
    if method is reference:
        return 1.0

    def drawn_by(each: Method) -> Callable[[], Tensor]:
        def call() -> Tensor:
            with each.on(sampler):
                return sampler.draw(config.seed, range(min(TIMED, config.batch_size)), steps=each.steps)

        return call

    return compare(drawn_by(reference), drawn_by(method), repeats=config.repeats).ratio


def flat(rows: list[dict], config: DemoConfig) -> dict[str, Any]:
    """Return the results as flat floats: ours under plain names, the others with their method as a prefix."""
    prefixes = {UNCACHED: "uncached_", FEWER: "fewer_steps_", PAPER: "paper_", OURS: "", CALIBRATED: "calibrated_"}
    values = {prefixes[row["method"]] + key: value for row in rows for key, value in row.items() if key != "method"}
    return values | {"samples": config.samples, "seed": config.seed}


def report(rows: list[dict], images: dict[str, Tensor], sampler: Sampler, config: DemoConfig) -> Report:
    """Return the report: pictures, the table, the paper's claims, the schedules."""
    classes = min(config.samples, len(sampler.conditions))
    picked = np.linspace(0, classes - 1, min(SHOWN, classes)).round().astype(int)
    worst = psnr(images[OURS], images[UNCACHED]).argsort()[: SHOWN // 2].numpy()
    by_name = {row["method"]: row for row in rows}
    page = Report(
        "Δ-DiT: the same pictures for less", f"{by_name[OURS]['mac_speedup']:.2f}× fewer MACs, no training, same seeds"
    )
    page.figures(
        [
            Figure(
                tiles(images[UNCACHED], picked),
                f"Uncached: every block at each of the {config.steps} steps.",
                f"{len(picked)} handwritten digits, each filled with a texture, drawn without the cache",
            ),
            Figure(
                tiles(images[OURS], picked), caption(by_name[OURS]), "the same digits and textures, drawn with Δ-DiT"
            ),
            Figure(
                tiles(difference(images[OURS], images[UNCACHED]), picked),
                "Difference of the two, 8 times enhanced: black is none.",
                "the difference of every pair of pictures, mostly black",
            ),
        ]
    )
    page.slider(
        Figure(tiles(images[UNCACHED], worst, 5), "uncached", "digits drawn without the cache"),
        Figure(tiles(images[OURS], worst, 5), "Δ-DiT", "the same digits drawn with Δ-DiT"),
        f"The {len(worst)} of {config.samples} samples that differ most. Drag the divider, or use the arrow keys.",
    )
    page.table(
        [shown(row) for row in rows],
        f"{config.samples} samples, seed {config.seed}; PSNR to the uncached; shares of samples below 30 dB, and whose "
        "outline and texture are those asked for.",
    )
    page.command(f"delta-dit demo --samples {config.samples} --seed {config.seed}")
    page.claims("Δ-DiT, arXiv 2406.01125", claims(by_name, sampler, config))
    page.section("The paper's schedule, and fewer steps")
    page.slider(
        Figure(tiles(images[UNCACHED], picked), "uncached", "digits drawn without the cache"),
        Figure(tiles(images[PAPER], picked), "paper's schedule", "the same digits, some strokes changed"),
        "Look for changed strokes.",
    )
    page.figures([Figure(tiles(images[name], picked), caption(by_name[name])) for name in (FEWER, PAPER)])
    page.section("Which blocks run when")
    page.figures([Figure(schedule_plot(sampler, config), "Dark: the block runs. Light: its Δ is added instead.")])
    page.note(
        "The model is a class-conditional DiT of 12 blocks on textured digits, 32×32, made for this demo. The outline "
        "and the texture are read by a classifier trained on other handwritten digits. Wall times are medians of "
        f"alternating pairs on this machine, {min(TIMED, config.batch_size)} images each. What holds here need not "
        "hold on a large model: calibrate there."
    )
    return page


def claims(by_name: dict[str, dict], sampler: Sampler, config: DemoConfig) -> list[Claim]:
    """Return what the paper's abstract says beside the rows, method → row."""
    full, ours, paper, fewer = (by_name[name] for name in (UNCACHED, OURS, PAPER, FEWER))
    blocks = len(blocks_of(sampler.pipe.transformer))
    scale = f"A DiT of {blocks} blocks, 32×32 textured digits, {config.samples} samples, one seed."
    return [
        Claim(
            "1.6× as fast in 20 steps, on PixArt-α and DiT-XL, with the quality as good or better.",
            f"{ours['mac_speedup']:.2f}× fewer MACs, {ours['wall_speedup']:.2f}× as fast, {ours['psnr_db']:.1f} dB to "
            f"the uncached pictures. A classifier finds the outline asked for in {ours['outline_accuracy']:.1%} and "
            f"the texture in {ours['texture_accuracy']:.1%}; uncached: {full['outline_accuracy']:.1%} and "
            f"{full['texture_accuracy']:.1%}. Which steps are kept full is our choice, not the paper's.",
            scale,
        ),
        Claim(
            "Front blocks draw the outline and rear blocks the detail: so reuse the rear in early steps and the front "
            "in late ones.",
            f"That schedule gives {paper['psnr_db']:.1f} dB at {paper['mac_speedup']:.2f}× fewer MACs, plainly taking "
            f"{fewer['steps']} steps {fewer['psnr_db']:.1f} dB at {fewer['mac_speedup']:.2f}×.",
            scale,
        ),
        Claim(
            "1.12× as fast where a consistency model takes only 4 steps.",
            "Not in this run; `delta-dit bench --model demo-lcm --speedup 1.12` measures it.",
        ),
    ]


def tiles(images: Tensor, picked: np.ndarray, scale: int = 3) -> Image.Image:
    """Return some of the images ``(B, 3, H, W)``, six in a row, every pixel enlarged by ``scale``."""
    return grid(images[picked].permute(0, 2, 3, 1).numpy(), 6, scale)


def caption(row: dict) -> str:
    """Return what a row's pictures cost and how close they are."""
    return f"{row['method']}: {row['mac_speedup']:.2f}× fewer MACs, {row['psnr_db']:.1f} dB to the uncached."


def shown(row: dict) -> dict:
    """Return a row under the headings of the report."""
    names = {
        "method": "method",
        "steps": "steps",
        "block_evaluations": "blocks run",
        "mac_speedup": "MACs ×",
        "wall_speedup": "wall ×",
        "psnr_db": "PSNR dB",
        "share_below_30_db": "below 30 dB",
        "outline_accuracy": "outline",
        "texture_accuracy": "texture",
    }
    return {title: row[key] for key, title in names.items()}


def difference(images: Tensor, reference: Tensor) -> Tensor:
    """Return the enhanced absolute difference, clipped to [0, 1]."""
    return (8 * (images - reference).abs()).clamp(0, 1)


def schedule_plot(sampler: Sampler, config: DemoConfig) -> Plot:
    """Draw the plans: steps to the right, blocks upwards."""
    blocks = len(blocks_of(sampler.pipe.transformer))
    plans = {m.name: m.cache.plan_for(m.steps, blocks) for m in methods(config) if m.cache is not None}
    plot = Plot(figsize=(8, 1.6 * len(plans)), layout="constrained")
    panels = plot.subplots(len(plans), 1, sharex=True)
    for axes, (name, plan) in zip(panels, plans.items()):
        axes.imshow(runs(plan).T, origin="lower", aspect="auto", cmap="Blues", vmin=-0.25, vmax=1.25)
        axes.set_title(name, loc="left", fontsize=9)
        axes.set_ylabel("block")
    panels[-1].set_xticks(range(config.steps))
    panels[-1].set_xlabel("sampling step (noise to the left)")
    return plot


def runs(plan: DeltaPlan) -> np.ndarray:
    """Return which blocks run when, ``(T, L)``, 1 where a block runs and 0 where its Δ is reused."""
    table = np.ones((plan.steps, plan.blocks))
    for step, action in enumerate(plan.actions):
        if isinstance(action, Reuse):
            table[step, action.start : action.stop] = 0
    return table
