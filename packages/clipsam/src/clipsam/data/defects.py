"""Defects painted onto any image, with the exact mask of what they changed.

A painter proposes a *fill* (what the defect looks like) and a *cover* (where, in [0, 1]); :func:`paint` composes them
on the object, and keeps every pixel that did not visibly change exactly as it was.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from clipsam.data.drawing import (
    Field,
    coordinates,
    fractal,
    log_uniform,
    noise,
    pick,
    pixels,
    planes,
    polygon,
    rotated,
    soften,
    step,
    strokes,
)

VISIBLE = 8.0
"""Grey levels (of 255) by which a pixel's strongest channel has to change to belong to the mask."""
SMALLEST = 0.001
"""Least share of the image that a defect covers, on images of more than 9,000 pixels; 9 pixels on smaller ones."""
SOLID = 0.7
"""Least share of the mask whose own pixels changed; the others are enclosed by these."""
TRIES = 8


@dataclass(frozen=True)
class Canvas:
    """The image that a painter looks at."""

    image: Field
    """``(3, H, W)`` in [0, 255]."""
    on_object: NDArray[np.bool_]
    """``(H, W)``, where a defect may lie."""
    is_grey: bool
    """Whether the three channels are equal everywhere: such a picture stays grey."""
    contrast: float
    """Standard deviation of the image's brightness on the object: what a subtle defect has to stand out from."""

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width."""
        return self.on_object.shape  # type: ignore[return-value]

    @property
    def extent(self) -> float:
        """Side of a square as large as the object, in pixels."""
        return float(np.sqrt(np.count_nonzero(self.on_object)))


Proposal = tuple[Field, Field]
Painter = Callable[[Canvas, np.random.Generator], Proposal]


def paint(
    image: NDArray[np.uint8], kind: str, rng: np.random.Generator, mask_of_object: NDArray[np.bool_] | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Paint one defect.

    Args:
        image: ``(H, W, 3)`` RGB, at least 16 pixels a side; it is not changed.
        kind: one of :data:`DEFECTS`.
        rng: the source of every choice.
        mask_of_object: ``(H, W)``, where the defect may lie; default: everywhere.

    Returns:
        The new image, and the mask ``(H, W)``: true where a pixel visibly changed. Outside the mask the new image is
        the old one, bit for bit. A grey image stays grey.

    Raises:
        ValueError: an unknown kind, an image that is too small, or an object without pixels.
    """
    if kind not in DEFECTS:
        raise ValueError(f"kind={kind!r} is unknown; allowed: {', '.join(DEFECTS)}")
    if image.ndim != 3 or image.shape[2] != 3 or min(image.shape[:2]) < 16:
        raise ValueError(f"image of shape {image.shape} is not possible; allowed: (H, W, 3), H and W at least 16")
    canvas = _canvas(image, mask_of_object)
    # a mark may come out as bright as what it lies on, or mostly beside the object: then try elsewhere
    for _ in range(TRIES):
        painted, mask = _apply(canvas, *DEFECTS[kind](canvas, rng))
        if _stands_out(canvas, painted, mask):
            break
    else:
        painted, mask = _apply(canvas, *_unmistakable(canvas, rng))
    return pixels(painted), mask


def _canvas(image: NDArray[np.uint8], mask_of_object: NDArray[np.bool_] | None) -> Canvas:
    on_object = np.ones(image.shape[:2], bool) if mask_of_object is None else np.asarray(mask_of_object, bool)
    if on_object.shape != image.shape[:2]:
        raise ValueError(f"mask_of_object has shape {on_object.shape}; the image is {image.shape[:2]}")
    if not on_object.any():
        raise ValueError("mask_of_object has no pixels; allowed: at least one")
    picture = planes(image)
    is_grey = all(np.array_equal(picture[0], picture[channel]) for channel in (1, 2))
    return Canvas(picture, on_object, is_grey, float(picture[1][on_object].std()))


def _apply(canvas: Canvas, fill: Field, cover: Field) -> tuple[Field, NDArray[np.bool_]]:
    """Compose a proposal with the picture and keep only what visibly changed; return the new picture and its mask."""
    cover = cover * canvas.on_object
    painted = canvas.image + (fill - canvas.image) * cover
    if canvas.is_grey:
        painted = np.broadcast_to(painted.mean(axis=0), painted.shape)
    painted = np.rint(painted)
    np.clip(painted, 0, 255, out=painted)

    changed = np.any(np.abs(painted - canvas.image) > VISIBLE, axis=0)
    # pixels enclosed by changed ones that happen to look as before belong to the defect, too
    mask = changed | (_closed(changed) & (cover > 0.5))
    return np.where(mask, painted, canvas.image), mask


def _stands_out(canvas: Canvas, painted: Field, mask: NDArray[np.bool_]) -> bool:
    """Tell whether the change is large enough, and more than one grain of the surface in place of another."""
    least = min(max(SMALLEST * mask.size, 9), np.count_nonzero(canvas.on_object) / 2)
    if np.count_nonzero(mask) < least:
        return False
    part = (slice(None), *ndimage.find_objects(mask.astype(np.int8))[0])
    change = painted[part] - canvas.image[part]
    inside = mask[part[1:]]
    seen_from_afar = np.abs(soften(change, 3)).max(axis=0)[inside].mean()
    solid = (np.abs(change).max(axis=0) > VISIBLE)[inside].mean()
    return bool(solid > SOLID and seen_from_afar > max(VISIBLE, 0.25 * canvas.contrast))


def _closed(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the mask with gaps of up to four pixels closed; works on the part that is not empty."""
    closed = np.zeros_like(mask)
    for part in ndimage.find_objects(mask.astype(np.int8)):
        closed[part] = ndimage.binary_closing(np.pad(mask[part], 2), iterations=2)[2:-2, 2:-2]
    return closed


# --- where: places and shapes ---


def _somewhere(canvas: Canvas, rng: np.random.Generator) -> NDArray:
    """Return a random pixel of the object as (x, y)."""
    pixels = np.flatnonzero(canvas.on_object)
    row, column = divmod(int(pixels[rng.integers(len(pixels))]), canvas.shape[1])
    return np.array([column + 0.5, row + 0.5])


def _on_edge(canvas: Canvas, rng: np.random.Generator) -> NDArray:
    """Return a random pixel on the object's outline (the picture's, if the object fills it) as (x, y)."""
    inner = np.asarray(ndimage.binary_erosion(canvas.on_object), bool)
    rows, columns = np.nonzero(canvas.on_object & ~inner)
    place = rng.integers(len(rows))
    return np.array([columns[place] + 0.5, rows[place] + 0.5])


def _radius(canvas: Canvas, rng: np.random.Generator, low: float, high: float) -> float:
    """Return the radius of a disc whose share of the object is log-uniform in ``low`` to ``high``."""
    share = log_uniform(rng, low, high)
    return max(canvas.extent * float(np.sqrt(share / np.pi)), 2.0)


def _blob(canvas: Canvas, rng: np.random.Generator, centre: NDArray, radius: float, wobble: float = 0.25) -> Field:
    """Return the cover of a rounded shape: an ellipse whose radius varies with the angle."""
    angle = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    waves = sum(rng.normal() / k * np.cos(k * angle + rng.uniform(0, 6)) for k in range(2, 7))
    reach = radius * np.clip(1 + wobble * waves, 0.3, 2)
    stretch = rng.uniform(1, 1.6)
    x, y = reach * np.cos(angle) * stretch, reach * np.sin(angle) / stretch
    return polygon(canvas.shape, centre + np.stack(rotated(x, y, rng.uniform(0, np.pi)), axis=1))


def _region(canvas: Canvas, rng: np.random.Generator, centre: NDArray, radius: float) -> Field:
    """Return the cover of a part with straight edges: a rectangle (upright or turned) or a polygon."""
    if rng.random() < 0.6:
        stretch = np.sqrt(log_uniform(rng, 1, 6))
        x, y = 0.89 * radius * stretch * np.array([-1, 1, 1, -1]), 0.89 * radius / stretch * np.array([-1, -1, 1, 1])
        turn = rng.integers(2) * np.pi / 2 if rng.random() < 0.7 else rng.uniform(0, np.pi)
    else:
        angle = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(4, 9)))
        reach = radius * rng.uniform(0.8, 1.6, len(angle))
        x, y, turn = reach * np.cos(angle), reach * np.sin(angle), 0
    return polygon(canvas.shape, centre + np.stack(rotated(x, y, turn), axis=1))


def _path(rng: np.random.Generator, start: NDArray, length: float, heading: float, bend: float) -> NDArray:
    """Return a random walk of 24 steps, ``(25, 2)``; its heading changes smoothly by about ``bend`` radians."""
    turns = np.cumsum(rng.normal(0, bend / np.sqrt(24), 24)) + heading
    steps = np.stack([np.cos(turns), np.sin(turns)], axis=1) * length / 24
    return start + np.concatenate([np.zeros((1, 2)), np.cumsum(steps, axis=0)])


def _middle_at(path: NDArray, centre: NDArray) -> NDArray:
    return path + centre - path[len(path) // 2]


def _thickness(canvas: Canvas, rng: np.random.Generator, low: float, high: float) -> float:
    """Return a line's width in pixels, drawn from ``low`` to ``high`` pixels of an image of 256."""
    return max(rng.uniform(low, high) * min(canvas.shape) / 256, 1.0)


# --- how: brightness and colour ---


def _under(canvas: Canvas, cover: Field) -> float:
    """Return the mean brightness of the object under a cover."""
    weight = cover * canvas.on_object
    total = float(weight.sum())
    return float((canvas.image[1] * weight).sum()) / total if total > 0 else 128.0


def _change(canvas: Canvas, cover: Field, rng: np.random.Generator, dark_share: float) -> float:
    """Return by how many grey levels to change: from just visible on this surface to strong, with room to do so."""
    least = 22 + 0.6 * canvas.contrast
    amount = log_uniform(rng, least, max(150, 1.5 * least))
    below = _under(canvas, cover)
    dark = rng.random() < dark_share
    if (below if dark else 255 - below) < 1.2 * least:
        dark = not dark
    amount = min(amount, max(0.85 * (below if dark else 255 - below), least))
    return -amount if dark else amount


def _tint(rng: np.random.Generator, strength: float) -> Field:
    """Return a random colour cast, ``(3, 1, 1)``, of mean 1."""
    tint = 1 + strength * rng.uniform(-1, 1, (3, 1, 1))
    return (tint / tint.mean()).astype(np.float32)


def _flat(canvas: Canvas, cover: Field, rng: np.random.Generator, dark_share: float, tint: float = 0.0) -> Field:
    """Return an opaque fill that hides the surface, with a little grain of its own."""
    level = np.clip(_under(canvas, cover) + _change(canvas, cover, rng, dark_share), 4, 250)
    grain = 1 + rng.uniform(0.01, 0.08) * noise(rng, canvas.shape, 24)
    return level * grain * _tint(rng, tint)


def _behind(canvas: Canvas, cover: Field, rng: np.random.Generator) -> Field:
    """Return what shows where a part is gone: the colour beside the object, or a dark or light ground."""
    beside = canvas.image[:, ~canvas.on_object]
    if beside.shape[1] < 0.02 * canvas.on_object.size:
        return _flat(canvas, cover, rng, 0.7)
    colour = beside.mean(axis=1)[:, None, None]
    return colour + 0.5 * beside.std(axis=1).mean() * noise(rng, canvas.shape, 12)


# --- the kinds ---


def scratch(canvas: Canvas, rng: np.random.Generator) -> Proposal:
    """One to three nearly straight, parallel, thin marks, mostly bright."""
    heading, centre = rng.uniform(0, 2 * np.pi), _somewhere(canvas, rng)
    paths = []
    for _ in range(rng.integers(1, 4)):
        length = canvas.extent * log_uniform(rng, 0.15, 0.9)
        path = _path(rng, np.zeros(2), length, heading + rng.normal(0, 0.05), 0.25)
        paths.append(
            (_middle_at(path, centre + rng.normal(0, 0.04, 2) * canvas.extent), _thickness(canvas, rng, 0.8, 3))
        )
    cover = strokes(canvas.shape, paths)
    return canvas.image + _change(canvas, cover, rng, 0.35), cover


def crack(canvas: Canvas, rng: np.random.Generator) -> Proposal:
    """A jagged line that branches and tapers, mostly dark."""
    heading, width = rng.uniform(0, 2 * np.pi), _thickness(canvas, rng, 1.2, 3.5)
    length = canvas.extent * log_uniform(rng, 0.2, 1.1)
    trunk = _path(rng, np.zeros(2), length, heading, 1.8) + rng.normal(0, 0.006 * length, (25, 2))
    trunk = _middle_at(trunk, _somewhere(canvas, rng))
    paths = [(trunk[:13], width), (trunk[12:], 0.7 * width)]
    for _ in range(rng.integers(0, 5)):
        root, side = rng.integers(3, 22), pick(rng, -1, 1)
        paths.append(
            (
                _path(rng, trunk[root], length * rng.uniform(0.1, 0.4), heading + side * rng.uniform(0.4, 1.3), 1.5),
                0.5 * width,
            )
        )
    cover = strokes(canvas.shape, paths)
    change = _change(canvas, cover, rng, 0.85)
    return canvas.image + 1.2 * change, cover


def hole(canvas: Canvas, rng: np.random.Generator) -> Proposal:
    """A dark opening, sometimes with a lit rim."""
    centre, radius = _somewhere(canvas, rng), _radius(canvas, rng, 0.002, 0.05)
    cover = _blob(canvas, rng, centre, radius, rng.uniform(0.02, 0.3))
    rim = np.clip(soften(cover, 3) * 3, 0, 1)
    level = np.float32(rng.uniform(0.05, 0.45) * _under(canvas, cover))
    lit = canvas.image * pick(rng, 0.75, 1.0, 1.3)
    inside = level + (canvas.image - level) * np.float32(rng.uniform(0, 0.15))
    return lit + (inside - lit) * cover, np.maximum(rim, cover)


def stain(canvas: Canvas, rng: np.random.Generator) -> Proposal:
    """A translucent blot with a ragged, sometimes darker border."""
    centre, radius = _somewhere(canvas, rng), _radius(canvas, rng, 0.004, 0.15)
    blot = soften(_blob(canvas, rng, centre, radius), 4) * (1 + 0.25 * fractal(rng, canvas.shape, 14, 2))
    cover = step(blot - 0.5, rng.uniform(0.1, 0.6))
    border = rng.uniform(0, 0.6) * np.exp(-(((blot - 0.5) / 0.15) ** 2))
    change = 0.8 * _change(canvas, cover, rng, 0.8) * (0.75 + border + 0.1 * noise(rng, canvas.shape, 10))
    return (canvas.image + change) * _tint(rng, 0.3), cover


def dark_region(canvas: Canvas, rng: np.random.Generator) -> Proposal:
    """A part with straight or blurred edges that is darker than the rest and keeps its structure."""
    centre, radius = _somewhere(canvas, rng), _radius(canvas, rng, 0.006, 0.25)
    shape = _region if rng.random() < 0.6 else _blob
    cover = soften(shape(canvas, rng, centre, radius), pick(rng, 0, 1, 4, 12))
    remains = log_uniform(rng, 0.15, 0.75)
    uneven = np.clip(remains * (1 + 0.15 * noise(rng, canvas.shape, 6)), 0, 1)
    return canvas.image * uneven, cover


def bright_spot(canvas: Canvas, rng: np.random.Generator) -> Proposal:
    """A spot that is brighter than the rest, with a soft edge."""
    centre, radius = _somewhere(canvas, rng), _radius(canvas, rng, 0.003, 0.1)
    cover = soften(_blob(canvas, rng, centre, radius, 0.15), pick(rng, 1, 4, 12))
    return canvas.image + abs(_change(canvas, cover, rng, 0)), cover


def dent(canvas: Canvas, rng: np.random.Generator) -> Proposal:
    """A round hollow or bump: one flank bright, the other dark, and the structure drawn towards its middle."""
    (x0, y0), radius = _somewhere(canvas, rng), _radius(canvas, rng, 0.006, 0.12)
    height, width = canvas.shape
    y, x = coordinates(canvas.shape)
    u, v = rotated((x * width - x0) / radius, (y * height - y0) / radius, rng.uniform(0, 2 * np.pi))
    u = u * np.float32(rng.uniform(1, 1.8))
    profile = np.exp(-1.5 * (u * u + v * v))
    amount = abs(_change(canvas, profile, rng, 0.5))
    shading = min(0.7 * amount, 80.0) * (2.2 * u - rng.uniform(0.2, 0.6)) * profile
    return canvas.image + shading, step(profile - 0.03, 0.05)


def cut_paste(canvas: Canvas, rng: np.random.Generator) -> Proposal:
    """A piece of the same picture, turned and lighter or darker, at a wrong place."""
    centre, radius = _somewhere(canvas, rng), _radius(canvas, rng, 0.006, 0.12)
    shape = _region if rng.random() < 0.7 else _blob
    cover = shape(canvas, rng, centre, radius)
    source = canvas.image[:, :: pick(rng, -1, 1), :: pick(rng, -1, 1)]
    if canvas.shape[0] == canvas.shape[1] and rng.random() < 0.5:
        source = source.swapaxes(1, 2)
    source = np.roll(source, tuple(int(rng.integers(side)) for side in canvas.shape), (1, 2))
    return source + _change(canvas, cover, rng, 0.6) * rng.uniform(0.3, 1) * _tint(rng, 0.1), cover


def blend(canvas: Canvas, rng: np.random.Generator) -> Proposal:
    """Patches of another texture, where smooth noise is high, as in DRAEM (Zavrtanik et al. 2021, section 3.3)."""
    centre, radius = _somewhere(canvas, rng), _radius(canvas, rng, 0.02, 0.3)
    envelope = soften(_blob(canvas, rng, centre, radius), 4)
    patches = step(envelope * (1 + 0.6 * fractal(rng, canvas.shape, rng.uniform(4, 16), 2)) - 0.75, 0.15)
    texture = noise(rng, canvas.shape, (rng.uniform(8, 100), rng.uniform(8, 100)))
    level = _under(canvas, patches) + 0.7 * _change(canvas, patches, rng, 0.6)
    other = (level + rng.uniform(10, 45) * texture) * _tint(rng, 0.5)
    return other, patches * np.float32(rng.uniform(0.5, 1))


def missing_part(canvas: Canvas, rng: np.random.Generator) -> Proposal:
    """A piece that is gone, at the object's outline or across it."""
    place = _on_edge if rng.random() < 0.7 else _somewhere
    centre, radius = place(canvas, rng), _radius(canvas, rng, 0.02, 0.25)
    cover = _region(canvas, rng, centre, radius)
    return _behind(canvas, cover, rng), cover


def colour_spot(canvas: Canvas, rng: np.random.Generator) -> Proposal:
    """One to four spots of paint or ink."""
    cover = np.zeros(canvas.shape, np.float32)
    for _ in range(rng.integers(1, 5)):
        cover = np.maximum(cover, _blob(canvas, rng, _somewhere(canvas, rng), _radius(canvas, rng, 0.001, 0.02), 0.15))
    paint_ = _flat(canvas, cover, rng, 0.5, tint=0.9)
    return canvas.image + (paint_ - canvas.image) * np.float32(rng.uniform(0.6, 1)), cover


def broken_line(canvas: Canvas, rng: np.random.Generator) -> Proposal:
    """A strip where the structure is interrupted: filled with the darkest or lightest tone around it."""
    centre, radius = _somewhere(canvas, rng), _radius(canvas, rng, 0.003, 0.06)
    cover = soften(_region(canvas, rng, centre, radius))
    around = canvas.image[:, (cover > 0) & canvas.on_object]
    tone = np.percentile(around, pick(rng, 4, 96), axis=1).astype(np.float32)[:, None, None]
    return tone + 4 * noise(rng, canvas.shape, 30), cover


def thread(canvas: Canvas, rng: np.random.Generator) -> Proposal:
    """A hair or a thread that lies on the object in curls, or a few crumbs."""
    centre = _somewhere(canvas, rng)
    if rng.random() < 0.7:
        length = canvas.extent * log_uniform(rng, 0.2, 1.4)
        path = _path(rng, np.zeros(2), length, rng.uniform(0, 6.3), rng.uniform(1, 4))
        cover = strokes(canvas.shape, [(_middle_at(path, centre), _thickness(canvas, rng, 1.2, 3.5))])
    else:
        spots = centre + rng.normal(0, 0.08 * canvas.extent, (rng.integers(2, 7), 2))
        cover = np.max([_region(canvas, rng, spot, _radius(canvas, rng, 0.0005, 0.004)) for spot in spots], axis=0)
    return _flat(canvas, cover, rng, 0.5, tint=0.5), cover


def chip(canvas: Canvas, rng: np.random.Generator) -> Proposal:
    """A small piece broken off the outline: the ground or a rough fracture shows."""
    centre, radius = _on_edge(canvas, rng), _radius(canvas, rng, 0.004, 0.04)
    cover = _blob(canvas, rng, centre, radius, 0.4)
    if rng.random() < 0.5:
        return _behind(canvas, cover, rng), cover
    rough = 1 + 0.15 * fractal(rng, canvas.shape, 20, 3)
    return _flat(canvas, cover, rng, 0.5) * rough, cover


def misprint(canvas: Canvas, rng: np.random.Generator) -> Proposal:
    """The picture printed twice with an offset, or strokes of a wrong imprint."""
    centre, radius = _somewhere(canvas, rng), _radius(canvas, rng, 0.01, 0.15)
    if rng.random() < 0.4:
        cover = _region(canvas, rng, centre, radius)
        angle, reach = rng.uniform(0, 2 * np.pi), rng.uniform(0.02, 0.06) * min(canvas.shape)
        ghost = np.roll(canvas.image, (round(reach * np.sin(angle)), round(reach * np.cos(angle))), (1, 2))
        return np.float32(0.4) * canvas.image + np.float32(0.6) * ghost, cover
    pen = _thickness(canvas, rng, 1.5, 4)
    glyphs = centre + rng.uniform(-1, 1, (rng.integers(2, 6), 1, 2)) * radius * [1.5, 0.4]
    cover = strokes(canvas.shape, [(glyph + rng.uniform(-0.4, 0.4, (4, 2)) * radius, pen) for glyph in glyphs])
    return _flat(canvas, cover, rng, 0.7, tint=0.6), cover


def _unmistakable(canvas: Canvas, rng: np.random.Generator) -> Proposal:
    """Return a black or white blot: what is left when no other mark can be seen on this surface."""
    cover = _blob(canvas, rng, _somewhere(canvas, rng), _radius(canvas, rng, 0.02, 0.05))
    return np.zeros((3, 1, 1), np.float32) + (255 if _under(canvas, cover) < 128 else 0), cover


DEFECTS: dict[str, Painter] = {
    painter.__name__: painter
    for painter in (
        scratch,
        crack,
        hole,
        stain,
        dark_region,
        bright_spot,
        dent,
        cut_paste,
        blend,
        missing_part,
        colour_spot,
        broken_line,
        thread,
        chip,
        misprint,
    )
}
"""Kind of defect -> its painter."""
