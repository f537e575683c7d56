"""What ``clipsam segment`` and ``clipsam refine`` write.

Of an image ``<name>`` the run folder holds ``<name>_map.png`` (16-bit grey, white is 1), ``<name>_mask.png`` (white
where the map exceeds the threshold), ``<name>_overlay.png`` (heat, outline of the mask, boxes) and
``<name>_found.json``. ``segmentations.json`` lists what was found in the order of the command line; an image that
could not be read is listed with its "error" and does not stop the others. On demand ``annotations.json`` holds all
masks in COCO's format, and ``<name>_labelme.json`` each in labelme's.
"""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.utils import gather_object
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.markup import escape

from clipsam.annotations import Annotated, coco, labelme
from clipsam.calibration import Calibration
from clipsam.commands.options import RefineConfig, SegmentConfig
from clipsam.commands.summary import printable, show_summary
from clipsam.mmr import CutOff
from clipsam.pictures import overlay
from clipsam.pipeline import Segmentation
from frugal_shared.checkpoint import read_json, write_bytes, write_json
from frugal_shared.errors import RunError, UsageError
from frugal_shared.run import Run

OUTPUTS = ("map.png", "mask.png", "overlay.png", "found.json")

Failures = dict[int, str]
"""Number of an image on the command line -> why it could not be done."""


def require_images(images: Sequence[Path]) -> None:
    """Refuse a command line without images.

    Not the options' own check, which runs before an unknown option is noticed and would blame the wrong thing.
    """
    if not images:
        raise UsageError("images=() is empty; allowed: one image file or more")


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


def is_done(folder: Path, name: str, image: Path) -> bool:
    """Return whether all outputs of an image are there, and not another's: a folder may hold more files by now."""
    if not all(output(folder, name, kind).exists() for kind in OUTPUTS):
        return False
    return read_json(output(folder, name, "found.json")).get("image") == str(image)


def write_outputs(
    folder: Path,
    name: str,
    record: dict[str, Any],
    image: NDArray[np.uint8],
    found: Segmentation,
    threshold: float,
    calibration: Calibration | None = None,
) -> None:
    """Write map, mask, overlay and, last, the record of one image, each atomically.

    Args:
        folder: the run's.
        name: of the outputs.
        record: what is known of the image, "image" and "category"; what was found is added.
        image: ``(H, W, 3)`` uint8.
        found: what was found in it.
        threshold: on the map, above which a pixel belongs to the mask.
        calibration: says which scores are those of a defect.
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
        "threshold": threshold,  # of the peak; with a calibration of the score
        "peak": float(found.anomaly_map.max()),
        "pixel_threshold": threshold,
        "area": float(mask.mean()),
        "boxes": found.boxes.tolist(),
        "mask_scores": found.mask_scores.tolist(),
        "cut_off": asdict(found.cut_off),
        **{kind: output(folder, name, f"{kind}.png").name for kind in pictures},
    }
    if calibration is not None:
        record |= {"threshold": calibration.threshold, "verdict": calibration.verdict(found.score)}
    write_json(output(folder, name, "found.json"), record)


def png(picture: Image.Image) -> bytes:
    """Return a picture as the bytes of a PNG file."""
    buffer = BytesIO()
    picture.save(buffer, format="png")
    return buffer.getvalue()


def conclude(
    config: SegmentConfig | RefineConfig, run: Run, failures: Failures, references: Sequence[str] = ()
) -> None:
    """Write the list of everything found on all processes, and tell what failed, of images and of references.

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
        write_annotations(config.annotations, run.folder, names, records)
        show_summary(records)
        tell_cut_off(records)
    run.finish({"images": len(config.images), "failures": len(everybody)})
    raise_failures(run, [everybody[index] for index in sorted(everybody)], len(config.images), references)


def raise_failures(run: Run, reasons: Sequence[str], images: int, references: Sequence[str] = ()) -> None:
    """Tell what failed, now that the rest is done.

    Args:
        run: the run.
        reasons: one line for every image that failed.
        images: how many images there were.
        references: one line for every reference that failed.

    Raises:
        RunError: something failed.
    """
    lines = [f"{len(reasons)} of {images} images could not be used: {'; '.join(reasons)}"] if reasons else []
    if references:
        lines.append(f"{len(references)} references could not be used: {'; '.join(references)}")
    if lines:
        if run.accelerator.is_main_process:
            show_failures([*reasons, *references])
        raise RunError("; ".join(lines))


def write_annotations(
    formats: Sequence[str], folder: Path, names: Sequence[str], records: Sequence[dict[str, Any]]
) -> None:
    """Write the masks of all images in the formats of annotation tools, from the pictures of them."""
    done = [(name, record) for name, record in zip(names, records) if "error" not in record]
    if "coco" in formats:
        write_json(folder / "annotations.json", coco(annotated(folder, record) for _, record in done))
    if "labelme" in formats:
        for name, record in done:
            write_json(output(folder, name, "labelme.json"), labelme(annotated(folder, record)))


def annotated(folder: Path, record: dict[str, Any]) -> Annotated:
    """Return an image's mask, with its file as it is to be found from the run folder."""
    with Image.open(folder / record["mask"]) as picture:
        mask = np.asarray(picture) > 0
    try:
        file = os.path.relpath(record["image"], folder)
    except ValueError:  # on another drive
        file = str(Path(record["image"]).resolve())
    return Annotated(Path(file).as_posix(), mask, record["score"])


def tell_cut_off(records: Iterable[dict[str, Any]]) -> None:
    """Print how many components SAM was not asked about, if any."""
    counts = [record["cut_off"] for record in records if any(record.get("cut_off", {}).values())]
    if counts:
        total = CutOff(**{option: sum(count[option] for count in counts) for option in counts[0]})
        Console(soft_wrap=True).print(f"not refined in {len(counts)} images: components above the threshold, {total}")


def show_failures(reasons: Iterable[str]) -> None:
    """Print a line for everything that failed."""
    for reason in reasons:
        Console(soft_wrap=True).print(f"[red]failed[/red] {escape(printable(reason))}")
