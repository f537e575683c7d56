"""``clipsam segment``: maps, masks, overlays and one JSON for any number of images, on any number of processes.

Of an image ``<name>`` the run folder holds ``<name>_map.png`` (16-bit grey, white is 1), ``<name>_mask.png`` (white
where the map exceeds the threshold), ``<name>_overlay.png`` (heat, outline of the mask, boxes) and
``<name>_found.json``. ``segmentations.json`` lists what was found in the order of the command line; an image that
could not be read is listed with its "error" and does not stop the others.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from accelerate.utils import gather_object
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from rich.console import Console
from rich.markup import escape
from scipy import ndimage

from clipsam.commands.models import open_model
from clipsam.commands.options import RefineConfig, SegmentConfig
from clipsam.data.images import ImageError, read_image
from clipsam.memory import Memory
from clipsam.pipeline import ClipSAM, Segmentation
from frugal_shared.checkpoint import read_json, write_bytes, write_json
from frugal_shared.errors import RunError, UsageError
from frugal_shared.evaluation import chunks
from frugal_shared.run import Run

OUTPUTS = ("map.png", "mask.png", "overlay.png", "found.json")
HEAT = 0.6  # share of the heat in an overlay where the map is 1
OUTLINE, BOX = (0, 255, 255), (255, 255, 255)
THICKNESS = 1 / 200  # of lines in an overlay, as a share of its longer side

Failures = dict[int, str]
"""Number of an image on the command line -> why it could not be done."""


def segment(config: SegmentConfig) -> None:
    """Segment the images that are not done yet, then write the list.

    Raises:
        UsageError: no images.
        RunError: some of the images could not be read; all others are done.
    """
    require_images(config.images)
    model, references = open_model(config), read_references(config)
    if references and model.umci is None:
        raise UsageError(f"{len(references)} references need heads; allowed: none with checkpoint='none'")
    with Run(config, "clipsam") as run:
        accelerator = run.accelerator
        model.to(accelerator.device)
        memory = model.remember(references) if references else None
        shares = chunks(len(config.images), config.batch_size, accelerator.process_index, accelerator.num_processes)
        failures = segment_images(model, config, run.progress(list(shares), desc="segment"), memory)
        conclude(config, run, failures)


def require_images(images: Sequence[Path]) -> None:
    """Refuse a command line without images.

    Not the options' own check, which runs before an unknown option is noticed and would blame the wrong thing.
    """
    if not images:
        raise UsageError("images=() is empty; allowed: one image file or more")


def segment_images(
    model: ClipSAM, config: SegmentConfig, shares: Iterable[range], memory: Memory | None = None
) -> Failures:
    """Segment some of the images of the command line, given by their numbers, and write what was found.

    A batch with anything to do goes through CLIP as a whole, because an image's neighbours show in its last bits.
    """
    names, failures = unique_names(config.images), {}
    for share in shares:
        missing = {index for index in share if not is_done(config.output_dir, names[index])}
        if not missing:
            continue
        images = read_images(config.images, share, failures)
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


def read_references(config: SegmentConfig) -> list[NDArray[np.uint8]]:
    """Return the references.

    Raises:
        RunError: names those that cannot be read, since without them every score would be another.
    """
    failures: Failures = {}
    images = read_images(config.references, range(len(config.references)), failures)
    if failures:
        raise RunError(f"{len(failures)} references could not be used: {'; '.join(failures.values())}")
    return list(images.values())


def read_images(paths: Sequence[Path], numbers: Iterable[int], failures: Failures) -> dict[int, NDArray[np.uint8]]:
    """Return those of the numbered images that can be read; of the others ``failures`` says why."""
    images = {}
    for index in numbers:
        try:
            images[index] = read_image(paths[index])
        except ImageError as error:
            failures[index] = str(error)
    return images


def unique_names(paths: Iterable[Path]) -> list[str]:
    """Return a name for every file: its stem, with a number where another one, whatever its case, came before."""
    names, taken = [], set()
    seen: Counter[str] = Counter()
    for path in paths:
        name = path.stem
        while name.lower() in taken:
            seen[path.stem] += 1
            name = f"{path.stem}-{seen[path.stem] + 1}"
        taken.add(name.lower())
        names.append(name)
    return names


def output(folder: Path, name: str, kind: str) -> Path:
    """Return one of an image's :data:`OUTPUTS`."""
    return folder / f"{name}_{kind}"


def is_done(folder: Path, name: str) -> bool:
    """Return whether all outputs of an image are there."""
    return all(output(folder, name, kind).exists() for kind in OUTPUTS)


def write_outputs(
    folder: Path,
    name: str,
    record: dict[str, Any],
    image: NDArray[np.uint8],
    found: Segmentation,
    threshold: float,
) -> None:
    """Write map, mask, overlay and, last, the record of one image, each atomically.

    Args:
        folder: the run's.
        name: of the outputs.
        record: what is known of the image, "image" and "category"; what was found is added.
        image: ``(H, W, 3)`` uint8.
        found: what was found in it.
        threshold: on the map, above which a pixel belongs to the mask.
    """
    mask = found.anomaly_map > threshold
    pictures = {
        "map": Image.fromarray(np.rint(found.anomaly_map.astype(np.float64) * 65535).astype(np.uint16)),
        "mask": Image.fromarray(np.where(mask, 255, 0).astype(np.uint8)),
        "overlay": overlay(image, found.anomaly_map, mask, found.boxes),
    }
    for kind, picture in pictures.items():
        write_bytes(output(folder, name, f"{kind}.png"), png(picture))
    record = record | {
        "score": found.score,
        "threshold": threshold,
        "boxes": found.boxes.tolist(),
        "mask_scores": found.mask_scores.tolist(),
        **{kind: output(folder, name, f"{kind}.png").name for kind in pictures},
    }
    write_json(output(folder, name, "found.json"), record)


def png(picture: Image.Image) -> bytes:
    """Return a picture as the bytes of a PNG file."""
    buffer = BytesIO()
    picture.save(buffer, format="png")
    return buffer.getvalue()


def overlay(
    image: NDArray[np.uint8],
    anomaly_map: NDArray[np.float32],
    mask: NDArray[np.bool_],
    boxes: NDArray[np.float32] | None = None,
) -> Image.Image:
    """Return an image with its map as heat, the outline of a mask in cyan, and boxes in white.

    Args:
        image: ``(H, W, 3)`` uint8.
        anomaly_map: ``(H, W)`` in [0, 1].
        mask: ``(H, W)``.
        boxes: ``(K, 4)``, x₀ y₀ x₁ y₁, ends exclusive.
    """
    levels = np.rint(anomaly_map * 255).astype(np.uint8)
    heat = Image.fromarray(matplotlib.colormaps["inferno"](levels, bytes=True)[..., :3].copy())
    picture = Image.composite(heat, Image.fromarray(image), Image.fromarray((levels * HEAT).astype(np.uint8)))
    thickness = max(1, round(THICKNESS * max(mask.shape)))
    inside = np.asarray(ndimage.binary_erosion(mask, iterations=thickness), bool)
    picture.paste(OUTLINE, mask=Image.fromarray(mask & ~inside))
    draw = ImageDraw.Draw(picture)
    for left, top, right, bottom in () if boxes is None else boxes.tolist():
        draw.rectangle((left, top, right - 1, bottom - 1), outline=BOX, width=thickness)
    return picture


def conclude(config: SegmentConfig | RefineConfig, run: Run, failures: Failures) -> None:
    """Write the list of everything found on all processes, and tell what failed.

    Raises:
        RunError: something failed.
    """
    everybody = dict(gather_object(list(failures.items())))  # and waits for everybody
    if run.accelerator.is_main_process:
        names = unique_names(config.images)
        records = [
            {"image": str(path), "category": getattr(config, "category", None), "error": everybody[index]}
            if index in everybody
            else read_json(output(config.output_dir, names[index], "found.json"))
            for index, path in enumerate(config.images)
        ]
        write_json(run.folder / "segmentations.json", records)
    run.finish({"images": len(config.images), "failures": len(everybody)})
    if everybody:
        reasons = [everybody[index] for index in sorted(everybody)]
        if run.accelerator.is_main_process:
            show_failures(reasons)
        raise RunError(f"{len(everybody)} of {len(config.images)} images could not be used: {'; '.join(reasons)}")


def show_failures(reasons: Iterable[str]) -> None:
    """Print a line for everything that failed."""
    for reason in reasons:
        # a file's name may hold anything, also what moves the terminal's cursor, and what is no text
        visible = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in reason)
        Console(soft_wrap=True).print(f"[red]failed[/red] {escape(visible)}")
