"""What a pipeline's scores mean on one's own parts: from which score on an image is defective, and from which a pixel.

calibration = calibrate(model, sound_images, "bolt", alpha=0.05)
[found] = model.segment([image], "bolt")
calibration.verdict(found.score)  # "ok" or "defect"

From sound images alone both thresholds are conformal, see ``conformal.py``: of sound images at most a share α comes out
as "defect", and at most a share α has any pixel above the other threshold. From labelled images both are those of the
best F1. They are valid for scores made in the same way, of images of the same kind, and say so otherwise.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from clipsam.conformal import ALPHA, conformal_threshold, f1_threshold, finite
from clipsam.memory import Memory
from clipsam.pipeline import ClipSAM
from clipsam.writing import write_whole

SCHEMA = "clipsam-calibration-1"
Verdict = Literal["ok", "defect"]


@dataclass(frozen=True)
class Calibration:
    """Thresholds for one kind of part.

    Args:
        category: what the images show.
        threshold: an image with a higher score is defective.
        pixel_threshold: a pixel with a higher value in the map is, likewise.
        method: "conformal", or "f1" with labels.
        alpha: the promised false-alarm rate; None with labels.
        images: how many there were.
        scoring: what the scores were made with, :meth:`~clipsam.pipeline.ClipSAM.describe_scoring`.
    """

    category: str
    threshold: float
    pixel_threshold: float
    method: Literal["conformal", "f1"]
    alpha: float | None
    images: int
    scoring: dict[str, Any]

    def verdict(self, score: float) -> Verdict:
        """Return whether an image of that score is sound.

        Raises:
            ValueError: the score is not a number.
        """
        if not np.isfinite(score):
            raise ValueError(f"an image's score is {score!r}; allowed: finite numbers")
        return "defect" if score > self.threshold else "ok"

    def check(self, model: ClipSAM, category: str, memory: Memory | None = None) -> None:
        """Refuse scores that the thresholds do not belong to.

        Raises:
            ValueError: another category, or scores made in another way; it names the first difference.
        """
        if category != self.category:
            raise ValueError(f"category={category!r} with a calibration of {self.category!r}; allowed: that category")
        for name, value in model.describe_scoring(memory).items():
            if self.scoring.get(name) != value:
                told = self.scoring.get(name)
                raise ValueError(f"the calibration was made with {name}={told!r}, not {value!r}; allowed: the same")

    def save(self, path: Path | str) -> None:
        """Write the calibration as JSON."""
        text = json.dumps({"schema": SCHEMA, **asdict(self)}, indent=1)
        write_whole(Path(path), f"{text}\n".encode())

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read what :meth:`save` wrote.

        Raises:
            ValueError: something else.
            OSError: it cannot be read.
        """
        try:
            told = json.loads(Path(path).read_text(encoding="utf-8"))
            if told.pop("schema") != SCHEMA or not isinstance(told["scoring"], dict):
                raise ValueError("another schema")
            finite([told["threshold"], told["pixel_threshold"]])
            return cls(**told)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{str(path)!r} is no calibration; allowed: what `clipsam calibrate` wrote") from error


def calibrate(
    model: ClipSAM,
    images: Iterable[NDArray[np.uint8]],
    category: str,
    memory: Memory | None = None,
    *,
    alpha: float = ALPHA,
    defective: Sequence[bool] | None = None,
) -> Calibration:
    """Return the thresholds that images of one kind give.

    Args:
        model: the pipeline.
        images: sound ones, each ``(H, W, 3)``; none of them a reference.
        category: as in :meth:`~clipsam.pipeline.ClipSAM.segment`.
        memory: likewise.
        alpha: the false-alarm rate that is to hold.
        defective: of each image, whether it is: then the thresholds are those of the best F1, and ``alpha`` is unused.

    Raises:
        ValueError: fewer images than α needs, a map with NaN, or with labels only one kind of images.
    """
    seen = [evidence(*one) for image in images for one in model.scored([image], category, memory)]
    return calibration_of(seen, category, model.describe_scoring(memory), alpha=alpha, defective=defective)


Evidence = tuple[float, float]
"""An image's score, and its map's highest value."""


def evidence(anomaly_map: NDArray[np.float32], score: float) -> Evidence:
    """Return what a calibration looks at of a map and a score."""
    return score, float(anomaly_map.max())


def calibration_of(
    seen: Sequence[Evidence],
    category: str,
    scoring: dict[str, Any],
    *,
    alpha: float = ALPHA,
    defective: Sequence[bool] | None = None,
) -> Calibration:
    """Return the thresholds that follow from the evidence of some images; the arguments are those of :func:`calibrate`.

    Raises:
        ValueError: as there.
    """
    scores, peaks = np.array(seen, float).reshape(-1, 2).T
    if defective is None:
        image, pixel = conformal_threshold(scores, alpha), conformal_threshold(peaks, alpha)
        return Calibration(category, image, pixel, "conformal", alpha, len(seen), scoring)
    image, pixel = f1_threshold(scores, defective), f1_threshold(peaks, defective)
    return Calibration(category, image, pixel, "f1", None, len(seen), scoring)
