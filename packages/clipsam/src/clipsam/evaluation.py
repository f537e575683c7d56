"""How well each stage of the pipeline finds the anomalies of a data set.

A row is one stage on one category of one data set. The category "all" is the mean over the categories, which is what
the literature's tables hold; the curves are of all pixels together, and so are the row's thresholds, those of the best
F1: on the same images that the F1 is of, so that it flatters. What is not defined, such as pixel metrics without
masks, is NaN.

============  ==========================================================================================
stage         pixels                                    image score
============  ==========================================================================================
clip          the map from texts alone                  its highest value, see ``score.py``
umci          the rough map                             likewise, or that of rarity times it
mmr           the refined map                           that of the rough map, which no mask can lift
map           the last of clip and umci again           likewise: what there is without other images
distance      how unlike all references a patch is      its highest value
combined      that with the rough map                   likewise, see ``memory.py``
mutual        how unlike all other images a patch is    its highest value; no references
a baseline    none                                      whatever it makes of the image
============  ==========================================================================================
"""

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from clipsam.memories import MAP, Memories, Score, wanted_manners
from clipsam.memory import Memory
from clipsam.metrics import Curve, ImageMetrics, PixelMetrics, sorted_curve
from clipsam.pipeline import ClipSAM, Scored
from clipsam.samples import UNKNOWN, AnomalyData, Entry, Sample

Stage = Literal["clip", "umci", "mmr"]
STAGES: tuple[Stage, ...] = get_args(Stage)
"""CLIP's texts alone, with UMCI, with UMCI and MMR."""
ALL = "all"
PIXEL_COLUMNS = ("auroc", "f1_max", "ap", "aupro", "aupro_legacy200")
IMAGE_COLUMNS = ("image_auroc", "image_ap", "image_f1_max")
INTERVAL = ("image_auroc_low", "image_auroc_high")
THRESHOLDS = ("threshold", "image_threshold")
FIGURES = (*PIXEL_COLUMNS, *IMAGE_COLUMNS, *INTERVAL, *THRESHOLDS)
COLUMNS: tuple[str, ...] = ("stage", "dataset", "category", *FIGURES, "images")
DIGITS = 9  # of a result: the order in which processes are merged shows in the last bits of a sum
MISSED, FALSE_ALARM = "missed", "false alarm"
WORST = 6  # cases of each kind that are kept

Row = dict[str, Any]
Map = NDArray[np.float32]
Batches = Iterable[Sequence[int]]
Picture = Callable[[Sample, Map], NDArray[np.uint8]]


@dataclass(frozen=True, eq=False)
class Case:
    """An image that went wrong."""

    kind: str
    """:data:`MISSED`, or :data:`FALSE_ALARM`."""
    badness: float
    """The larger, the worse: −AP of a missed defect (−score where its place is not known), score of a normal image."""
    entry: Entry
    picture: NDArray[np.uint8] | None
    """What the evaluation was asked to draw of it."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What was measured on one data set.

    Args:
        name: the data set's.
        rows: see the module; of each stage the categories in the data set's order, then "all".
        curves: stage -> curve of all pixels; only of stages with pixel metrics.
        worst: the worst cases of the last stage, the worst of each kind first.
        failures: one line for every image that could not be read.
    """

    name: str
    rows: list[Row]
    curves: dict[str, Curve]
    worst: list[Case]
    failures: list[str]


def evaluate(
    model: ClipSAM,
    data: AnomalyData,
    stages: Sequence[Stage] = STAGES,
    *,
    batch_size: int = 16,
    fpr_limit: float = 0.3,
    references: AnomalyData | None = None,
    scores: Sequence[Score] = (),
    baselines: Mapping[str, Callable[[NDArray[np.uint8]], float]] | None = None,
    unreadable: tuple[type[Exception], ...] = (OSError, ValueError),
    picture: Picture | None = None,
    share: Callable[[list[list[int]]], Batches] = iter,
    gather: Callable[["Tally"], Iterable["Tally"]] | None = None,
) -> Evaluation:
    """Measure stages of the pipeline on a data set; the same on any number of processes.

    Args:
        model: the pipeline.
        data: images, with masks or without.
        stages: which; the worst cases are the last one's.
        batch_size: images of one category that CLIP sees at once.
        fpr_limit: false positive rate up to which AUPRO integrates.
        references: other images of its categories, for the rows "distance" and "combined"; nothing of them but the
            image is looked at, and those that cannot be read are named in ``failures``.
        scores: rows more, of :data:`SCORES`; default: with references "distance" and "combined", which always come
            together, the plain row beside ours.
        baselines: name of a row → score of an image ``(H, W, 3)``, to compare with.
        unreadable: what ``data[index]`` raises for a sample that is to be left out and named in ``failures``.
        picture: draws a bad case, so small that it can be kept.
        share: returns those of all batches that this process takes; may show a progress bar.
        gather: returns what the other processes have measured.

    Raises:
        UnusableReference: none of a category's references can be read.
        ValueError: a score that needs references, and there are none.
    """
    manners = wanted_manners(scores, references is not None)
    located = any(entry.is_anomalous and entry.has_mask for entry in data.entries)
    tally = Tally(fpr_limit, refines=located)  # where nobody knows the place, only the image's score is judged
    memories = Memories(model, data, references, manners, unreadable)
    for batch in share(batches_of(data, batch_size)):
        samples = tally.readable(data, batch, unreadable)
        if samples:
            beside = memories.of(samples[0][0].category)
            tally.take(model, samples, stages, beside, picture, repeats_map=MAP in scores)
            tally.compare(samples, baselines or {})
    tally.failures += memories.failures
    for other in [] if gather is None else gather(tally):
        tally.merge(other)
    return tally.evaluation(data)


def batches_of(data: AnomalyData, size: int) -> list[list[int]]:
    """Return the numbers of all samples in batches of one category each; a category's last one may be smaller."""
    by_category: dict[str, list[int]] = {category: [] for category in data.categories}
    for index, entry in enumerate(data.entries):
        by_category[entry.category].append(index)
    return [rows[start : start + size] for rows in by_category.values() for start in range(0, len(rows), size)]


class Tally:
    """What one process has measured on one data set: everything in it can be merged with another's."""

    def __init__(self, fpr_limit: float, *, refines: bool = True) -> None:
        self.fpr_limit, self.refines = fpr_limit, refines
        self.pixels: dict[tuple[str, str], PixelMetrics] = {}  # by stage and category
        self.images: dict[tuple[str, str], ImageMetrics] = {}
        self.cases: list[Case] = []
        self.failures: list[str] = []

    def readable(
        self, data: AnomalyData, batch: Sequence[int], unreadable: tuple[type[Exception], ...] = (OSError, ValueError)
    ) -> list[tuple[Entry, Sample]]:
        """Return the samples of a batch, with what was known of them before; the unreadable ones are failures."""
        entries, samples = data.entries, list[tuple[Entry, Sample]]()
        for index in batch:
            try:
                samples.append((entries[index], data[index]))
            except unreadable as error:
                self.failures.append(str(error))
        return samples

    def take(
        self,
        model: ClipSAM,
        samples: Sequence[tuple[Entry, Sample]],
        stages: Sequence[Stage],
        memories: Sequence[Memory] = (),
        picture: Picture | None = None,
        *,
        repeats_map: bool = False,
    ) -> None:
        """Measure the stages on some samples of one category; the arguments are those of :func:`evaluate`.

        With ``repeats_map`` the row "map" is written, too.
        """
        images = [sample.image for _, sample in samples]
        scored = run_stages(model, images, samples[0][0].category, stages, memories, refines=self.refines)
        if repeats_map:
            scored[MAP] = scored.get("umci") or model.scored(images, samples[0][0].category)
        for stage, results in scored.items():
            for (entry, sample), (anomaly_map, score) in zip(samples, results):
                if np.isfinite(score) and np.isfinite(anomaly_map).all():
                    self.update(stage, entry, sample, anomaly_map, score)
                else:
                    self.failures.append(f"{entry.source}: the map of {stage} holds NaN")
        for (entry, sample), (anomaly_map, score) in zip(samples, scored[stages[-1]]):
            if np.isfinite(score):
                self.keep_if_bad(entry, sample, anomaly_map, score, picture)

    def compare(
        self,
        samples: Sequence[tuple[Entry, Sample]],
        baselines: Mapping[str, Callable[[NDArray[np.uint8]], float]],
    ) -> None:
        """Take in what each baseline says of some samples."""
        for name, score in baselines.items():
            for entry, sample in samples:
                self.update(name, entry, sample, None, score(sample.image))

    def update(self, stage: str, entry: Entry, sample: Sample, anomaly_map: Map | None, score: float) -> None:
        """Take in what a stage says of one sample; of a sample nobody has judged nothing can be said."""
        key = stage, entry.category
        if key not in self.pixels:
            self.pixels[key], self.images[key] = PixelMetrics(fpr_limit=self.fpr_limit), ImageMetrics()
        if entry.defect != UNKNOWN:
            self.images[key].update(score, entry.is_anomalous)
        if anomaly_map is not None and entry.has_mask:
            self.pixels[key].update(anomaly_map, sample.mask)

    def keep_if_bad(
        self, entry: Entry, sample: Sample, anomaly_map: Map, score: float, picture: Picture | None = None
    ) -> None:
        """Keep a sample while it is among the worst of its kind."""
        if entry.defect == UNKNOWN:
            return
        kind = MISSED if entry.is_anomalous else FALSE_ALARM
        badness = -found_well(sample, anomaly_map, score) if entry.is_anomalous else score
        worst = [case.badness for case in self.cases if case.kind == kind]
        if len(worst) < WORST or badness >= min(worst):
            drawn = None if picture is None else picture(sample, anomaly_map)
            self.cases = worst_of([*self.cases, Case(kind, badness, entry, drawn)])

    def merge(self, other: "Tally") -> None:
        """Take in everything that another process has measured."""
        both: list[tuple[dict[Any, Any], dict[Any, Any]]] = [(self.pixels, other.pixels), (self.images, other.images)]
        for own, theirs in both:
            for key, metrics in theirs.items():
                if key in own:
                    own[key].merge(metrics)
                else:
                    own[key] = metrics
        self.cases = worst_of([*self.cases, *other.cases])
        self.failures += other.failures

    def evaluation(self, data: AnomalyData) -> Evaluation:
        """Return the rows, curves and worst cases of everything measured."""
        rows, curves = [], {}
        for stage in dict.fromkeys(stage for stage, _ in self.pixels):
            keys = [(stage, category) for category in data.categories if (stage, category) in self.pixels]
            own = [self._row(data.name, *key) for key in keys]
            together, images = PixelMetrics(fpr_limit=self.fpr_limit), ImageMetrics()
            for key in keys:
                together.merge(self.pixels[key])
                images.merge(self.images[key])
            curve = together.curve()
            thresholds = curve.f1_max()[1], best_image_threshold(images)
            rows += [*own, mean_row(own) | dict(zip(THRESHOLDS, (round(value, DIGITS) for value in thresholds)))]
            if curve.anomalous and curve.normal:
                curves[stage] = curve
        return Evaluation(data.name, rows, curves, self.cases, sorted(set(self.failures)))

    def _row(self, name: str, stage: str, category: str) -> Row:
        pixels, images = self.pixels[stage, category], self.images[stage, category]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # "metrics are NaN": the table shows it
            values = pixels.compute() | images.compute() | dict(zip(INTERVAL, images.auroc_interval()))
            values["image_threshold"] = best_image_threshold(images)
        if math.isnan(values["image_auroc"]):  # of one kind of images alone an AP is 1, or undefined
            values |= dict.fromkeys(IMAGE_COLUMNS, math.nan)
        measured = {key: round(values[key], DIGITS) for key in FIGURES}
        return {"stage": stage, "dataset": name, "category": category, **measured, "images": len(images.scores)}


def run_stages(
    model: ClipSAM,
    images: list[NDArray[np.uint8]],
    category: str,
    stages: Sequence[Stage],
    memories: Sequence[Memory] = (),
    *,
    refines: bool = True,
) -> dict[str, list[Scored]]:
    """Return every stage's map and score of each image.

    Args:
        model: the pipeline.
        images: of one category.
        category: theirs.
        stages: which.
        memories: of others of their kind: one stage more for each.
        refines: run SAM for "mmr"; else its map is the rough one, whose score it has anyway.
    """
    if not memories and set(stages) == {"clip"}:
        return {"clip": model.text_scored(images, category)}
    if not memories and "clip" not in stages:
        found = {"umci": model.scored(images, category)}
    else:
        found = model.every_stage(images, category, *memories)
    found["mmr"] = found["umci"]
    if refines and "mmr" in stages:
        segmented = [model.refined(image, *before) for image, before in zip(images, found["umci"])]
        found["mmr"] = [(one.anomaly_map, one.score) for one in segmented]
    return {stage: found[stage] for stage in (*stages, *(memory.manner for memory in memories))}


def best_image_threshold(images: ImageMetrics) -> float:
    """Return the score from which on images are called defective for the best F1; NaN if they are all of one kind."""
    return images.threshold() if 0 < sum(images.anomalous) < len(images.anomalous) else math.nan


def mean_row(rows: Sequence[Row]) -> Row:
    """Return the row "all": means over the categories where a metric is defined.

    The interval is that of a mean of independent values: its half width is the root of the sum of squares by their
    number.
    """
    row = rows[0] | {"category": ALL, "images": sum(row["images"] for row in rows)}
    for key in (*PIXEL_COLUMNS, *IMAGE_COLUMNS):
        defined = [row[key] for row in rows if not math.isnan(row[key])]
        row[key] = round(float(np.mean(defined)), DIGITS) if defined else math.nan
    low, high = INTERVAL
    # the wider half: the other may have been cut off at 0 or 1
    halves = [max(r["image_auroc"] - r[low], r[high] - r["image_auroc"]) for r in rows if r["image_auroc"] >= 0]
    half = float(np.sqrt(np.square(halves).sum())) / len(halves) if halves else math.nan
    if len(rows) > 1:
        row[low] = round(max(0.0, row["image_auroc"] - half), DIGITS) if half == half else math.nan
        row[high] = round(min(1.0, row["image_auroc"] + half), DIGITS) if half == half else math.nan
    return row


def found_well(sample: Sample, anomaly_map: Map, score: float) -> float:
    """Return the AP of one image's pixels; its score if nobody knows where the defect is."""
    if not sample.mask.any():
        return score
    mask = sample.mask.ravel()
    return sorted_curve(anomaly_map.ravel(), mask, np.zeros(mask.size), 0).average_precision()


def worst_of(cases: Iterable[Case]) -> list[Case]:
    """Return the worst few of each kind, whatever the order in which they come."""
    ranked = sorted(cases, key=lambda case: (-case.badness, case.entry.source))
    return [case for kind in (MISSED, FALSE_ALARM) for case in [c for c in ranked if c.kind == kind][:WORST]]
