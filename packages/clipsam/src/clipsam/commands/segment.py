"""``clipsam segment``: maps, masks, overlays and one JSON for any number of images, on any number of processes."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clipsam.commands.arrivals import arrivals, with_files
from clipsam.commands.models import open_model
from clipsam.commands.options import SegmentConfig
from clipsam.commands.outputs import Failures, conclude, is_done, require_images, unique_names, write_outputs
from clipsam.data.images import camera_bits, read_image
from clipsam.memory import Memory
from clipsam.pipeline import ClipSAM
from frugal_shared.errors import RunError, UsageError
from frugal_shared.evaluation import chunks
from frugal_shared.images import ImageError
from frugal_shared.run import Run


def main(config: SegmentConfig) -> None:
    """Segment the images that are not done yet, then write the list.

    Raises:
        UsageError: no images.
        RunError: some of the images could not be read; all others are done.
    """
    folders = [path for path in config.images if path.is_dir()]
    if config.watch and not folders:
        raise UsageError("watch=True without a folder; allowed: one folder or more among the images")
    given, config = config, with_files(config)  # a run is resumed by what was given, whatever has come since
    if not config.watch:
        require_images(config.images)
    bits = config.bits or camera_bits((*config.images, *config.references))
    model, references = open_model(config), read_references(config, bits)
    if references and model.umci is None:
        raise UsageError(f"{len(references)} references need heads; allowed: none with checkpoint='none'")
    with Run(given, "clipsam") as run:
        accelerator = run.accelerator
        if config.watch and accelerator.num_processes > 1:
            raise UsageError(f"watch=True on {accelerator.num_processes} processes; allowed: one")
        model.to(accelerator.device)
        memory = model.remember(references) if references else None
        batch = config.batch_size if config.tiles is None else 1  # tiles are batches of their own
        shares = chunks(len(config.images), batch, accelerator.process_index, accelerator.num_processes)
        failures = segment_images(model, config, run.progress(list(shares), desc="segment"), memory, bits)
        for files in arrivals(folders, config.images, config.output_dir) if config.watch else ():
            config = replace(config, images=(*config.images, *files))
            numbers = range(len(config.images) - len(files), len(config.images))
            arrived = [[number] for number in numbers] if config.tiles is not None else [numbers]
            bits = bits or camera_bits(config.images)
            failures |= segment_images(model, config, arrived, memory, bits)
        conclude(config, run, failures)


def segment_images(
    model: ClipSAM,
    config: SegmentConfig,
    shares: Iterable[range],
    memory: Memory | None = None,
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
            except ValueError as error:  # an image that SAM refuses, such as one that is a line
                failures[index] = f"{config.images[index]}: {error}"
                continue
            record = {"image": str(config.images[index]), "category": config.category}
            write_outputs(config.output_dir, names[index], record, image, found, model.mmr.threshold)
    return failures


def read_references(config: SegmentConfig, bits: int | None = None) -> list[NDArray[np.uint8]]:
    """Return the references.

    Raises:
        RunError: names those that cannot be read, since without them every score would be another.
    """
    failures: Failures = {}
    images = read_images(config.references, range(len(config.references)), failures, bits)
    if failures:
        raise RunError(f"{len(failures)} references could not be used: {'; '.join(failures.values())}")
    return list(images.values())


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
