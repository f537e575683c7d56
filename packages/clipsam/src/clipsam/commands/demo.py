"""``clipsam demo``: the embedded models on real photographs of solar cells, which nothing here was trained on.

Two questions, each at three stages of the pipeline (texts alone, with UMCI, with UMCI and MMR): is a cell defective, on
ELPV's photographs; and which pixels are, on drawn images of held-out categories and on real functional cells with
painted defects, since nobody has drawn masks of ELPV's defects.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from clipsam.commands.eval_report import case_figures, curve_figures, defined, results_of
from clipsam.commands.measure import evaluate_all
from clipsam.commands.models import DTYPES
from clipsam.commands.options import DemoConfig
from clipsam.data.cells import ELPV, solar_cells
from clipsam.data.procedural import HELD_OUT_CATEGORIES
from clipsam.data.sources import CELLS, PROCEDURAL, open_data, open_references
from clipsam.embedded.dinov2 import embedded_model
from clipsam.evaluation import ALL, Evaluation, Row
from clipsam.pictures import overlay
from clipsam.pipeline import ClipSAM, Segmentation
from clipsam.samples import AnomalyData
from frugal_shared.checkpoint import write_json
from frugal_shared.report import Claim, Figure, Report, grid
from frugal_shared.run import Run
from frugal_shared.weights import DINOV2_VITS14

REFERENCES = 16  # unlabelled photographs of each type of cell, for the rows "distance" and "combined"
EXAMPLES = 3  # defective images of each data set, at equal distances in its own order: not the prettiest ones
TILE = 200  # pixels, side of a picture in the report
LEAD = {
    "dataset": "data set",
    "stage": "stage",
    "image_auroc": "image AUROC",
    "image_auroc_low": "low",
    "image_auroc_high": "high",
    "auroc": "pixel AUROC",
    "f1_max": "F1-max",
    "ap": "AP",
    "aupro": "AUPRO",
}
"""Column of a row -> its heading in the report."""
EXPLAINED = "Cyan: above the threshold; white: boxes for SAM."
Tiles = list[np.ndarray]
"""Photograph, rough map, SAM's masks and final map of an image, ``(200, 200, 3)`` each."""


def main(config: DemoConfig) -> None:
    """Evaluate, draw, and write rows, results and the report."""
    model = embedded_model().to(dtype=DTYPES[config.dtype])
    with Run(config, "clipsam") as run:
        references = {name: open_references(name, REFERENCES, config.seed) for name in ELPV}
        found: list[Evaluation] = []
        for data in data_sets(config):
            run.accelerator.print(f"{data.name}: {len(data)} images, at every stage")
            found += evaluate_all(run, model, [data], references=references)
        rows = [row for each in found for row in each.rows]
        if run.accelerator.is_main_process:
            plain = [{key: defined(value) for key, value in row.items()} for row in rows if row["category"] == ALL]
            write_json(run.folder / "rows.json", plain)
            demo_page(model, found, config).write(run.folder)
        run.finish(results_of(rows))
        run.accelerator.print((run.folder / "report.html").resolve().as_uri())


def data_sets(config: DemoConfig) -> list[AnomalyData]:
    """Return what is evaluated: real cells first."""
    drawn = [open_data(name, config.samples, config.seed) for name in (PROCEDURAL, CELLS)]
    return [*(solar_cells(name, config.cells) for name in ELPV), *drawn]


def demo_page(model: ClipSAM, found: list[Evaluation], config: DemoConfig) -> Report:
    """Return the report: what was found in real cells, the table, the paper's claims, curves, and the worst cases."""
    rows = [row for each in found for row in each.rows if row["category"] == ALL]
    page = Report(
        "ClipSAM: defects in solar cells that nobody trained on", "CLIP finds, SAM refines; embedded models, zero-shot"
    )
    examples = {data.name: examples_of(model, data) for data in data_sets(config)}
    page.figures(lead_figures(examples))
    page.table(
        [report_row(row) for row in rows],
        "elpv: real cells, of which is known whether they are defective. procedural: drawn images of held-out "
        f"categories, cells: painted defects, of both also where. distance, combined: beside {REFERENCES} "
        "unlabelled photographs of its type, the only rows that are not zero-shot; pixel-std: the trivial one. Seed "
        f"{config.seed}; low, high: 95 % interval of the image AUROC (DeLong).",
    )
    page.command(f"clipsam demo --samples {config.samples} --cells {config.cells} --seed {config.seed}")
    page.claims("ClipSAM, arXiv 2401.12665", claims(rows, config))
    page.section("Every stage")
    for each in examples.items():
        page.figures([stage_figure(*each)])
    page.section("Curves")
    page.figures(curve_figures(found))
    for each in found:
        page.section(f"Worst cases of {each.name}")
        page.figures(case_figures(each))
    page.note(
        f"ELPV's test cells (CC BY-NC-SA 4.0), functional or defective without doubt, border cut off, divided by their "
        f"median. pixel-std is the trivial row: the standard deviation of the pixels. distance and combined are not "
        f"zero-shot: they count how unlike {REFERENCES} others of its type a cell is, from ELPV's train split, labels "
        f"unused. {PROCEDURAL}: {config.samples} "
        f"drawn images of {len(HELD_OUT_CATEGORIES)} categories that were held out. {CELLS}: {config.samples} real "
        f"functional cells, half with painted defects. Where no masks are, mmr is umci: a mask cannot lift an image's "
        f"score. Heads: {', '.join(f'{key} {value}' for key, value in model.provenance.items())}. Visual tower: "
        f"{DINOV2_VITS14.provenance}."
    )
    return page


def report_row(row: Row) -> Row:
    """Return a row under the headings of the report."""
    return {title: row[key] for key, title in LEAD.items()}


def claims(rows: Sequence[Row], config: DemoConfig) -> list[Claim]:
    """Return what the paper's abstract says beside the rows."""
    f1 = {(row["dataset"], row["stage"]): row["f1_max"] for row in rows}
    named = {PROCEDURAL: "held-out categories", CELLS: "painted solar cells"}

    def step(before: str, after: str) -> str:
        changes = (f"{f1[data, before]:.3f} → {f1[data, after]:.3f} on {name}" for data, name in named.items())
        return f"F1-max of the pixels: {', '.join(changes)}."

    scale = f"Embedded models (DINOv2 ViT-S/14, a small SAM), {config.samples} images of each kind, one seed."
    return [
        Claim("CLIP alone segments local defects imprecisely; UMCI places them.", step("clip", "umci"), scale),
        Claim("The rough map prompts SAM, and MMR merges its masks to a finer map.", step("umci", "mmr"), scale),
        Claim(
            "The best zero-shot segmentation on MVTec-AD and VisA.",
            "Not in this run, which brings neither the data sets nor CLIP ViT-L/14-336 and SAM ViT-H; `clipsam eval` "
            "measures it with yours.",
        ),
    ]


def lead_figures(examples: Mapping[str, Sequence[Tiles]]) -> list[Figure]:
    """Return photographs, rough maps and final maps of solar cells, a row of two for each kind."""
    photographs, rough, _, final = zip(*(each for name in (CELLS, *ELPV) for each in examples[name][:2]))
    cells = "solar cells: two with painted defects, two of a single crystal, two of many crystals"
    return [
        Figure(grid(np.stack(photographs), 2), "Photograph. Painted defects above, real ones below.", cells),
        Figure(grid(np.stack(rough), 2), f"Rough map: CLIP and UMCI. {EXPLAINED}", "heat where a cell seems damaged"),
        Figure(grid(np.stack(final), 2), "Final map: refined by SAM's masks.", "heat in sharper outlines"),
    ]


def stage_figure(name: str, examples: Sequence[Tiles]) -> Figure:
    """Return the examples of a data set, a row for each."""
    tiles = np.stack([tile for each in examples for tile in each])
    caption = f"{name}: photograph, rough map, SAM's masks, final map. {EXPLAINED}"
    return Figure(grid(tiles, 4), caption, f"defects of {name} and what was found of them")


def examples_of(model: ClipSAM, data: AnomalyData) -> list[Tiles]:
    """Return what is found in some defective images of a data set."""
    rows = [index for index, entry in enumerate(data.entries) if entry.is_anomalous]
    chosen = np.linspace(0, len(rows) - 1, min(EXAMPLES, len(rows))).round().astype(int)
    samples = [data[rows[place]] for place in chosen]
    found = [one for sample in samples for one in model.segment([sample.image], sample.category)]
    return [tiles(sample.image, one, model.mmr.threshold) for sample, one in zip(samples, found)]


def tiles(image: np.ndarray, found: Segmentation, threshold: float) -> Tiles:
    """Return photograph, rough map, SAM's masks and final map."""
    nothing, zeros = np.zeros(image.shape[:2], bool), np.zeros(image.shape[:2], np.float32)
    masks = np.logical_or.reduce([nothing, *found.masks])
    pictures = (
        overlay(image, zeros, nothing),
        overlay(image, found.rough_map, found.rough_map > threshold, found.boxes),
        overlay(image, zeros, masks),
        overlay(image, found.anomaly_map, found.anomaly_map > threshold),
    )
    return [np.asarray(picture.resize((TILE, TILE))) for picture in pictures]
