"""The report of ``delta-dit demo``."""

import numpy as np
from matplotlib.figure import Figure as Plot
from torch import Tensor

from delta_dit.commands.exact_pictures import BUDGET, ENHANCED, PLANNED, Pictures, error
from delta_dit.commands.methods import UNCACHED
from delta_dit.commands.options import DemoConfig
from delta_dit.commands.pictures import caption, tiles
from delta_dit.delta_plan import DeltaPlan
from delta_dit.planning.fidelity import psnr
from frugal_shared.datasets import TexturedDigits
from frugal_shared.report import Claim, Figure, Report

FEWER, PAPER = "fewer steps", "Δ-DiT, paper's schedule"
OURS, CALIBRATED = "Δ-DiT, sensitive steps full", "Δ-DiT, calibrated"
SHOWN = 12  # pictures per method


def report(
    rows: list[dict],
    images: dict[str, Tensor],
    exact: Pictures,
    plans: dict[str, DeltaPlan],
    config: DemoConfig,
    timed: int,
) -> Report:
    """Return the report: pictures, the table, the paper's claims, the schedules.

    Args:
        rows: the figures of each method.
        images: its pictures ``(N, 3, H, W)``, by its name.
        exact: a few beside the exact ones.
        plans: of those methods that have one.
        config: the options.
        timed: how many images a timed draw has.
    """
    by_name = {row["method"]: row for row in rows}
    classes = min(config.samples, TexturedDigits.num_classes)
    picked = np.linspace(0, classes - 1, min(SHOWN, classes)).round().astype(int)
    page = Report(
        "Δ-DiT: the same pictures for less", f"{by_name[OURS]['mac_speedup']:.2f}× fewer MACs, no training, same seeds"
    )
    show_ours(page, by_name, images, picked, config)
    page.table(
        [shown(row) for row in rows],
        f"{config.samples} samples, seed {config.seed}; PSNR to the uncached; shares of samples below 30 dB, and whose "
        "outline and texture are those asked for.",
    )
    page.command(f"delta-dit demo --samples {config.samples} --seed {config.seed}")
    page.claims("Δ-DiT, arXiv 2406.01125", claims(by_name, plans[PAPER].blocks, config))
    show_exact(page, exact)
    page.section("The paper's schedule, and fewer steps")
    page.slider(
        Figure(tiles(images[UNCACHED][picked]), "uncached", "digits drawn without the cache"),
        Figure(tiles(images[PAPER][picked]), "paper's schedule", "the same digits, some strokes changed"),
        "Look for changed strokes.",
    )
    page.figures([Figure(tiles(images[name][picked]), caption(by_name[name])) for name in (FEWER, PAPER)])
    page.section("Which blocks run when")
    page.figures([Figure(schedule_plot(plans), "Dark: the block runs. Light: its Δ is added instead.")])
    page.note(
        "The model is a class-conditional DiT of 12 blocks on textured digits, 32×32, made for this demo. The outline "
        "and the texture are read by a classifier trained on other handwritten digits. Wall times are medians of "
        f"alternating pairs on this machine, {timed} images each. What holds here need not hold on a large model: "
        "calibrate there."
    )
    return page


def show_ours(
    page: Report, by_name: dict[str, dict], images: dict[str, Tensor], picked: np.ndarray, config: DemoConfig
) -> None:
    """Put our pictures beside the uncached ones, then those that differ most."""
    uncached, ours = images[UNCACHED], images[OURS]
    page.figures(
        [
            Figure(
                tiles(uncached[picked]),
                f"Uncached: every block at each of the {config.steps} steps.",
                f"{len(picked)} handwritten digits, each filled with a texture, drawn without the cache",
            ),
            Figure(tiles(ours[picked]), caption(by_name[OURS]), "the same digits and textures, drawn with Δ-DiT"),
            Figure(
                tiles(error(ours, uncached)[picked]),
                f"Difference of the two, {ENHANCED} times enhanced: black is none.",
                "the difference of every pair of pictures, mostly black",
            ),
        ]
    )
    worst = psnr(ours, uncached).argsort()[: SHOWN // 2].numpy()
    page.slider(
        Figure(tiles(uncached[worst], 5), "uncached", "digits drawn without the cache"),
        Figure(tiles(ours[worst], 5), "Δ-DiT", "the same digits drawn with Δ-DiT"),
        f"The {len(worst)} of {config.samples} samples that differ most. Drag the divider, or use the arrow keys.",
    )


def show_exact(page: Report, exact: Pictures) -> None:
    """Put the uncached and the planned pictures beside the exact ones."""
    page.section("Nearer to the exact picture than the uncached sampler")
    uncached, planned = (exact.psnr_db(name).mean() for name in (UNCACHED, PLANNED))
    told = (
        f"The uncached picture has an error of its own: {uncached:.1f} dB from the exact one, that of very many steps. "
        f"A plan of {exact.planned_steps} steps that costs {BUDGET:g} comes within {planned:.1f} dB. The last two rows "
        f"are the errors, {ENHANCED} times enhanced: black is none."
    )
    page.figures([Figure(exact.plot(), told, "rows of the same digits: exact, uncached, planned, and their errors")])


def claims(by_name: dict[str, dict], blocks: int, config: DemoConfig) -> list[Claim]:
    """Return what the paper's abstract says beside the rows, method → row."""
    full, ours, paper, fewer = (by_name[name] for name in (UNCACHED, OURS, PAPER, FEWER))
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


def schedule_plot(plans: dict[str, DeltaPlan]) -> Plot:
    """Draw plans, each under its name: steps to the right, blocks upwards."""
    plot = Plot(figsize=(8, 1.6 * len(plans)), layout="constrained")
    panels = plot.subplots(len(plans), 1, sharex=True)
    for axes, (name, plan) in zip(panels, plans.items()):
        axes.imshow(runs(plan).T, origin="lower", aspect="auto", cmap="Blues", vmin=-0.25, vmax=1.25)
        axes.set_title(name, loc="left", fontsize=9)
        axes.set_ylabel("block")
    panels[-1].set_xticks(range(plans[PAPER].steps))
    panels[-1].set_xlabel("sampling step (noise to the left)")
    return plot


def runs(plan: DeltaPlan) -> np.ndarray:
    """Return which blocks run when, ``(T, L)``, 1 where a block runs and 0 where its Δ is reused."""
    table = np.ones((plan.steps, plan.blocks))
    for step, reuse in enumerate(plan.reuses):
        if reuse is not None:
            table[step, reuse.start : reuse.stop] = 0
    return table
