"""The images that models are tuned on and judged by; see :mod:`frugal_shared.labelled`."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from frugal_shared import labelled
from frugal_shared.labelled import DIGITS, ELPV, Splits, read_cell

DIGIT_SIDE = 32  # pixels that the digits' 8 are enlarged to


def open_data(name: str, *, seed: int = 0, samples: int | None = None, val_share: float = 0.2) -> Splits:
    """Open a data set by name.

    Two runs are comparable, and their weights may be averaged, only if they were given the same seed here.

    Args:
        name: see :func:`frugal_shared.labelled.open_data`.
        seed: of the split, where the data has none, and of ``samples``.
        samples: at most so many training images, of each class in proportion; default: all.
        val_share: share of the training images that validate, where the data has no validation images of its own. Where
            it has no test images either, as large a share of all is split off for them before.

    Raises:
        UsageError: no such data set, no classes or too few images, a class without images, or a class that the
            training images lack.
        RunError: the ``[demo]`` extra, which brings the solar cells, is missing.
        ImportError: scikit-learn, of the same extra, or torchvision is missing.
    """
    splits = labelled.open_data(
        name, seed=seed, samples=samples, val_share=val_share, test_share=val_share, test_seed=seed, least=1
    )
    read = {DIGITS: _enlarged, ELPV: _kept_cell}.get(name)
    return Splits(*(replace(images, read=read) for images in splits)) if read else splits


def _enlarged(pixels: NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(pixels).resize((DIGIT_SIDE, DIGIT_SIDE), Image.Resampling.BICUBIC)


@cache  # a training reads each cell in every epoch; all of them, decoded, are 155 MB
def _kept_cell(path: Path) -> Image.Image:
    return read_cell(path)
