"""``clipsam calibrate``: from which score on an image is defective, from sound images or from labelled ones."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from accelerate.utils import gather_object
from rich.console import Console

from clipsam.calibration import Calibration, Evidence, calibration_of, evidence
from clipsam.commands.arrivals import files_of
from clipsam.commands.models import open_model
from clipsam.commands.options import CalibrateConfig, batch_of
from clipsam.commands.outputs import Failures, raise_failures, require_images
from clipsam.commands.segment import memory_of, read_images
from clipsam.conformal import images_needed
from clipsam.data.folders import load_folder
from clipsam.data.images import camera_bits
from clipsam.memory import Memory
from clipsam.pipeline import ClipSAM
from clipsam.samples import UNKNOWN
from frugal_shared.errors import RunError, UsageError
from frugal_shared.evaluation import chunks
from frugal_shared.run import Run


@dataclass(frozen=True)
class Images:
    """What to calibrate with.

    Args:
        paths: the files.
        defective: of each, whether it is; None if all are said to be sound.
    """

    paths: tuple[Path, ...]
    defective: tuple[bool, ...] | None


def main(config: CalibrateConfig) -> None:
    """Score the images and write the calibration.

    Raises:
        UsageError: no images, too few for alpha, or references among them.
        RunError: some of the images could not be used; the calibration is that of all others, if they are enough.
    """
    require_images(config.images)
    images = labelled(config.images) if config.adaptive else sound(config.images, config.output_dir)
    check_images(images, config)
    bits = config.bits or camera_bits((*images.paths, *config.references))
    model = open_model(config)
    with Run(config, "clipsam") as run:
        accelerator = run.accelerator
        model.to(accelerator.device)
        memory, unusable = memory_of(config, model, bits)
        shares = chunks(len(images.paths), batch_of(config), accelerator.process_index, accelerator.num_processes)
        shares = run.progress(list(shares), desc="calibrate")
        seen, failures = evidence_of(model, config, images.paths, shares, memory, bits)
        seen = dict(gather_object(list(seen.items())))
        failures = dict(gather_object(list(failures.items())))
        reasons = [failures[index] for index in sorted(failures)]
        calibration = calibrated(model, config, images, seen, memory, reasons)
        if accelerator.is_main_process:
            path = config.output or run.folder / "calibration.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            calibration.save(path)
            Console(soft_wrap=True).print(summary(calibration, path), markup=False, highlight=False)
        run.finish({"images": len(seen), "failures": len(failures), "threshold": calibration.threshold})
        raise_failures(run, reasons, len(images.paths), unusable)


def sound(paths: Sequence[Path], output_dir: Path) -> Images:
    """Return the files among the paths, and those below the folders, each once.

    Raises:
        UsageError: a folder without images.
    """
    for path in paths:
        if not files_of([path], output_dir):
            raise UsageError(f"images={str(path)!r} holds no images; allowed: image files, or folders with some")
    return Images(tuple(files_of(paths, output_dir)), None)


def labelled(paths: Iterable[Path]) -> Images:
    """Return the images of data sets' folders with their labels.

    Raises:
        UsageError: no data set, or nobody has said which of its images are sound.
    """
    entries = [entry for path in paths for entry in load_folder(path, "test").entries]
    if unknown := [entry.source for entry in entries if entry.defect == UNKNOWN]:
        raise UsageError(
            f"adaptive with {unknown[0]!r}, which has no label; allowed: folders such as good/ and scratch/"
        )
    return Images(tuple(Path(entry.source) for entry in entries), tuple(entry.is_anomalous for entry in entries))


def check_images(images: Images, config: CalibrateConfig) -> None:
    """Refuse what no threshold can be had from, before anything is computed.

    Raises:
        UsageError: too few images for alpha, or references among them.
    """
    if images.defective is None and len(images.paths) < (needed := images_needed(config.alpha)):
        raise UsageError(f"{len(images.paths)} images with alpha={config.alpha}; allowed: {needed} images or more")
    references = {path.resolve() for path in config.references}
    if both := [path for path in images.paths if path.resolve() in references]:
        raise UsageError(f"{str(both[0])!r} is a reference, too, at no distance from itself; allowed: other images")


def evidence_of(
    model: ClipSAM,
    config: CalibrateConfig,
    paths: Sequence[Path],
    shares: Iterable[range],
    memory: Memory | None,
    bits: int | None = None,
) -> tuple[dict[int, Evidence], Failures]:
    """Return the evidence of some of the images, by their numbers, and why others have none."""
    seen: dict[int, Evidence] = {}
    failures: Failures = {}
    for share in shares:
        images = read_images(paths, share, failures, bits)
        scored = model.scored(list(images.values()), config.category, memory) if images else []
        for index, one in zip(images, scored):
            found = evidence(*one)
            if np.isfinite(found).all():
                seen[index] = found
            else:
                failures[index] = f"{paths[index]}: its map holds NaN"
    return seen, failures


def calibrated(
    model: ClipSAM,
    config: CalibrateConfig,
    images: Images,
    seen: dict[int, Evidence],
    memory: Memory | None,
    reasons: Sequence[str],
) -> Calibration:
    """Return the calibration.

    Raises:
        RunError: what is left of the images is not enough.
    """
    order = sorted(seen)
    defective = None if images.defective is None else [images.defective[index] for index in order]
    options = {"alpha": config.alpha, "defective": defective}
    try:
        return calibration_of([seen[i] for i in order], config.category, model.describe_scoring(memory), **options)
    except ValueError as error:
        raise RunError("; ".join([str(error), *reasons])) from error


def summary(calibration: Calibration, path: Path) -> str:
    """Return what was found, in one line."""
    promise = "best F1" if calibration.alpha is None else f"at most {calibration.alpha:g} of sound images"
    return (
        f"{calibration.category}: defect above {calibration.threshold:.4f}, pixels above "
        f"{calibration.pixel_threshold:.4f} ({promise}, from {calibration.images} images): {path}"
    )
