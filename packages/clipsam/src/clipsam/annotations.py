"""Masks in the formats of annotation tools: COCO's, and labelme's.

Every region, connected by sides or corners, is an annotation of its own. Outlines run along the pixels' edges, so a
mask that is drawn from them is the mask itself; a region with holes, which polygons cannot have, is stored as a mask:
in COCO as a run-length encoding, in labelme as its shape "mask" (labelme 5.3 and later).
"""

import base64
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

EIGHT_CONNECTED = np.ones((3, 3), int)
Point = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Annotated:
    """An image and where it is anomalous.

    Args:
        file: the image's, as it is to be found from the annotations.
        mask: ``(H, W)`` bool.
        score: of the image.
        label: of every region.
    """

    file: str
    mask: NDArray[np.bool_]
    score: float
    label: str = "defect"


def coco(images: Iterable[Annotated]) -> dict[str, Any]:
    """Return COCO's description of images and their regions; every label is a category."""
    listed, annotations, labels = [], [], {}
    for number, image in enumerate(images, 1):
        height, width = image.mask.shape
        listed.append({"id": number, "file_name": image.file, "height": height, "width": width, "score": image.score})
        for (y, x), region in regions(image.mask):
            outlines = loops(region, x.start, y.start)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": labels.setdefault(image.label, len(labels) + 1),
                    "bbox": [x.start, y.start, x.stop - x.start, y.stop - y.start],
                    "area": int(region.sum()),
                    "iscrowd": 0,
                    "segmentation": run_lengths(region, (y, x), image.mask.shape)
                    if has_holes(outlines)
                    else [[value for point in outline for value in point] for outline in outlines],
                }
            )
    categories = [{"id": number, "name": label} for label, number in labels.items()]
    return {"images": listed, "annotations": annotations, "categories": categories}


def labelme(image: Annotated) -> dict[str, Any]:
    """Return labelme's description of an image and its regions."""
    height, width = image.mask.shape
    return {
        "version": "5.5.0",
        "flags": {},
        "shapes": [shape for window, region in regions(image.mask) for shape in shapes_of(image.label, window, region)],
        "imagePath": image.file,
        "imageData": None,
        "imageHeight": height,
        "imageWidth": width,
    }


def shapes_of(label: str, window: tuple[slice, slice], region: NDArray[np.bool_]) -> list[dict[str, Any]]:
    """Return labelme's shapes of a region: its outlines, or, if it has holes, its mask."""
    y, x = window
    outlines = loops(region, x.start, y.start)
    common = {"label": label, "group_id": None, "description": "", "flags": {}}
    if not has_holes(outlines):
        return [{**common, "points": outline, "shape_type": "polygon", "mask": None} for outline in outlines]
    buffer = BytesIO()
    Image.fromarray(region).save(buffer, format="png")
    corners = [[x.start, y.start], [x.stop - 1, y.stop - 1]]  # of a mask labelme counts the last pixel in
    mask = base64.b64encode(buffer.getvalue()).decode()
    return [{**common, "points": corners, "shape_type": "mask", "mask": mask}]


def regions(mask: NDArray[np.bool_]) -> Iterator[tuple[tuple[slice, slice], NDArray[np.bool_]]]:
    """Yield where every region of a mask lies (rows, columns), and which pixels of that window are its."""
    labels, _ = ndimage.label(mask, EIGHT_CONNECTED)  # pyright: ignore[reportGeneralTypeIssues]
    for number, window in enumerate(ndimage.find_objects(labels), 1):
        yield window, labels[window] == number


def loops(region: NDArray[np.bool_], left: int = 0, top: int = 0) -> list[list[list[int]]]:
    """Return the outlines of a region along its pixels' edges, each a list of corners ``[x, y]``.

    Outer outlines run clockwise, seen with y downwards, those of holes the other way round.

    Args:
        region: ``(h, w)``.
        left: column at which it begins.
        top: row at which it begins.
    """
    ends = edges(region)
    found = []
    while ends:
        start = next(iter(ends))
        loop, at, direction = [], start, (0, 0)
        while True:
            following = turn(ends, at, direction)
            step = (np.sign(following[0] - at[0]).item(), np.sign(following[1] - at[1]).item())
            if step != direction:
                loop.append(at)
            at, direction = following, step
            if at == start:
                break
        first, *_ = loop
        if len(loop) > 1 and direction == (
            np.sign(loop[1][0] - first[0]).item(),
            np.sign(loop[1][1] - first[1]).item(),
        ):
            loop = loop[1:]  # the walk began in the middle of an edge
        found.append([[x + left, y + top] for x, y in loop])
    return found


def edges(region: NDArray[np.bool_]) -> dict[Point, list[Point]]:
    """Return, for every corner, the corners that the outline goes on to, with the region on its right."""
    padded = np.pad(region, 1)
    ends: dict[Point, list[Point]] = defaultdict(list)
    above, left = padded[:-1, 1:-1], padded[1:-1, :-1]
    below, right = padded[1:, 1:-1], padded[1:-1, 1:]
    for y, x in np.argwhere(below & ~above).tolist():
        ends[x, y].append((x + 1, y))
    for y, x in np.argwhere(above & ~below).tolist():
        ends[x + 1, y].append((x, y))
    for y, x in np.argwhere(left & ~right).tolist():
        ends[x, y].append((x, y + 1))
    for y, x in np.argwhere(right & ~left).tolist():
        ends[x, y + 1].append((x, y))
    return ends


def turn(ends: dict[Point, list[Point]], at: Point, direction: Point) -> Point:
    """Take the next corner out of ``ends``: where two pixels meet in a corner, the one to the right."""
    ahead = ends[at]
    right = at[0] - direction[1], at[1] + direction[0]
    following = ahead.pop(ahead.index(right) if right in ahead else 0)
    if not ahead:
        del ends[at]
    return following


def has_holes(outlines: list[list[list[int]]]) -> bool:
    """Return whether any outline runs round a hole."""
    return any(doubled_area(outline) < 0 for outline in outlines)


def doubled_area(outline: list[list[int]]) -> int:
    """Return twice the signed area within an outline, positive for one that runs clockwise with y downwards."""
    following = [*outline[1:], outline[0]]
    return sum(x * next_y - next_x * y for (x, y), (next_x, next_y) in zip(outline, following))


def run_lengths(region: NDArray[np.bool_], window: tuple[slice, slice], shape: tuple[int, ...]) -> dict[str, Any]:
    """Return COCO's run lengths of a region in its image: of 0 and 1 by turns, column by column, from 0."""
    mask = np.zeros(shape, bool)
    mask[window] = region
    values = mask.ravel(order="F")
    changes = np.flatnonzero(np.diff(values)) + 1
    bounds = [0, *([0] if values[0] else []), *changes.tolist(), values.size]
    return {"size": list(shape), "counts": np.diff(bounds).tolist()}
