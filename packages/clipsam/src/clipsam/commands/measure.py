"""Evaluation on the processes and devices of a run."""

from collections.abc import Mapping, Sequence

import numpy as np
from accelerate.utils import gather_object
from numpy.typing import NDArray
from PIL import Image

from clipsam.data.cells import SolarCellData
from clipsam.evaluation import STAGES, Evaluation, Stage, Tally, evaluate
from clipsam.memories import Score, UnusableReference
from clipsam.pictures import overlay
from clipsam.pipeline import ClipSAM
from clipsam.samples import AnomalyData, Sample
from frugal_shared.errors import RunError
from frugal_shared.evaluation import chunks
from frugal_shared.images import ImageError
from frugal_shared.run import Run

PIXEL_STD = "pixel-std"
THUMBNAIL = 160  # pixels, side of a worst case's pictures


def evaluate_all(
    run: Run,
    model: ClipSAM,
    data_sets: Sequence[AnomalyData],
    stages: Sequence[Stage] = STAGES,
    *,
    batch_size: int = 16,
    fpr_limit: float = 0.3,
    references: Mapping[str, AnomalyData] | None = None,
    scores: Sequence[Score] = (),
) -> list[Evaluation]:
    """Measure stages of the pipeline on data sets, with a progress bar for each.

    ``references`` are by the name of a data set; the other arguments are those of
    :func:`~clipsam.evaluation.evaluate`. Real solar cells get a trivial row, the standard deviation of their pixels.

    Raises:
        RunError: none of a category's references can be read.
    """
    model.to(run.accelerator.device)
    rank, world = run.accelerator.process_index, run.accelerator.num_processes

    def evaluation_of(data: AnomalyData) -> Evaluation:
        return evaluate(
            model,
            data,
            stages,
            batch_size=batch_size,
            fpr_limit=fpr_limit,
            references=(references or {}).get(data.name),
            scores=scores,
            baselines={PIXEL_STD: deviation} if isinstance(data, SolarCellData) else {},
            unreadable=(ImageError,),
            picture=thumbnail,
            share=lambda batches: run.progress(share_of(batches, rank, world), desc=data.name),
            gather=lambda tally: others(tally, rank),
        )

    try:
        return [evaluation_of(data) for data in data_sets]
    except UnusableReference as error:
        raise RunError(str(error)) from error


def share_of(batches: Sequence[list[int]], rank: int, world: int) -> list[list[int]]:
    """Return the batches of one process."""
    return [batches[number] for [number] in chunks(len(batches), 1, rank, world)]


def others(tally: Tally, rank: int) -> list[Tally]:
    """Return what all other processes have measured."""
    return [other for number, other in enumerate(gather_object([tally])) if number != rank]


def deviation(image: NDArray[np.uint8]) -> float:
    """Return the standard deviation of an image's pixels."""
    return float(image.std())


def thumbnail(sample: Sample, anomaly_map: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return an image beside itself with heat and the outline of the true mask, ``(160, 320, 3)``."""
    pictures = Image.fromarray(sample.image), overlay(sample.image, anomaly_map, sample.mask)
    return np.hstack([np.asarray(picture.resize((THUMBNAIL, THUMBNAIL))) for picture in pictures])
