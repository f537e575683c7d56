"""Metrics of anomaly segmentation, streaming and mergeable; numpy and scipy only, usable alone.

Every metric is read off one :class:`Curve`: how many normal pixels, anomalous pixels and (shares of) anomalous regions
have a score of at least each threshold. :class:`PixelMetrics` keeps it as a histogram of fixed size, whatever the
number of images; with ``exact=True`` it keeps all scores and sorts them, to verify the histogram.

    metrics = PixelMetrics()
    for anomaly_map, mask in ...:
        metrics.update(anomaly_map, mask)
    metrics.compute()["aupro"]
"""

import warnings
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage, stats
from scipy.integrate import trapezoid

Array = NDArray[Any]

EIGHT_CONNECTED = np.ones((3, 3), int)  # pixels that touch at a corner belong to one region
CROWDED = 1e-3  # share of a map's pairs of pixels in one bin from which on it is binned by rank
LEGACY_THRESHOLDS = 200
LEGACY_LIMIT = 0.3  # the false positive rate at which the literature's variant always cuts


@dataclass(frozen=True, eq=False)
class Curve:
    """What lies at or above each threshold.

    Args:
        thresholds: ``(T,)``, distinct, falling.
        false_positives: ``(T,)``, normal pixels with a score of at least the threshold.
        true_positives: ``(T,)``, anomalous ones.
        overlap: ``(T,)``, the sum over all anomalous regions of the share of the region that is found.
        regions: number of anomalous regions.
    """

    thresholds: Array
    false_positives: Array
    true_positives: Array
    overlap: Array
    regions: int

    @property
    def normal(self) -> float:
        """Number of normal pixels."""
        return float(self.false_positives[-1]) if len(self.thresholds) else 0.0

    @property
    def anomalous(self) -> float:
        """Number of anomalous pixels."""
        return float(self.true_positives[-1]) if len(self.thresholds) else 0.0

    @property
    def fpr(self) -> Array:
        """False positive rate from 0 to 1, with the point before the first threshold, ``(T + 1,)``."""
        return np.append(0.0, self.false_positives / self.normal)

    def auroc(self) -> float:
        """Area under the ROC curve."""
        if not self.normal or not self.anomalous:
            return np.nan
        return float(trapezoid(np.append(0.0, self.true_positives / self.anomalous), self.fpr))

    def average_precision(self) -> float:
        """AP = Σ (R_n − R_{n−1}) P_n, the sum of steps, not of trapezoids, which would be too large."""
        if not self.anomalous:
            return np.nan
        precision = self.true_positives / (self.true_positives + self.false_positives)
        return float(np.diff(self.true_positives, prepend=0) @ precision / self.anomalous)

    def f1_max(self) -> tuple[float, float]:
        """Return the largest F1 = 2 TP / (2 TP + FP + FN) over all thresholds, and its threshold."""
        if not self.anomalous:
            return np.nan, np.nan
        f1 = 2 * self.true_positives / (self.true_positives + self.false_positives + self.anomalous)
        best = int(f1.argmax())
        return float(f1[best]), float(self.thresholds[best])

    def aupro(self, limit: float) -> float:
        """Area under the mean region overlap against the false positive rate up to ``limit``, divided by ``limit``.

        Bergmann et al., "The MVTec Anomaly Detection Dataset", 2021, §5.1; interpolated linearly at the limit.
        """
        if not self.normal or not self.regions:
            return np.nan
        fpr, pro = self.fpr, np.append(0.0, self.overlap / self.regions)
        at_limit = np.interp(limit, fpr, pro)
        below = fpr < limit
        return float(trapezoid(np.append(pro[below], at_limit), np.append(fpr[below], limit)) / limit)

    def aupro_legacy200(self, lowest: float, highest: float) -> float:
        """The variant of much published code: 200 thresholds, no interpolation, the rate stretched to [0, 1].

        It reads the map at equal distances between its smallest and largest score, so it depends on the scale of the
        scores: maps that are nearly binary, as SAM's masks make them, lose most of it. Only to compare with tables.
        """
        if not self.normal or not self.regions or not highest > lowest:
            return np.nan
        thresholds = np.arange(lowest, highest, (highest - lowest) / LEGACY_THRESHOLDS)
        above = np.searchsorted(-self.thresholds, -thresholds, side="left")  # strictly above, as in that code
        fpr, pro = self.fpr[above], np.append(0.0, self.overlap / self.regions)[above]
        fpr, pro = fpr[fpr < LEGACY_LIMIT], pro[fpr < LEGACY_LIMIT]
        if len(fpr) < 2 or fpr.max() == fpr.min():
            return np.nan
        return float(trapezoid(pro[::-1], (fpr[::-1] - fpr.min()) / (fpr.max() - fpr.min())))


def sorted_curve(scores: Array, anomalous: Array, weights: Array, regions: int) -> Curve:
    """Return the curve through every distinct score.

    Args:
        scores: ``(N,)``.
        anomalous: ``(N,)`` bool.
        weights: ``(N,)``, 1 / size of the pixel's region; 0 for normal pixels.
        regions: number of regions.
    """
    order = np.argsort(-scores, kind="stable")
    scores, anomalous, weights = scores[order], anomalous[order], weights[order]
    last = np.flatnonzero(np.append(np.diff(scores) != 0, len(scores) > 0))  # of each run of equal scores
    false, true, overlap = (np.cumsum(values, dtype=float)[last] for values in (~anomalous, anomalous, weights))
    return Curve(scores[last], false, true, overlap, regions)


def pixel_weights(mask: Array) -> tuple[Array, int]:
    """Return 1 / size of its region for every anomalous pixel in reading order, and the number of regions."""
    labels, regions = ndimage.label(mask, EIGHT_CONNECTED)  # pyright: ignore[reportGeneralTypeIssues]
    found: Array = np.asarray(labels)[mask]
    return 1 / np.bincount(found).take(found), int(regions)


@dataclass(frozen=True, eq=False)
class Ranked:
    """How many pixels have each score.

    Args:
        scores: ``(n,)``, distinct, rising.
        counts: ``(3, n)``: normal pixels, anomalous pixels, region shares.
    """

    scores: Array
    counts: Array

    def joined(self, other: "Ranked", bins: int | None = None) -> "Ranked":
        """Return both together; of more than four times ``bins`` scores only so many, with equal shares of pixels."""
        if not len(self.scores) or not len(other.scores):
            return self if len(self.scores) else other
        scores, places = np.unique(np.concatenate([self.scores, other.scores]), return_inverse=True)
        counts = np.concatenate([self.counts, other.counts], axis=1)
        both = Ranked(scores, np.stack([np.bincount(places, row, len(scores)) for row in counts]))
        return both if bins is None or len(scores) <= 4 * bins else both.coarser(bins)

    def coarser(self, bins: int) -> "Ranked":
        """Return about as many scores as there are bins: neighbours joined under the lowest of their scores."""
        kinds = self.counts[:2] / np.maximum(self.counts[:2].sum(1, keepdims=True), 1)
        share = np.cumsum(kinds.sum(0))
        group = np.floor((share - kinds.sum(0) / 2) / share[-1] * bins)
        first = np.flatnonzero(np.diff(group, prepend=-1))
        return Ranked(self.scores[first], np.add.reduceat(self.counts, first, axis=1))


def rank(scores: Array, anomalous: Array, weights: Array) -> Ranked:
    """Return the distinct scores of a map with their pixels; ``weights`` as of :func:`pixel_weights`."""
    distinct, everything = np.unique(scores, return_counts=True)
    counts = np.zeros((3, len(distinct)))
    if len(weights):
        places = np.searchsorted(distinct, scores[anomalous])
        counts[1], counts[2] = (np.bincount(places, values, len(distinct)) for values in (None, weights))
    counts[0] = everything - counts[1]
    return Ranked(distinct.astype(float), counts)


def unit_scores(anomaly_map: Array) -> Array:
    """Return a map as numbers of which 1 is the greatest possible, in a format that can tell them apart."""
    if anomaly_map.dtype in (np.uint8, np.uint16):
        return anomaly_map / np.float32(np.iinfo(anomaly_map.dtype).max)
    return anomaly_map.astype(np.float32) if anomaly_map.dtype == np.float16 else anomaly_map


class PixelMetrics:
    """Pixel metrics of any number of anomaly maps with their masks.

    The histogram counts scores in equal bins of [0, 1]: what falls into one bin counts as equal. With 65,536 bins that
    is a rounding of scores by at most 1.5e-5; its state is three arrays of 512 KiB. An AUROC or AUPRO changes by at
    most the share of pairs of pixels that share a bin.

    Of a map most of whose scores lie close together, because it is squeezed or saturated, that share is large. Such
    maps are binned by rank instead: every distinct score is kept, until there are more than four times as many as bins;
    then neighbours are joined so that each holds an equal share of the pixels, normal and anomalous ones alike. That
    takes longer, and at most 8 MiB.

    Args:
        bins: of the histogram.
        fpr_limit: false positive rate up to which ``aupro`` integrates, in (0, 1].
        exact: keep all scores, about 17 bytes a pixel, and sort them.
    """

    def __init__(self, *, bins: int = 65536, fpr_limit: float = 0.3, exact: bool = False) -> None:
        if bins < 2:
            raise ValueError(f"bins={bins!r} is not possible; allowed: 2 or more")
        if not 0 < fpr_limit <= 1:
            raise ValueError(f"fpr_limit={fpr_limit!r} is not possible; allowed: above 0, at most 1")
        self.bins, self.fpr_limit, self.exact = bins, fpr_limit, exact
        self.regions, self.lowest, self.highest = 0, np.inf, -np.inf
        self._histogram = np.zeros((3, bins))  # normal pixels, anomalous pixels, region shares
        self._ranked = Ranked(np.zeros(0), np.zeros((3, 0)))
        self._kept: list[tuple[Array, Array, Array]] = []

    def update(self, anomaly_map: ArrayLike, mask: ArrayLike) -> None:
        """Take in one image.

        Args:
            anomaly_map: ``(H, W)`` in [0, 1]; of uint8 or uint16 the greatest possible value is 1.
            mask: ``(H, W)`` bool, where the image is anomalous.

        Raises:
            ValueError: another shape, or a score that is not a number in [0, 1].
        """
        scores, anomalous = unit_scores(np.asarray(anomaly_map)), np.asarray(mask, bool)
        if scores.ndim != 2 or scores.shape != anomalous.shape or not scores.size:
            raise ValueError(f"a map of shape {scores.shape} and a mask of {anomalous.shape}; allowed: (H, W) twice")
        lowest, highest = scores.min(), scores.max()
        if not (lowest >= 0 and highest <= 1):  # NaN fails both
            raise ValueError(f"a map's scores lie in [{lowest}, {highest}]; allowed: numbers in [0, 1]")
        self.lowest, self.highest = min(self.lowest, float(lowest)), max(self.highest, float(highest))
        weights, regions = pixel_weights(anomalous) if anomalous.any() else (np.zeros(0), 0)
        self.regions += regions
        (self._keep if self.exact else self._count)(scores, anomalous, weights)

    def _count(self, scores: Array, anomalous: Array, weights: Array) -> None:
        index = np.minimum((scores * self.bins).astype(np.int32), self.bins - 1)
        everything = np.bincount(index.ravel(), minlength=self.bins)
        if (everything * (everything - 1.0)).sum() > CROWDED * scores.size**2:
            self._ranked = self._ranked.joined(rank(scores, anomalous, weights), self.bins)
            return
        if len(weights):
            found = np.bincount(index[anomalous], minlength=self.bins)
            self._histogram[1] += found
            self._histogram[2] += np.bincount(index[anomalous], weights, self.bins)
            everything -= found
        self._histogram[0] += everything

    def _keep(self, scores: Array, anomalous: Array, weights: Array) -> None:
        spread = np.zeros(scores.shape)
        spread[anomalous] = weights
        self._kept.append((scores.ravel().astype(float), anomalous.ravel(), spread.ravel()))

    def merge(self, other: Self) -> None:
        """Take in everything that ``other`` has seen.

        Raises:
            ValueError: the other counts differently.
        """
        if (other.bins, other.exact) != (self.bins, self.exact):
            raise ValueError(
                f"metrics with bins={other.bins!r}, exact={other.exact!r} do not merge into "
                f"bins={self.bins!r}, exact={self.exact!r}; allowed: equal ones"
            )
        self.regions += other.regions
        self.lowest, self.highest = min(self.lowest, other.lowest), max(self.highest, other.highest)
        self._histogram += other._histogram
        self._ranked = self._ranked.joined(other._ranked, self.bins)
        self._kept += other._kept

    def state(self) -> dict[str, Array]:
        """Return everything seen, as arrays: what a process sends or a checkpoint keeps."""
        state = {"seen": np.array([self.regions, self.lowest, self.highest], float)}
        if not self.exact:
            ranked = {"ranked_scores": self._ranked.scores, "ranked": self._ranked.counts}
            return state | {"histogram": self._histogram.copy()} | ranked
        columns = zip(*self._kept) if self._kept else [[np.zeros(0)], [np.zeros(0, bool)], [np.zeros(0)]]
        return state | dict(zip(("scores", "anomalous", "weights"), map(np.concatenate, columns)))

    def load_state(self, state: dict[str, Array]) -> Self:
        """Replace everything seen by a :meth:`state` of metrics with the same options; return itself."""
        regions, self.lowest, self.highest = map(float, state["seen"])
        self.regions = int(regions)
        if self.exact:
            self._kept = [(state["scores"], state["anomalous"], state["weights"])]
        else:
            self._histogram = np.array(state["histogram"], float).reshape(3, self.bins)
            self._ranked = Ranked(state["ranked_scores"], state["ranked"])
        return self

    def curve(self) -> Curve:
        """Return the curve of everything seen."""
        if self.exact:
            kept = self.state()
            return sorted_curve(kept["scores"], kept["anomalous"], kept["weights"], self.regions)
        filled = np.flatnonzero(self._histogram[:2].any(0))
        seen = Ranked(filled / self.bins, self._histogram[:, filled]).joined(self._ranked)
        false, true, overlap = np.cumsum(seen.counts[:, ::-1], axis=1)
        return Curve(seen.scores[::-1], false, true, overlap, self.regions)

    def compute(self) -> dict[str, float]:
        """Return ``auroc``, ``f1_max`` and its ``threshold``, ``ap``, ``aupro`` and ``aupro_legacy200``.

        What is not defined, because no pixel is anomalous or none is normal, is NaN, with a warning.
        """
        curve = self.curve()
        f1, threshold = curve.f1_max()
        found = {
            "auroc": curve.auroc(),
            "f1_max": f1,
            "threshold": threshold,
            "ap": curve.average_precision(),
            "aupro": curve.aupro(self.fpr_limit),
            "aupro_legacy200": curve.aupro_legacy200(self.lowest, self.highest),
        }
        _warn_if_one_kind(curve, "pixel")
        return found


@dataclass
class ImageMetrics:
    """Image metrics of any number of image scores: exact, since there are few."""

    scores: list[float] = field(default_factory=list)
    anomalous: list[bool] = field(default_factory=list)

    def update(self, score: float, is_anomalous: bool) -> None:
        """Take in one image.

        Raises:
            ValueError: the score is not a finite number.
        """
        if not np.isfinite(score):
            raise ValueError(f"an image's score is {score!r}; allowed: finite numbers")
        self.scores.append(float(score))
        self.anomalous.append(bool(is_anomalous))

    def merge(self, other: Self) -> None:
        """Take in everything that ``other`` has seen."""
        self.scores += other.scores
        self.anomalous += other.anomalous

    def compute(self) -> dict[str, float]:
        """Return ``image_auroc``, ``image_ap`` and ``image_f1_max``; NaN with a warning where one kind is missing."""
        scores, anomalous = np.array(self.scores), np.array(self.anomalous, bool)
        curve = sorted_curve(scores, anomalous, np.zeros(len(scores)), 0)
        _warn_if_one_kind(curve, "image")
        return {
            "image_auroc": curve.auroc(),
            "image_ap": curve.average_precision(),
            "image_f1_max": curve.f1_max()[0],
        }

    def threshold(self) -> float:
        """Return the score from which on images are called anomalous for the best F1; NaN if none is."""
        scores, anomalous = np.array(self.scores), np.array(self.anomalous, bool)
        return sorted_curve(scores, anomalous, np.zeros(len(scores)), 0).f1_max()[1]

    def auroc_interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Return a confidence interval of the image AUROC (DeLong, DeLong & Clarke-Pearson, Biometrics 44, 1988).

        NaN with fewer than two images of a kind.
        """
        scores, anomalous = np.array(self.scores), np.array(self.anomalous, bool)
        bad, good = scores[anomalous], scores[~anomalous]
        if min(len(bad), len(good)) < 2:
            return np.nan, np.nan
        # placement values: the share of the other kind that an image is ranked right against
        ranks = stats.rankdata(np.concatenate([bad, good]))
        above_good = (ranks[: len(bad)] - stats.rankdata(bad)) / len(good)
        below_bad = 1 - (ranks[len(bad) :] - stats.rankdata(good)) / len(bad)
        auroc = above_good.mean()
        deviation = np.sqrt(above_good.var(ddof=1) / len(bad) + below_bad.var(ddof=1) / len(good))
        half = stats.norm.ppf(0.5 + confidence / 2) * deviation
        return float(max(0.0, auroc - half)), float(min(1.0, auroc + half))


def _warn_if_one_kind(curve: Curve, unit: str) -> None:
    for kind, count in (("anomalous", curve.anomalous), ("normal", curve.normal)):
        if not count:
            warnings.warn(f"no {unit} is {kind}: metrics that need one are NaN", RuntimeWarning, stacklevel=3)
