"""How well a small defect in a large photograph is found and outlined: ``python benchmarks/large_images.py``.

Twenty images of 6000×4000 pixels, half of them drawn, half of them photographs of scikit-image's (surfaces continued by
reflection, the others enlarged, with noise), each with one defect of 45 to 60 pixels painted into it, whose kind, place
and look follow from the seed. The embedded models see each in tiles, as ``clipsam segment --tiles auto`` does.

With SAM asked about 64 regions at most: where a surface has a texture of its own, more of it exceeds the threshold than
the usual 16. Every image's row is kept beside the images, so that a run goes on where it was stopped.

A defect is *found* where a box meets it, and *outlined* where the mask of such a box has an IoU with it of a half or
more. The memory is the largest resident set of the process that segments; drawing happens in another one.
"""

import resource
import time
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from clipsam import ClipSAM, Segmentation
from clipsam.data.defects import PAINTERS, paint
from clipsam.data.photographs import PHOTOGRAPHS, photograph
from clipsam.data.procedural import HELD_OUT_CATEGORIES, draw
from clipsam.embedded.dinov2 import embedded_model
from clipsam.tiles import Tiling
from frugal_shared.checkpoint import read_json, write_json

HEIGHT, WIDTH = 4000, 6000
CROP = 120  # pixels around a defect that it is painted into
SMALLEST, LARGEST = 45, 60  # pixels, of a defect's longer side
LEAST = 300  # pixels of a defect
SURFACES = ("brick", "grass", "gravel")  # photographs that can be continued by reflection
GRAIN = 3.0  # grey levels of noise on an enlarged photograph
OUTLINED = 0.5

Picture = NDArray[np.uint8]


@dataclass(frozen=True)
class Options:
    """What is measured."""

    folder: Path
    """Keeps the images, 80 MB each, and the row of each, so that another run need not make them again."""
    count: int = 20
    """How many images."""
    seed: int = 0
    """Of the images."""
    max_components: int = 64
    """Regions of an image that SAM is asked about."""
    json: Path | None = None
    """Write the rows to this file."""


def main(options: Options) -> None:
    """Draw what is missing, then measure every image."""
    options.folder.mkdir(parents=True, exist_ok=True)
    numbers = [n for n in range(options.count) if not path_of(options.folder, n, options.seed).exists()]
    if numbers:
        with get_context("spawn").Pool(1) as pool:  # what drawing takes does not count
            pool.starmap(keep, [(options.folder, number, options.seed) for number in numbers])
    model = embedded_model().see_at((), Tiling())
    model.mmr = replace(model.mmr, max_components=options.max_components)
    rows = [kept_row(model, options, number) for number in range(options.count)]
    figures = {name: sum(row[name] for row in rows) for name in ("found", "outlined", "map_outlined")}
    figures |= {"images": len(rows), "seed": options.seed, "gigabytes": max(row["gigabytes"] for row in rows)}
    figures |= {name: float(np.median([row[name] for row in rows])) for name in ("false_boxes", "seconds")}
    print(figures)
    if options.json is not None:
        write_json(options.json, rows)


def kept_row(model: ClipSAM, options: Options, number: int) -> dict[str, Any]:
    """Return an image's row, measured if it is not there."""
    path = path_of(options.folder, number, options.seed)
    row = path.with_suffix(f".{options.max_components}.json")
    if not row.exists():
        write_json(row, measured(model, path))
        print(row.read_text(), flush=True)
    return read_json(row)


def path_of(folder: Path, number: int, seed: int) -> Path:
    """Return where an image is kept."""
    return folder / f"{seed}-{number}.npz"


def keep(folder: Path, number: int, seed: int) -> None:
    """Draw an image and keep it."""
    path = path_of(folder, number, seed)
    name, kind, image, mask = defective(number, seed)
    with path.with_suffix(".new").open("wb") as file:
        np.savez(file, image=image, mask=np.packbits(mask), name=name, kind=kind)
    path.with_suffix(".new").rename(path)


def surface(number: int, seed: int) -> tuple[str, Picture]:
    """Return a large image without a defect, and its name."""
    rng = np.random.default_rng([seed, number])
    if number % 2 == 0:
        name = HELD_OUT_CATEGORIES[(number // 2 * 5 + seed) % len(HELD_OUT_CATEGORIES)]
        top = (WIDTH - HEIGHT) // 2
        return name, draw(name, "good", rng, WIDTH).image[top : top + HEIGHT].copy()
    name = tuple(PHOTOGRAPHS)[number // 2 % len(PHOTOGRAPHS)]
    small = photograph(name)
    if name in SURFACES:
        return name, np.pad(small, ((0, HEIGHT - small.shape[0]), (0, WIDTH - small.shape[1]), (0, 0)), "symmetric")
    large = np.asarray(Image.fromarray(small).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), np.float32)
    noisy = large + GRAIN * rng.standard_normal((HEIGHT, WIDTH, 1), np.float32)
    return name, np.clip(np.rint(noisy), 0, 255).astype(np.uint8)


def defective(number: int, seed: int) -> tuple[str, str, Picture, NDArray[np.bool_]]:
    """Return the name of a surface, the kind of its defect, the image and the mask."""
    name, image = surface(number, seed)
    rng, kinds = np.random.default_rng([seed, number, 7]), tuple(PAINTERS)
    while True:
        y, x = (int(rng.integers(CROP, length - 2 * CROP)) for length in (HEIGHT, WIDTH))
        kind = kinds[rng.integers(len(kinds))]
        window = slice(y, y + CROP), slice(x, x + CROP)
        painted, part = paint(image[window], kind, rng)
        longer = max(np.ptp(places) + 1 for places in np.nonzero(part))
        if SMALLEST <= longer <= LARGEST and part.sum() >= LEAST:
            mask = np.zeros((HEIGHT, WIDTH), bool)
            image[window], mask[window] = painted, part
            return name, kind, image, mask


def measured(model: ClipSAM, path: Path) -> dict[str, Any]:
    """Segment an image; return what became of its defect."""
    kept = np.load(path)
    image = kept["image"]
    mask = np.unpackbits(kept["mask"]).astype(bool).reshape(image.shape[:2])
    began = time.perf_counter()
    [found] = model.segment([image], "object")
    seconds = time.perf_counter() - began
    return (
        {"name": str(kept["name"]), "kind": str(kept["kind"])}
        | judged(found, mask, model.mmr.threshold)
        | {
            "score": round(found.score, 4),
            "boxes": len(found.boxes),
            "beyond": found.cut_off.max_components,
            "seconds": round(seconds, 1),
            "gigabytes": gigabytes(),
        }
    )


def judged(found: Segmentation, mask: NDArray[np.bool_], threshold: float) -> dict[str, Any]:
    """Return whether a defect is found and outlined: by a mask of SAM's, and by the final map above the threshold."""
    meets = np.array([mask[top:bottom, left:right].any() for left, top, right, bottom in found.boxes.astype(int)], bool)
    best = max((overlap(one, mask) for one, meet in zip(found.masks, meets) if meet), default=0.0)
    labels: Any = ndimage.label(found.anomaly_map > threshold, np.ones((3, 3)))[0]
    in_map = overlap(np.isin(labels, np.setdiff1d(labels[mask], [0])), mask)
    return {
        "found": bool(meets.any()),
        "outlined": best >= OUTLINED,
        "iou": round(best, 3),
        "map_outlined": in_map >= OUTLINED,
        "map_iou": round(in_map, 3),
        "peak": round(float(found.rough_map[mask].max()), 3),
        "false_boxes": int((~meets).sum()),
    }


def overlap(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """Return the IoU of two masks."""
    return float((a & b).sum() / max((a | b).sum(), 1))


def gigabytes() -> float:
    """Return the largest resident set of this process so far."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2)


if __name__ == "__main__":
    main(tyro.cli(Options))
