"""Write what the committed JSON says: docs/results.md, docs/claims.md, and the tables of estimates in the guides.

::

    python docs/make_results.py            # write
    python docs/make_results.py --check    # exit 1, with one line, if a page is not up to date

Every ``docs/results/*.json`` is a list of rows, written by a command's ``--json``. Files that SECTIONS names get the
columns that it names; any other file is shown as it is, so that a new measurement needs no code.
"""

import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from bdp_nas.commands.ablate_report import answers, summarise
from frugal_shared.evaluation import mean_interval

DOCS = Path(__file__).parent
GENERATED = "<!-- written by docs/make_results.py; change the JSON or the template, not this file -->\n\n"
HIDDEN = ("_ci", "_low", "_high")  # shown beside the figure that they belong to

Row = dict[str, Any]
Columns = dict[str, str | tuple[str, float, int]]
"""Key → heading; of numbers also a factor and the number of decimals."""


def over_seeds(rows: Sequence[Row]) -> list[Row]:
    """Return a row for each combination of the texts in ``rows``: means over the seeds, with 95 % intervals."""
    grouped: dict[tuple, list[Row]] = {}
    for row in rows:
        grouped.setdefault(tuple((key, value) for key, value in row.items() if isinstance(value, str)), []).append(row)
    return [dict(texts) | _mean_row(group) for texts, group in grouped.items()]


def _mean_row(group: Sequence[Row]) -> Row:
    row: Row = {"seeds": len(group)}
    for key in group[0]:
        values = [each[key] for each in group]
        if key == "seed" or not all(isinstance(value, int | float) for value in values):
            continue
        row[key] = values[0]
        if len(set(values)) > 1:
            row[key], row[f"{key}_ci"] = mean_interval(values)
    return row


@dataclass(frozen=True)
class Section:
    """How a file of results is shown.

    Args:
        pattern: of the file's name.
        title: may name what ``*`` stands for as ``{}``.
        command: that measured it.
        note: what was measured on what.
        columns: what to show, in this order; those that no row has are left out.
        summarise: rows → rows.
    """

    pattern: str
    title: str
    command: str
    note: str
    columns: Columns
    summarise: Callable[[Sequence[Row]], list[Row]] = field(default=list)


CACHES: Columns = {
    "method": "method",
    "setting": "setting",
    "mac_speedup": ("MACs, × fewer", 1, 2),
    "wall_speedup": ("time, × shorter", 1, 2),
    "psnr_db": ("PSNR, dB", 1, 1),
    "ssim": ("SSIM", 1, 3),
    "latent_rel_l1": ("latents, relative L1", 1, 4),
    "outline_accuracy": ("outline right, %", 100, 1),
    "texture_accuracy": ("texture right, %", 100, 1),
    "frechet_distance": ("Fréchet distance", 1, 2),
    "why": "why not",
}
PARTS: Columns = {
    "part": "part",
    "what": "what",
    "model": "model",
    "seconds": ("seconds", 1, 4),
    "usual_seconds": ("usual seconds", 1, 4),
    "seconds_p50": ("seconds, median", 1, 4),
    "usual_p50": ("usual seconds, median", 1, 4),
    "ratio": ("usual ÷ ours", 1, 2),
    "share": ("share of the steps, %", 100, 2),
    "samples": ("samples", 1, 0),
    "usual_samples": ("usual samples", 1, 0),
    "difference": "difference",
}
EXACT: Columns = {
    "method": "method",
    "setting": "setting",
    "cost_steps": ("cost, full steps", 1, 2),
    "psnr_exact_db": ("dB to the exact image", 1, 1),
    "worst_psnr_db": ("worst", 1, 1),
    "share_below_30_db": ("below 30 dB, %", 100, 1),
    "psnr_db": ("dB to the uncached image", 1, 1),
    "frechet_distance": ("Fréchet", 1, 2),
    "outline_accuracy": ("outline right, %", 100, 1),
    "texture_accuracy": ("texture right, %", 100, 1),
    "tuning_generations": ("tuned on, samples", 1, 0),
    "samples": ("samples", 1, 0),
    "seeds": ("seeds", 1, 0),
}
SEARCHES: Columns = {
    "searcher": "searcher",
    "pruning": "pruning",
    "seeds": ("seeds", 1, 0),
    "samples_ratio": ("samples, × none", 1, 2),
    "seconds_ratio": ("seconds, × none", 1, 2),
    "accuracy": ("retrained accuracy, %", 100, 2),
    "minus_none": ("minus none, points", 100, 2),
    "minus_random": ("minus random, points", 100, 2),
    "cifar10": ("NAS-Bench-201 CIFAR-10, %", 1, 2),
    "cifar100": ("CIFAR-100, %", 1, 2),
    "imagenet16": ("ImageNet16-120, %", 1, 2),
    "collapsed": ("collapsed", 1, 0),
    "dead": ("dead", 1, 0),
}
SCORES: Columns = {
    "score": "score",
    "searcher": "searcher",
    "seeds": ("seeds", 1, 0),
    "retrained_accuracy": ("retrained accuracy, %", 100, 2),
    "cifar10": ("NAS-Bench-201 CIFAR-10, %", 1, 2),
    "cifar100": ("CIFAR-100, %", 1, 2),
    "imagenet16": ("ImageNet16-120, %", 1, 2),
}

SECTIONS = (
    Section(
        "delta-dit-demo-lcm-*",
        "delta-dit: caches on the four-step student, {}×",
        "delta-dit bench --model demo-lcm --speedup {} --seeds 3",
        "The embedded consistency model, 4 steps without guidance; PSNR to the uncached picture of the same seed.",
        CACHES,
    ),
    Section(
        "delta-dit-demo-*",
        "delta-dit: caches on the embedded model, {}×",
        "delta-dit bench --model demo --speedup {} --seeds 3",
        "A DiT of 12 blocks that draws 32×32 textured digits in 20 DPM-Solver++ steps with guidance 1.5; PSNR to the "
        "uncached picture of the same seed. Foreign caches are tuned to the same MACs with the sampled classes in "
        "sight; the plan was calibrated on other classes and seeds.",
        CACHES,
    ),
    Section(
        "delta-dit-exact-*",
        "delta-dit: nearest to the exact image at a cost of {} full steps",
        "delta-dit bench --model demo --target exact --budget {} --seeds 3",
        "The same model. The exact image is that of 400 steps; the worst and the share below 30 dB are to it. Uncached "
        "is 20 steps; moved-steps is uncached, too, as many steps as the cost allows, where the solver needs them; "
        "calibrated is the plan, with steps of its own. Odd digits; all that was tuned of ours was tuned on the even "
        "ones, with the noise of other seeds. The methods were not tuned alike, see the column.",
        EXACT,
    ),
    Section(
        "delta-dit-analyze",
        "delta-dit: which blocks draw what",
        "delta-dit analyze",
        "The embedded model: one range of blocks is reused at every other step, or at three of four. Error in the low "
        "and in the high spatial frequencies, relative to the uncached picture.",
        {
            "blocks": "blocks reused",
            "interval": ("every … steps", 1, 0),
            "low_error": ("error, low frequencies, %", 100, 1),
            "high_error": ("error, high frequencies, %", 100, 1),
            "high_to_low": ("high ÷ low", 1, 2),
        },
    ),
    Section(
        "clipsam-embedded",
        "clipsam: the embedded models, stage by stage",
        "clipsam eval --data procedural cells elpv-mono elpv-poly --samples 126 --seed 0",
        "procedural: drawn images of 21 held-out categories; cells: real functional solar cells with painted defects; "
        "elpv: all test cells that the experts were sure of, image-level only, one run.",
        {
            "dataset": "data",
            "stage": "stage",
            "seeds": ("seeds", 1, 0),
            "images": ("images", 1, 0),
            "f1_max": ("F1-max", 1, 3),
            "ap": ("AP", 1, 3),
            "aupro": ("AUPRO", 1, 3),
            "auroc": ("pixel AUROC", 1, 3),
            "image_auroc": ("image AUROC", 1, 3),
        },
        over_seeds,
    ),
    Section(
        "clipsam-references",
        "clipsam: image scores with 16 references",
        "clipsam eval --data procedural cells elpv-mono elpv-poly --samples 126 --references 16 --stages umci",
        "memory: the row umci, joined with the distance to 16 other images of each category, labels unused; elpv: from "
        "its train split. A seed draws other images and other references; of elpv's test cells only the references "
        "change. Not zero-shot, and no training.",
        {
            "dataset": "data",
            "stage": "stage",
            "seeds": ("seeds", 1, 0),
            "images": ("images", 1, 0),
            "image_auroc": ("image AUROC", 1, 3),
            "image_ap": ("image AP", 1, 3),
            "image_f1_max": ("image F1-max", 1, 3),
        },
        over_seeds,
    ),
    Section(
        "clipsam-bench",
        "clipsam: metrics, latency",
        "clipsam bench",
        "Two CPU cores; alternating pairs; SAM ViT-B's shapes with random weights.",
        PARTS,
    ),
    Section(
        "partial-finetune-sweep-elpv",
        "partial-finetune: strategies on photographs of solar cells",
        "partial-finetune sweep",
        "DINOv2 ViT-S/14 at 70 pixels, 200 photographs to train on, learning rates swept for every strategy alike; "
        "differences are paired by seed. Corrupted: noise, blur, low contrast.",
        {
            "strategy": "tuned, beside the head",
            "seeds": ("seeds", 1, 0),
            "tuned_backbone_parameters": ("weights, M", 1e-6, 3),
            "learning_rate": "rate",
            "accuracy": ("accuracy, %", 100, 1),
            "shifted_accuracy": ("corrupted, %", 100, 1),
            "accuracy_minus_full": ("minus full, points", 100, 1),
            "shifted_accuracy_minus_full": ("corrupted minus full", 100, 1),
            "activation_bytes": ("activations, MB", 1e-6, 1),
            "train_seconds": ("seconds", 1, 1),
        },
    ),
    Section(
        "partial-finetune-bench",
        "partial-finetune: what a training step costs",
        "partial-finetune bench",
        "Relative to full fine-tuning, in alternating pairs, one thread of a shared CPU; ideal: ratio of operations.",
        {
            "model": "model",
            "strategy": "strategy",
            "tuned_parameters": ("tuned weights, M", 1e-6, 2),
            "step_ratio": ("step, × full", 1, 3),
            "ideal_ratio": ("ideal", 1, 3),
            "activation_bytes": ("activations, MB", 1e-6, 0),
            "full_activation_bytes": ("of full", 1e-6, 0),
            "peak_bytes": ("peak memory, MB", 1e-6, 0),
            "full_peak_bytes": ("of full", 1e-6, 0),
        },
    ),
    Section(
        "bdp-nas-ablation",
        "bdp-nas: searchers with and without pruning",
        "bdp-nas ablate --seeds 5 --table nasbench201.npz",
        "Handwritten digits, a small NAS-Bench-201 supernet; every cell is searched and then retrained, means are over "
        "the seeds, ratios and differences paired by seed. Collapsed: how many mostly skip. Dead: how many pass "
        "nothing on; one of them moves a mean by far. NAS-Bench-201: the found cell in that benchmark's table. Seconds "
        "are of a machine that had other work.",
        SEARCHES,
        summarise,
    ),
    Section(
        "bdp-nas-scores",
        "bdp-nas: scores of the samples",
        "bdp-nas ablate --seeds 5 --searchers darts pc-darts --variants bdp --score el2n --table nasbench201.npz",
        "As in the ablation, a run for each score, on its seeds 0 to 4. The best of eight, `abs_delta`, became the "
        "commands' default; on seeds that had no say in it see above.",
        SCORES,
        lambda rows: over_seeds([{key: row[key] for key in (*SCORES, "seed") if key in row} for row in rows]),
    ),
    Section(
        "bdp-nas-fresh-seeds",
        "bdp-nas: the commands' score on other seeds",
        "bdp-nas ablate --seed 5 --seeds 5 --variants none random bdp --table nasbench201.npz",
        "As in the ablation, on seeds 5 to 9: the score was chosen on 0 to 4.",
        SEARCHES,
        summarise,
    ),
    Section(
        "bdp-nas-bench",
        "bdp-nas: what pruning saves and costs",
        "bdp-nas bench",
        "search: whole searches in alternating pairs; overhead: the pruner beside the steps of the same search.",
        PARTS,
    ),
)

ESTIMATES: dict[str, Columns] = {
    "delta-dit": {
        "model": "model",
        "steps": ("steps", 1, 0),
        "tflop": ("TFLOP per image", 1, 0),
        "seconds": ("seconds per image", 1, 1),
        "speedup": ("block evaluations, × fewer", 1, 2),
        "cached_seconds": ("then seconds", 1, 1),
        "weights_gb": ("weights in fp32, GB", 1, 1),
        "delta_mb": ("one Δ of one image, MB", 1, 1),
    },
    "clipsam": {
        "what": "what",
        "tflop": ("TFLOP per image", 1, 2),
        "minutes": ("minutes", 1, 1),
        "weights_gb": ("weights in fp32, GB", 1, 1),
    },
    "partial-finetune": {
        "model": "model",
        "strategy": "tuned, beside the head",
        "tuned_millions": ("weights, M", 1, 2),
        "gflop": ("GFLOP per image and step", 1, 0),
        "cifar_hours": ("CIFAR-100, 10 epochs, hours", 1, 2),
        "imagenet_hours": ("ImageNet, 10 epochs, hours", 1, 1),
        "state_gb": ("weights, gradients, Adam, GB", 1, 2),
        "activations_gb": ("activations of 32 images in fp32, GB", 1, 1),
    },
    "bdp-nas": {
        "space": "space",
        "searcher": "searcher",
        "pixels": ("pixels", 1, 0),
        "epochs": ("epochs", 1, 0),
        "gflop": ("GFLOP, supernet forward", 1, 2),
        "hours": ("hours, at least", 1, 2),
        "pruned_hours": ("with pruning", 1, 2),
        "activations_gb": ("activations of 64 images in fp32, GB", 1, 1),
    },
}


def read(name: str) -> list[Row]:
    """Return the rows of a file of results, none if it is not there."""
    path = DOCS / "results" / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else []


def section_of(name: str) -> tuple[Section, str]:
    """Return how a file is shown, and what the pattern's ``*`` stands for."""
    section = next((each for each in SECTIONS if fnmatch(name, each.pattern)), None)
    if section is None:
        return Section(name, name, "", "", {}), ""
    return section, name.removeprefix(section.pattern.partition("*")[0])


def table(rows: Sequence[Row], columns: Columns) -> str:
    """Return rows as a Markdown table; without columns, with all that they have."""
    keys = dict.fromkeys(key for row in rows for key, value in row.items() if value is not None)
    shown: Columns = {key: columns[key] for key in columns if key in keys}
    shown = shown or {key: key for key in keys if not key.endswith(HIDDEN)}
    headings = [heading if isinstance(heading, str) else heading[0] for heading in shown.values()]
    lines = [headings, ["---"] * len(headings)]
    lines += [[cell(row, key, how) for key, how in shown.items()] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def cell(row: Row, key: str, how: str | tuple[str, float, int]) -> str:
    """Return a figure with its interval, if it has one."""
    value = row.get(key)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, str):
        return value.replace("|", "\\|")
    if isinstance(how, str):
        return f"{value:.4g}" if isinstance(value, float) else str(value)
    _, factor, digits = how
    sign = "+" if "minus" in key else ""
    text, spread = f"{value * factor:{sign},.{digits}f}", row.get(f"{key}_ci")
    if spread is not None and not math.isnan(spread):
        return f"{text} ± {spread * factor:.{digits}f}"
    if row.get(f"{key}_low") is not None:
        return f"{text} ({row[f'{key}_low'] * factor:.{digits}f} – {row[f'{key}_high'] * factor:.{digits}f})"
    return text


def results() -> str:
    """Return docs/results.md."""
    parts = [
        "# Results\n",
        "What was measured, file by file of `docs/results/`: this page is written from them by "
        "`python docs/make_results.py`. ± is the half width of a 95 % Student-t interval over the seeds, an interval "
        "in brackets the range of the timed pairs or a 95 % interval. All of it is small scale, on CPUs; "
        "[claims](claims.md) says what that means for each paper.\n",
    ]
    for path in sorted((DOCS / "results").glob("*.json")):
        section, part = section_of(path.stem)
        parts.append(f"## {section.title.format(part)}\n")
        if section.note:
            parts.append(f"{section.note}\n")
        said = f"`{section.command.format(part)}`; " if section.command else ""
        parts.append(f"{said}rows: `docs/results/{path.name}`\n")
        parts.append(table(section.summarise(read(path.stem)), section.columns))
    return GENERATED + "\n".join(parts)


def claims() -> str:
    """Return docs/claims.md, the template with the figures of the JSON."""
    environment = Environment(loader=FileSystemLoader(DOCS), undefined=StrictUndefined, trim_blocks=True)
    environment.globals.update(figure=figure, read=read, answers=lambda rows: answers(summarise(rows), rows))
    return GENERATED + environment.get_template("claims.md.j2").render() + "\n"


def figure(name: str, key: str, factor: float = 1, digits: int = 1, **where: Any) -> str:
    """Return one figure with its interval: that of ``key`` in the only row of a file with these values.

    Raises:
        LookupError: no such row, or several.
    """
    rows = section_of(name)[0].summarise(read(name))
    found = [row for row in rows if all(row.get(field) == value for field, value in where.items())]
    if len(found) != 1 or found[0].get(key) is None:
        raise LookupError(f"{name}.json has {len(found)} rows with {where}, or no {key!r} in it")
    return cell(found[0], key, (key, factor, digits))


def guide(name: str) -> str:
    """Return a guide with the table of estimates between its two markers."""
    text = (DOCS / f"{name}.md").read_text()
    rows = json.loads((DOCS / "estimates.json").read_text())[name]
    between = r"(?s)(<!-- estimates: begin -->\n).*?(<!-- estimates: end -->)"
    return re.sub(between, lambda found: f"{found[1]}{table(rows, ESTIMATES[name])}{found[2]}", text)


def pages() -> Iterable[tuple[Path, str]]:
    """Yield every page that is written, with what it should hold."""
    yield DOCS / "results.md", results()
    yield DOCS / "claims.md", claims()
    for name in ESTIMATES:
        yield DOCS / f"{name}.md", guide(name)


def main(arguments: Sequence[str]) -> int:
    """Write the pages, or only compare them; return the exit code."""
    stale = [(path, text) for path, text in pages() if not path.exists() or path.read_text() != text]
    if "--check" in arguments:
        for path, _ in stale[:1]:
            print(f"docs/{path.name} is not up to date; run: python docs/make_results.py", file=sys.stderr)
        return bool(stale)
    for path, text in stale:
        path.write_text(text)
        print(f"wrote docs/{path.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
