"""``clipsam demo``: the embedded models on real photographs of solar cells, which nothing here was trained on.

Two questions, each at three stages of the pipeline (texts alone, with UMCI, with UMCI and MMR): is a cell defective, on
ELPV's photographs; and which pixels are, on drawn images of held-out categories and on real functional cells with
painted defects, since nobody has drawn masks of ELPV's defects.
"""

from collections.abc import Iterable

import numpy as np
from PIL import Image

from clipsam.configs import DemoConfig
from clipsam.data.procedural import HELD_OUT_CATEGORIES
from clipsam.data.sample import AnomalyData
from clipsam.data.sources import CELLS, DEFECTIVE, ELPV, PROCEDURAL, SolarCellData, open_data, solar_cells
from clipsam.embedded import HEADS, asset, embedded_backbone, embedded_segmenter
from clipsam.eval_report import case_figures, curve_figures, defined, flat
from clipsam.measure import ALL, Evaluation, evaluate_all
from clipsam.model import ClipSAM, Segmentation
from clipsam.segment import overlay
from frugal_shared.checkpoint import write_json
from frugal_shared.report import Figure, Report, grid
from frugal_shared.run import Run
from frugal_shared.weights import DINOV2_VITS14

SHOWN = 4  # cells of each type, at equal distances in the data set's own order: not the prettiest ones
TILE = 200  # pixels, side of a picture in the report
LEAD = ("dataset", "stage", "image_auroc", "image_auroc_low", "image_auroc_high", "auroc", "f1_max", "ap", "aupro")


def demo(config: DemoConfig) -> None:
    """Evaluate, draw, and write rows, results and the report."""
    model = embedded_model()
    with Run(config, "clipsam") as run:
        found = evaluate_all(run, model, data_sets(config))
        rows = [row for each in found for row in each.rows]
        if run.accelerator.is_main_process:
            plain = [{key: defined(value) for key, value in row.items()} for row in rows if row["category"] == ALL]
            write_json(run.folder / "rows.json", plain)
            report(model, found, config).write(run.folder)
        run.finish(flat(rows))


def embedded_model() -> ClipSAM:
    """Return the pipeline of the shipped models.

    Raises:
        RunError: the ``[demo]`` extra is missing.
    """
    return ClipSAM.from_pretrained(asset(HEADS), backbone=embedded_backbone(), segmenter=embedded_segmenter())


def data_sets(config: DemoConfig) -> list[AnomalyData]:
    """Return what is evaluated: real cells first."""
    drawn = [open_data(name, config.samples, config.seed) for name in (PROCEDURAL, CELLS)]
    return [*(solar_cells(name, config.cells) for name in ELPV), *drawn]


def report(model: ClipSAM, found: list[Evaluation], config: DemoConfig) -> Report:
    """Return the report: what was found in real cells, the table, curves, and the worst cases."""
    page = Report(
        "Defects in solar cells that nobody trained on", "CLIP finds, SAM refines; embedded models, zero-shot"
    )
    for name in ELPV:
        page.figures([Figure(gallery(model, solar_cells(name, config.cells)), f"{name}: {EXPLAINED}", "real cells")])
    rows = [{key: row[key] for key in LEAD} for each in found for row in each.rows if row["category"] == ALL]
    page.table(rows, f"seed {config.seed}; image_auroc_low and _high: 95 % interval (DeLong)")
    page.command(f"clipsam demo --samples {config.samples} --cells {config.cells} --seed {config.seed}")
    page.section("Curves")
    page.figures(curve_figures(found))
    for each in found:
        page.section(f"Worst cases of {each.name}")
        page.figures(case_figures(each))
    page.note(
        f"ELPV's test cells (CC BY-NC-SA 4.0), functional or defective without doubt, border cut off, divided by their "
        f"median. pixel-std is the trivial row: the standard deviation of the pixels. {PROCEDURAL}: {config.samples} "
        f"drawn images of {len(HELD_OUT_CATEGORIES)} categories that were held out. {CELLS}: {config.samples} real "
        f"functional cells, half with painted defects. Where no masks are, mmr is umci: a mask cannot lift an image's "
        f"score. Heads: {', '.join(f'{key} {value}' for key, value in model.provenance.items())}. Visual tower: "
        f"{DINOV2_VITS14.provenance}."
    )
    return page


EXPLAINED = "photograph, rough map, SAM's masks, final map. Cyan: above the threshold."


def gallery(model: ClipSAM, cells: SolarCellData) -> Image.Image:
    """Return a row of four pictures for some defective cells."""
    defective = [index for index, entry in enumerate(cells.entries) if entry.defect == DEFECTIVE]
    chosen = np.linspace(0, len(defective) - 1, min(SHOWN, len(defective))).round().astype(int)
    images = [cells[defective[index]].image for index in chosen]
    [category] = cells.categories
    found = [one for image in images for one in model.segment([image], category)]
    return grid(np.stack([tile for pair in zip(images, found) for tile in tiles(*pair, model.mmr.threshold)]), 4)


def tiles(image: np.ndarray, found: Segmentation, threshold: float) -> Iterable[np.ndarray]:
    """Return photograph, rough map, SAM's masks and final map, ``(200, 200, 3)`` each."""
    nothing, zeros = np.zeros(image.shape[:2], bool), np.zeros(image.shape[:2], np.float32)
    masks = np.logical_or.reduce([nothing, *found.masks])
    pictures = (
        overlay(image, zeros, nothing),
        overlay(image, found.rough_map, found.rough_map > threshold, found.boxes),
        overlay(image, zeros, masks),
        overlay(image, found.anomaly_map, found.anomaly_map > threshold),
    )
    return [np.asarray(picture.resize((TILE, TILE))) for picture in pictures]
