"""``clipsam segment``: maps, masks, overlays and one JSON for any number of images, on any number of processes."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clipsam.calibration import Calibration
from clipsam.commands.arrivals import arrivals, with_files
from clipsam.commands.models import open_model
from clipsam.commands.options import PartConfig, SegmentConfig, batch_of
from clipsam.commands.outputs import Failures, conclude, is_done, require_images, unique_names, write_outputs
from clipsam.data.images import camera_bits, read_image
from clipsam.memory import Memory
from clipsam.pipeline import ClipSAM
from frugal_shared.errors import RunError, UsageError
from frugal_shared.evaluation import chunks
from frugal_shared.images import ImageError
from frugal_shared.run import Run

NEARLY = 1e-6  # from 0 and 1: as near as a threshold of the refinement may come


def main(config: SegmentConfig) -> None:
    """Segment the images that are not done yet, then write the list.

    Raises:
        UsageError: no images.
        RunError: some of the images or references could not be read; all others are done.
    """
    folders = [path for path in config.images if path.is_dir()]
    if config.watch and not folders:
        raise UsageError("watch=True without a folder; allowed: one folder or more among the images")
    given, config = config, with_files(config)  # a run is resumed by what was given, whatever has come since
    if not config.watch:
        require_images(config.images)
    bits = config.bits or camera_bits((*config.images, *config.references))
    model = open_model(config)
    with Run(given, "clipsam") as run:
        accelerator = run.accelerator
        if config.watch and accelerator.num_processes > 1:
            raise UsageError(f"watch=True on {accelerator.num_processes} processes; allowed: one")
        model.to(accelerator.device)
        memory, unusable = memory_of(config, model, bits)
        calibration = read_calibration(config, model, memory)
        shares = chunks(len(config.images), batch_of(config), accelerator.process_index, accelerator.num_processes)
        shares = run.progress(list(shares), desc="segment")
        failures = segment_images(model, config, shares, memory, calibration, bits)
        for files in arrivals(folders, config.images, config.output_dir) if config.watch else ():
            first, config = len(config.images), replace(config, images=(*config.images, *files))
            numbers = range(first, len(config.images))
            arrived = [numbers] if config.tiles is None else [[number] for number in numbers]
            bits = bits or camera_bits(config.images)
            failures |= segment_images(model, config, arrived, memory, calibration, bits)
        conclude(config, run, failures, unusable)


def read_calibration(config: SegmentConfig, model: ClipSAM, memory: Memory | None) -> Calibration | None:
    """Return the calibration, if any, and let the model outline what exceeds its threshold for pixels.

    Raises:
        UsageError: it is none, or of another category, or of scores made in another way.
        OSError: it cannot be read.
    """
    if config.calibration is None:
        return None
    try:
        calibration = Calibration.load(config.calibration)
        calibration.check(model, config.category, memory)
    except ValueError as error:
        raise UsageError(f"calibration={str(config.calibration)!r}: {error}") from error
    inside = min(max(calibration.pixel_threshold, NEARLY), 1 - NEARLY)
    model.mmr = replace(model.mmr, threshold=inside)
    return calibration


def segment_images(
    model: ClipSAM,
    config: SegmentConfig,
    shares: Iterable[Sequence[int]],
    memory: Memory | None = None,
    calibration: Calibration | None = None,
    bits: int | None = None,
) -> Failures:
    """Segment some of the images of the command line, given by their numbers, and write what was found.

    A batch with anything to do goes through CLIP as a whole, because an image's neighbours show in its last bits.
    """
    names, failures = unique_names(config.images), {}
    for share in shares:
        missing = {index for index in share if not is_done(config.output_dir, names[index], config.images[index])}
        if not missing:
            continue
        images = read_images(config.images, share, failures, bits)
        scored = model.scored(list(images.values()), config.category, memory) if images else []
        for (index, image), (anomaly_map, score) in zip(images.items(), scored):
            if index not in missing:
                continue
            try:
                found = model.refined(image, anomaly_map, score)
            except ValueError as error:  # an image that SAM refuses, such as one that is a line; a map with NaN
                failures[index] = f"{config.images[index]}: {error}"
                continue
            record = {"image": str(config.images[index]), "category": config.category}
            write_outputs(config.output_dir, names[index], record, image, found, model.mmr.threshold, calibration)
    return failures


def memory_of(config: PartConfig, model: ClipSAM, bits: int | None = None) -> tuple[Memory | None, list[str]]:
    """Return the memory that the options ask for, if any, and one line for every reference that cannot be read.

    Raises:
        UsageError: there are no heads.
        RunError: none of the references can be read.
    """
    mutual = config.score == "mutual"
    paths = config.images if mutual else config.references
    if not paths or config.score == "map":
        return None, []
    if model.umci is None:
        raise UsageError(f"{len(paths)} references need heads; allowed: none with checkpoint='none'")
    failures: Failures = {}
    images = read_images(paths, range(len(paths)), failures, bits)
    lines = [f"reference {reason}" for reason in failures.values()]
    if not images:
        raise RunError(f"none of {len(paths)} references could be used: {'; '.join(lines)}")
    memory = model.remember(list(images.values()), config.category, manner=config.score or "combined", turn=config.turn)
    return memory, [] if mutual else lines  # an image of the command's own is told of when its turn comes


def read_images(
    paths: Sequence[Path], numbers: Iterable[int], failures: Failures, bits: int | None = None
) -> dict[int, NDArray[np.uint8]]:
    """Return those of the numbered images that can be read; of the others ``failures`` says why."""
    images = {}
    for index in numbers:
        try:
            images[index] = read_image(paths[index], bits)
        except ImageError as error:
            failures[index] = str(error)
    return images
