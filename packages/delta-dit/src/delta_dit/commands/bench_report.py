"""What ``delta-dit bench`` shows: the table in the terminal, and the report."""

from collections.abc import Iterable

from matplotlib.figure import Figure as Plot
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from delta_dit.commands.comparisons import CALIBRATED, FIDELITY, Row, name_of
from delta_dit.commands.methods import EXACT, UNCACHED
from delta_dit.commands.options import METHODS, MOVED, BenchConfig
from delta_dit.commands.pictures import caption, tiles
from frugal_shared.report import Figure, Report
from frugal_shared.weights import DINOV2_VITS14

TITLES = {
    "method": "method",
    "budget": "wanted",
    "cost_steps": "cost, steps",
    "mac_speedup": "MACs ×",
    "wall_speedup": "wall ×",
    "psnr_exact_db": "PSNR dB to exact",
    "psnr_exact_db_ci": "± exact",
    "psnr_exact_at_budget_db": "at the cost wanted",
    "psnr_db": "PSNR dB",
    "psnr_db_ci": "±",
    "psnr_at_budget_db": "at the cost wanted",
    "behind_db": "behind calibrated, dB",
    "behind_db_ci": "± behind",
    "behind_p": "p",
    "worst_psnr_db": "worst dB",
    "share_below_30_db": "below 30 dB",
    "ssim": "SSIM",
    "latent_rel_l1": "latent L1",
    "outline_accuracy": "outline right",
    "texture_accuracy": "texture right",
    "frechet_distance": "Fréchet",
    "fid": "FID",
    "inception_score": "IS",
    "clip_score": "CLIP score",
    "tuning_generations": "tuned on",
    "setting": "setting",
    "why": "why",
}


IN_TERMINAL = ("method", "cost_steps", *FIDELITY.values(), "behind_db", "behind_p", "share_below_30_db")
"""The columns that fit; all are in the report, and in rows.json."""


def shown(rows: list[Row], columns: Iterable[str] = TITLES) -> list[Row]:
    """Return rows under the headings of the tables, without the columns that no row fills."""
    filled = [key for key in columns if any(row.get(key) is not None for row in rows)]
    return [{TITLES[key]: row.get(key) for key in filled} for row in rows]


def print_rows(rows: list[Row], title: str) -> None:
    """Print the rows as a table, what matters most of them, and why a row is empty."""
    table = Table(title=title)
    few = shown(rows, (*IN_TERMINAL, "frechet_distance", "wall_speedup"))
    for name in few[0]:
        table.add_column(name, justify="left" if name == "method" else "right")
    for row in few:
        values = ("" if v is None else f"{v:.4g}" if isinstance(v, float) else escape(str(v)) for v in row.values())
        table.add_row(*values)
    console = Console()
    console.print(table)
    for row in rows:
        if row["why"] is not None:
            console.print(f"{name_of(row['method'], row['budget'])}: {escape(row['why'])}")


def report(rows: list[Row], images: dict[str, Tensor], config: BenchConfig, steps: int, samples: int) -> Report:
    """Return the report: pictures, table, plot.

    Args:
        rows: what :func:`~delta_dit.commands.bench.main` measured.
        images: a few pictures of each method.
        config: the options.
        steps: sampling steps of the reference.
        samples: images per method and seed.
    """
    option = "--budget" if config.budget else "--speedup"
    costs = config.budget or config.speedup
    listed = " ".join(f"{cost:g}" for cost in costs)
    fidelity, met = FIDELITY[config.target], f"{config.target} images"
    asked = f"{listed.replace(' ', ', ')} full steps" if config.budget else f"{listed.replace(' ', '×, ')}×"
    page = Report(f"{asked} for the same pictures", f"{config.model}, {steps} steps: every way at the same cost")
    ranked = sorted((row for row in rows if row.get(fidelity) is not None), key=lambda row: -row[fidelity])
    references = [row for row in rows if row["method"] in (UNCACHED, EXACT)]
    pictured = {name_of(row["method"], row["budget"]): row for row in [*references, *ranked[:1], *ranked[-1:]]}
    page.figures([Figure(tiles(images[name]), caption(row)) for name, row in pictured.items()])
    counts = f"{samples} samples of each of {config.seeds} seeds; the worst is of all, to the {met}."
    page.table(shown(rows), counts)
    page.command(f"delta-dit bench --model {config.model} --steps {steps} {option} {listed} --target {config.target}")
    if ranked:
        page.section("Fidelity at the same cost")
        told = f"PSNR to the {met}"
        if len(costs) > 1:
            page.figures([Figure(curves(ranked, fidelity), f"{told} against what a run cost, in full steps.")])
        else:
            page.figures([Figure(bars(ranked, fidelity), f"{told}, and its 95 % interval over the seeds.")])
    page.note(
        "± is half of a 95 % interval: over the seeds, and of what a row is behind the calibrated plan, in pairs over "
        "all samples; p is Wilcoxon's, corrected by Holm for all rows of one cost. Every foreign cache was tuned to "
        f"each cost on other samples, with up to {config.tuning} generations: the best PSNR to the {met} among "
        "settings within 4 % of the cost; 'tuned on' is what was used. The Fréchet distance is one of "
        f"{samples * config.seeds} images to as many real ones in 384 features of DINOv2 ({DINOV2_VITS14.provenance}): "
        "of so few it is too large, for all rows alike. Wall times are medians of alternating pairs on this machine."
    )
    return page


def curves(rows: list[Row], fidelity: str) -> Plot:
    """Draw a line per method over the cost; the uncached runs are dashed."""
    figure = Plot(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for name in dict.fromkeys(row["method"] for row in rows):
        own = sorted((row for row in rows if row["method"] == name), key=lambda row: row["cost_steps"])
        costs, values = zip(*((row["cost_steps"], row[fidelity]) for row in own), strict=True)
        dashed = name in ("fewer-steps", MOVED, UNCACHED)
        (line,) = axes.plot(costs, values, "o--" if dashed else "o-", markersize=3, linewidth=1, label=name)
        if name == CALIBRATED:
            line.set(color="k", linewidth=2.5)
    axes.set_xlabel("cost in full steps")
    axes.set_ylabel("PSNR dB")
    axes.legend(fontsize=7)
    return figure


def bars(rows: list[Row], fidelity: str) -> Plot:
    """Draw one bar per method, the best on top."""
    figure = Plot(figsize=(7, 0.35 * len(rows) + 0.8), layout="constrained")
    axes = figure.subplots()
    axes.barh(
        [f"{row['method']} ({row['mac_speedup']:.2f}×)" for row in reversed(rows)],
        [row[fidelity] for row in reversed(rows)],
        xerr=[row.get(f"{fidelity}_ci", 0.0) for row in reversed(rows)],
        color=["C0" if row["method"] in METHODS else "C7" for row in reversed(rows)],
    )
    axes.set_xlabel("PSNR dB")
    return figure
