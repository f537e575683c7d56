"""What ``delta-dit bench`` shows: the table in the terminal, and the report."""

from typing import Any

from matplotlib.figure import Figure as Plot
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from delta_dit.commands.methods import UNCACHED
from delta_dit.commands.options import METHODS, BenchConfig
from delta_dit.commands.pictures import caption, tiles
from frugal_shared.report import Figure, Report
from frugal_shared.weights import DINOV2_VITS14

Row = dict[str, Any]
"""One method's figures by column; None for what it does not have."""


def shown(rows: list[Row]) -> list[Row]:
    """Return rows under the headings of the tables, without the columns that no row fills."""
    titles = {"method": "method", "cost_steps": "cost, steps", "mac_speedup": "MACs ×", "wall_speedup": "wall ×"}
    titles |= {"psnr_exact_db": "PSNR dB to exact", "psnr_exact_db_ci": "± exact"}
    titles |= {"psnr_db": "PSNR dB", "psnr_db_ci": "±", "worst_psnr_db": "worst dB", "share_below_30_db": "below 30 dB"}
    titles |= {"ssim": "SSIM", "latent_rel_l1": "latent L1", "outline_accuracy": "outline right"}
    titles |= {"texture_accuracy": "texture right", "frechet_distance": "Fréchet"}
    titles |= {"fid": "FID", "inception_score": "IS", "clip_score": "CLIP score", "tuning_generations": "tuned on"}
    titles |= {"setting": "setting", "why": "why"}
    filled = [key for key in titles if any(row.get(key) is not None for row in rows)]
    return [{titles[key]: row.get(key) for key in filled} for row in rows]


def print_rows(rows: list[Row], title: str) -> None:
    """Print the rows as a table."""
    table = Table(title=title)
    for name in shown(rows)[0]:
        table.add_column(name, justify="left" if name in ("method", "setting", "why") else "right")
    for row in shown(rows):
        values = ("" if v is None else f"{v:.4g}" if isinstance(v, float) else escape(str(v)) for v in row.values())
        table.add_row(*values)
    Console().print(table)


def report(rows: list[Row], images: dict[str, Tensor], config: BenchConfig, steps: int, samples: int) -> Report:
    """Return the report: pictures, table, plot.

    Args:
        rows: what :func:`~delta_dit.commands.bench.main` measured.
        images: a few pictures of each method.
        config: the options.
        steps: sampling steps of the reference.
        samples: images per method and seed.
    """
    subtitle = f"{config.model}, {steps} steps: every way at the same cost"
    asked = f"{config.speedup:g}×" if config.budget is None else f"{config.budget:g} full steps"
    page = Report(f"{asked} for the same pictures", subtitle)
    by_name = {row["method"]: row for row in rows}
    exact = config.target == "exact"
    fidelity = "psnr_exact_db" if exact else "psnr_db"
    ranked = sorted((row for row in rows if row.get(fidelity) is not None), key=lambda row: -row[fidelity])
    pictured = [UNCACHED, *(row["method"] for row in ranked[:1]), *(row["method"] for row in ranked[-1:])]
    page.figures([Figure(tiles(images[name]), caption(by_name[name])) for name in dict.fromkeys(pictured)])
    met = f"{'exact' if exact else 'uncached'} images"
    counts = f"{samples} samples of each of {config.seeds} seeds; the worst is of all, to the {met}."
    page.table(shown(rows), counts)
    cost = f"--speedup {config.speedup:g}" if config.budget is None else f"--budget {config.budget:g}"
    page.command(f"delta-dit bench --model {config.model} --steps {steps} {cost} --target {config.target}")
    if ranked:
        page.section("Fidelity at the same cost")
        page.figures([Figure(plot(ranked, fidelity), f"PSNR to the {met}, and its 95 % interval over the seeds.")])
    page.note(
        "± is half of a 95 % interval over the seeds. Every foreign cache was tuned to this cost on other samples: of "
        f"up to {config.tries} settings, the best PSNR among those within 4 % of the wanted speed-up. The Fréchet "
        f"distance is one of {samples * config.seeds} images to as many real ones in 384 features of DINOv2 "
        f"({DINOV2_VITS14.provenance}): of so few it is too large, for all rows alike. Wall times are medians of "
        "alternating pairs on this machine."
    )
    return page


def plot(rows: list[Row], fidelity: str) -> Plot:
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
