"""``clipsam bench``: what the parts cost on this machine's CPU, each against the usual way where there is one.

Random weights are as fast as trained ones, so nothing has to be downloaded.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from scipy import ndimage
from segment_anything import sam_model_registry
from torch import Tensor

from clipsam.backbone import Backbone
from clipsam.commands.models import DTYPES
from clipsam.commands.options import BenchConfig
from clipsam.embedded.dinov2 import embedded_model
from clipsam.metrics import PixelMetrics
from clipsam.mmr import refine
from clipsam.pipeline import ClipSAM
from clipsam.promptable import Prompts, Segmenter
from clipsam.sam import SamSegmenter
from clipsam.umci import UMCIHead, rough_map
from frugal_shared.errors import RunError
from frugal_shared.parts import measure_parts
from frugal_shared.report import Report
from frugal_shared.run import Run
from frugal_shared.timing import compare

Row = dict[str, Any]

TIMED = ("clip", "umci", "sam_encoder", "sam_decoder", "post")
SIDE = 1024  # of the images that are timed, in pixels
COMPONENTS = 4  # in the map that MMR refines: 8 prompts
MAP_SIDE = 1000  # of the maps that the metrics see: a megapixel each
COLUMNS = {"part": "part", "model": "model", "seconds_p50": "p50 s", "seconds_p95": "p95 s", "usual_p50": "usual p50 s"}
COLUMNS |= {"ratio": "×", "difference": "difference", "state_bytes": "state bytes"}
COLUMNS |= {"why": "why"}
PRINTED = ("part", "model", "seconds_p50", "seconds_p95", "ratio", "why")  # what a terminal has room for


def published() -> ClipSAM:
    """Return the paper's models, CLIP ViT-L/14 at 336 pixels with UMCI and SAM ViT-B, with random weights."""
    backbone = Backbone.from_open_clip("ViT-L-14-336-quickgelu", image_size=336)
    umci = UMCIHead(len(backbone.stages), backbone.width, backbone.text_dim)
    return ClipSAM(backbone, umci, segmenter=SamSegmenter(sam_model_registry["vit_b"]()))


MODELS: dict[str, Callable[[], ClipSAM]] = {"embedded": embedded_model, "ViT-L-14-336 + SAM vit_b": published}
"""The pipelines whose stages are timed, by name."""


def main(config: BenchConfig) -> None:
    """Time every part and write the rows and the report; a resumed run keeps the parts it has."""
    parts: list[Callable[[], list[Row]]] = [
        lambda: [metrics_row(config)],
        *(lambda name=name: stage_rows(name, MODELS[name], config) for name in MODELS),
    ]
    with Run(config, "clipsam") as run:
        rows = measure_parts(run, parts, config.seed, config.json)
        if run.accelerator.is_main_process:
            bench_page(rows, config).write(run.folder)
            print_timings(rows)
        run.finish(figures_of(rows))


def metrics_row(config: BenchConfig) -> Row:
    """Time the histogram against sorting all scores, on the same maps, and compare their AUPRO."""
    maps = random_maps(config.pixels, config.seed)
    exact, ours = measured(maps, exact=True), measured(maps, exact=False)
    row = against(
        "aupro",
        f"{config.pixels} Mpx",
        lambda: measured(maps, exact=True).compute(),
        lambda: measured(maps, exact=False).compute(),
        config.repeats,
    )
    return row | {
        "difference": abs(ours.compute()["aupro"] - exact.compute()["aupro"]),
        "state_bytes": sum(array.nbytes for array in ours.state().values()),
        "usual_state_bytes": sum(array.nbytes for array in exact.state().values()),
    }


def random_maps(count: int, seed: int) -> list[tuple[NDArray[np.float32], NDArray[np.bool_]]]:
    """Return anomaly maps ``(MAP_SIDE, MAP_SIDE)`` in [0, 1] with masks that they find in part."""
    random = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        truth = np.asarray(ndimage.zoom(random.random((20, 20)), MAP_SIDE / 20, order=1))
        scores = 0.5 * truth + 0.5 * random.random((MAP_SIDE, MAP_SIDE))
        found.append((scores.astype(np.float32), truth > 0.9))
    return found


def measured(maps: list[tuple[NDArray[np.float32], NDArray[np.bool_]]], *, exact: bool) -> PixelMetrics:
    """Return metrics that have seen all maps."""
    metrics = PixelMetrics(exact=exact)
    for scores, mask in maps:
        metrics.update(scores, mask)
    return metrics


def stage_rows(name: str, build: Callable[[], ClipSAM], config: BenchConfig) -> list[Row]:
    """Time every stage of a pipeline on images of their own, after one that is not counted."""
    try:
        model = build().to(dtype=DTYPES[config.dtype])
    except RunError as error:  # an extra that is not installed
        return [{"part": "pipeline", "model": name, "why": " ".join(str(error).split())}]
    watch, random = Stopwatch(), np.random.default_rng(config.seed)
    for _ in range(config.repeats + 1):
        time_stages(model, random.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8), watch)
    return [{"part": stage, "model": name, **percentiles(watch.seconds[stage][1:])} for stage in TIMED]


@torch.no_grad()
def time_stages(model: ClipSAM, image: NDArray[np.uint8], watch: "Stopwatch") -> None:
    """Run the pipeline once; MMR refines a map with components, which random weights would not give."""
    umci: Any = model.umci
    segmenter: Any = model.segmenter
    language = model.backbone.text("object", model.bank)
    with watch("clip"):
        patches = model.backbone.patches(model.backbone.preprocess(image)[None])
    with watch("umci"):
        rough_map(umci(patches, language))
    inner = TimedSegmenter(segmenter, watch)
    began = perf_counter()
    refine(image, map_of_components(*image.shape[:2]), inner, model.mmr)
    of_sam = watch.seconds["sam_encoder"][-1] + watch.seconds["sam_decoder"][-1]
    watch.seconds["post"].append(perf_counter() - began - of_sam)


def map_of_components(height: int, width: int) -> NDArray[np.float32]:
    """Return a map ``(height, width)`` with squares to refine, one in each row of its diagonal."""
    rough = np.zeros((height, width), np.float32)
    for number in range(COMPONENTS):
        y, x = (side * number // COMPONENTS for side in (height, width))
        rough[y : y + height // 8, x : x + width // 8] = 0.9
    return rough


@dataclass
class Stopwatch:
    """Seconds of every stage, one number for each time it ran."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: {stage: [] for stage in TIMED})

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Time what runs inside."""
        began = perf_counter()
        yield
        self.seconds[stage].append(perf_counter() - began)


@dataclass
class TimedSegmenter:
    """A segmenter that is watched."""

    segmenter: Segmenter
    watch: Stopwatch

    def embed(self, image: NDArray[np.uint8]) -> Any:
        """Embed, timed."""
        with self.watch("sam_encoder"):
            return self.segmenter.embed(image)

    def decode(self, embedding: Any, prompts: Prompts) -> tuple[Tensor, Tensor]:
        """Decode, timed."""
        with self.watch("sam_decoder"):
            return self.segmenter.decode(embedding, prompts)


def against(part: str, model: str, usual: Callable[[], object], ours: Callable[[], object], repeats: int) -> Row:
    """Time two calls in alternating pairs; the ratio is the median of the pairs' ratios, usual ÷ ours."""
    seconds: list[float] = []

    def timed() -> None:
        began = perf_counter()
        ours()
        seconds.append(perf_counter() - began)

    found = compare(usual, timed, warmup=1, repeats=repeats)
    return {
        "part": part,
        "model": model,
        **percentiles(seconds[1:]),  # without the warm-up
        "usual_p50": found.a_seconds,
        "ratio": found.ratio,
        "ratio_low": found.ratio_low,
        "ratio_high": found.ratio_high,
    }


def percentiles(seconds: list[float]) -> Row:
    """Return the median and the 95th percentile."""
    middle, high = np.quantile(seconds, [0.5, 0.95]).tolist()
    return {"seconds_p50": middle, "seconds_p95": high}


def figures_of(rows: list[Row]) -> dict[str, float]:
    """Return the figures under names of part, model and column."""
    return {
        f"{row['part']}_{row['model']}_{key}": value
        for row in rows
        for key, value in row.items()
        if isinstance(value, int | float)
    }


def headed(rows: list[Row]) -> list[Row]:
    """Return rows under the headings of the tables, without the columns that no row fills."""
    filled = [key for key in COLUMNS if any(row.get(key) is not None for row in rows)]
    return [{COLUMNS[key]: row.get(key) for key in filled} for row in rows]


def print_timings(rows: list[Row]) -> None:
    """Print the rows as a table."""
    table = Table(title=f"{torch.get_num_threads()} threads")
    columns = [COLUMNS[key] for key in PRINTED]
    for name in columns:
        table.add_column(name, justify="left" if name in ("part", "model", "why") else "right")
    for row in ([line.get(name) for name in columns] for line in headed(rows)):
        values = ("" if v is None else f"{v:.4g}" if isinstance(v, float) else escape(str(v)) for v in row)
        table.add_row(*values)
    Console().print(table)


def bench_page(rows: list[Row], config: BenchConfig) -> Report:
    """Return the report: the table and what was measured."""
    page = Report("What the parts cost", f"{torch.get_num_threads()} threads of this machine's CPU")
    page.table(headed(rows), f"Median and 95th percentile over {config.repeats} runs.")
    page.command(f"clipsam bench --pixels {config.pixels} --repeats {config.repeats}")
    page.note(
        "aupro: the histogram against sorting all scores; × is the median over alternating pairs. The stages are those "
        f"of one image of {SIDE}×{SIDE} pixels with {COMPONENTS} components; of the models with published shapes, all "
        "weights are random."
    )
    return page
