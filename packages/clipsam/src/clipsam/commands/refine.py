"""``clipsam refine``: anyone's anomaly maps, sharpened by SAM; the outputs are those of ``clipsam segment``."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ImageOps

from clipsam import mmr
from clipsam.commands.models import mmr_config, segmenter_of
from clipsam.commands.options import RefineConfig
from clipsam.commands.outputs import conclude, is_done, require_images, unique_names, write_outputs
from clipsam.data.images import camera_bits, read_image
from clipsam.map_scale import MapScale, as_map
from clipsam.pipeline import Segmentation
from clipsam.promptable import Segmenter
from clipsam.score import image_score
from frugal_shared.errors import UsageError
from frugal_shared.evaluation import chunks
from frugal_shared.images import ImageError, opened
from frugal_shared.run import Run

WHITE = {"1": 1, "L": 255, "I": 65535, "I;16": 65535, "I;16B": 65535, "I;16L": 65535, "F": 1}
"""Pillow's modes of grey images and what white is in them; "I" is how it opens some 16-bit files."""


def main(config: RefineConfig) -> None:
    """Refine the maps that are not done yet, then write the list.

    Raises:
        UsageError: no images.
        RunError: some of the images or maps could not be used; all others are done.
    """
    require_images(config.images)
    segmenter = segmenter_of(config)
    if segmenter is None:
        raise UsageError(f"sam={config.sam!r} refines nothing; allowed: embedded, or a file or folder of SAM's weights")
    options, scale = mmr_config(config, mmr.MMRConfig()), scale_of(config)
    bits = config.bits or camera_bits(config.images)
    with Run(config, "clipsam") as run:
        accelerator = run.accelerator
        segmenter.to(accelerator.device)
        shares = list(chunks(len(config.images), 1, accelerator.process_index, accelerator.num_processes))
        names, failures = unique_names(config.images), {}
        for [index] in run.progress(shares, desc="refine"):
            if not is_done(config.output_dir, names[index], config.images[index]):
                try:
                    refine_one(config, index, names[index], segmenter, options, scale, bits)
                except ImageError as error:
                    failures[index] = str(error)
        conclude(config, run, failures)


def refine_one(
    config: RefineConfig,
    index: int,
    name: str,
    segmenter: Segmenter,
    options: mmr.MMRConfig,
    scale: MapScale | None = None,
    bits: int | None = None,
) -> None:
    """Refine one map and write what came out.

    Raises:
        ImageError: the image or the map cannot be used.
    """
    image = read_image(config.images[index], bits)
    rough = read_map(config.maps[index], image, scale)
    try:
        refined = mmr.refine(image, rough, segmenter, options)
    except ValueError as error:  # what a segmenter refuses
        raise ImageError(f"{config.images[index]}: {error}") from error
    masks = refined.boxes, refined.masks, refined.scores
    found = Segmentation(refined.anomaly_map, rough, image_score(rough), *masks, refined.cut_off)
    record = {"image": str(config.images[index]), "category": None}
    write_outputs(config.output_dir, name, record, image, found, options.threshold)


def scale_of(config: RefineConfig) -> MapScale | None:
    """Return the scale of the maps: the one given, or that of sound images' maps; None if they lie in [0, 1].

    Raises:
        ImageError: a map of a sound image cannot be read.
        ValueError: numbers that give no scale.
    """
    if config.range is not None:
        return MapScale(*config.range)
    return MapScale.calibrated(read_values(path) for path in config.sound_maps) if config.sound_maps else None


def read_map(path: Path, image: NDArray[np.uint8], scale: MapScale | None = None) -> NDArray[np.float32]:
    """Read an anomaly map.

    Args:
        path: a .npy file, or a grey image, of which white is 1.
        image: ``(H, W, 3)``, the image that it belongs to.
        scale: of the numbers; unset: they lie in [0, 1].

    Returns:
        ``(H, W)`` float32 in [0, 1].

    Raises:
        ImageError: it cannot be read, has another shape, or holds other numbers or NaN.
    """
    try:
        return as_map(read_values(path), image.shape[:2], scale)
    except ValueError as error:
        raise ImageError(f"{path}: {error}") from error


def read_values(path: Path) -> NDArray[Any]:
    """Read the numbers of a map.

    Raises:
        ImageError: it cannot be read.
    """
    try:
        # mapped: a header that claims more than the file holds must not be believed
        values = np.load(path, "r", allow_pickle=False) if path.suffix == ".npy" else read_grey(path)
        return np.asarray(values, np.float32)
    except ImageError:
        raise
    except Exception as error:  # a damaged file raises whatever its reader stumbles over
        raise ImageError(f"{path}: {' '.join(str(error).split())}") from error


def read_grey(path: Path) -> NDArray[np.float64]:
    """Return a grey image ``(H, W)`` with white as 1, in all of its bits.

    Raises:
        ImageError: it cannot be read, or has colours.
    """
    with opened(path) as picture:
        if picture.mode not in WHITE:
            raise ImageError(f"{path}: a map in mode {picture.mode!r}; allowed: grey")
        return np.asarray(ImageOps.exif_transpose(picture), np.float64) / WHITE[picture.mode]
