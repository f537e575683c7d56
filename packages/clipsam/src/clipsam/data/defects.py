"""Defects painted onto any image, with the exact mask of what they changed.

A painter proposes a *fill* (what the defect looks like) and a *cover* (where, in [0, 1]); :func:`paint` composes them
on the object, and keeps every pixel that did not visibly change exactly as it was.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from clipsam.data.canvas import (
    Canvas,
    behind,
    blob,
    brightness,
    facet,
    moved_to,
    on_edge,
    opaque,
    some_change,
    some_radius,
    some_tint,
    some_width,
    somewhere,
    walk,
)
from clipsam.data.drawing import (
    Field,
    coordinates,
    fractal,
    log_uniform,
    noise,
    pick,
    pixels,
    planes,
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

Proposal = tuple[Field, Field]
Painter = Callable[[Canvas, np.random.Generator], Proposal]


def paint(
    image: NDArray[np.uint8], kind: str, rng: np.random.Generator, mask_of_object: NDArray[np.bool_] | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Paint one defect.

    Args:
        image: ``(H, W, 3)`` RGB, at least 16 pixels a side; it is not changed.
        kind: one of :data:`PAINTERS`.
        rng: the source of every choice.
        mask_of_object: ``(H, W)``, where the defect may lie; default: everywhere.

    Returns:
        The new image, and the mask ``(H, W)``: true where a pixel visibly changed. Outside the mask the new image is
        the old one, bit for bit. A grey image stays grey.

    Raises:
        ValueError: an unknown kind, an image that is too small, or an object without pixels.
    """
    if kind not in PAINTERS:
        raise ValueError(f"kind={kind!r} is unknown; allowed: {', '.join(PAINTERS)}")
    if image.ndim != 3 or image.shape[2] != 3 or min(image.shape[:2]) < 16:
        raise ValueError(f"image of shape {image.shape} is not possible; allowed: (H, W, 3), H and W at least 16")
    canvas = _canvas(image, mask_of_object)
    # a mark may come out as bright as what it lies on, or mostly beside the object: then try elsewhere
    for _ in range(TRIES):
        painted, mask = _apply(canvas, *PAINTERS[kind](canvas, rng))
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


# --- the kinds ---


def scratch(canvas: Canvas, rng: np.random.Generator) -> Proposal:
    """One to three nearly straight, parallel, thin marks, mostly bright."""
    heading, centre = rng.uniform(0, 2 * np.pi), somewhere(canvas, rng)
    paths = []
    for _ in range(rng.integers(1, 4)):
        length = canvas.extent * log_uniform(rng, 0.15, 0.9)
        path = walk(rng, np.zeros(2), length, heading + rng.normal(0, 0.05), 0.25)
        paths.append((moved_to(path, centre + rng.normal(0, 0.04, 2) * canvas.extent), some_width(canvas, rng, 0.8, 3)))
    cover = strokes(canvas.shape, paths)
    return canvas.image + some_change(canvas, cover, rng, 0.35), cover


def crack(canvas: Canvas, rng: np.random.Generator) -> Proposal:
    """A jagged line that branches and tapers, mostly dark."""
    heading, width = rng.uniform(0, 2 * np.pi), some_width(canvas, rng, 1.2, 3.5)
    length = canvas.extent * log_uniform(rng, 0.2, 1.1)
    trunk = walk(rng, np.zeros(2), length, heading, 1.8) + rng.normal(0, 0.006 * length, (25, 2))
    trunk = moved_to(trunk, somewhere(canvas, rng))
    paths = [(trunk[:13], width), (trunk[12:], 0.7 * width)]
    for _ in range(rng.integers(0, 5)):
        root, side = rng.integers(3, 22), pick(rng, -1, 1)
        paths.append(
            (
                walk(rng, trunk[root], length * rng.uniform(0.1, 0.4), heading + side * rng.uniform(0.4, 1.3), 1.5),
                0.5 * width,
            )
        )
    cover = strokes(canvas.shape, paths)
    change = some_change(canvas, cover, rng, 0.85)
    return canvas.image + 1.2 * change, cover


def hole(canvas: Canvas, rng: np.random.Generator) -> Proposal:
    """A dark opening, sometimes with a lit rim."""
    centre, radius = somewhere(canvas, rng), some_radius(canvas, rng, 0.002, 0.05)
    cover = blob(canvas, rng, centre, radius, rng.uniform(0.02, 0.3))
    rim = np.clip(soften(cover, 3) * 3, 0, 1)
    level = np.float32(rng.uniform(0.05, 0.45) * brightness(canvas, cover))
    lit = canvas.image * pick(rng, 0.75, 1.0, 1.3)
    inside = level + (canvas.image - level) * np.float32(rng.uniform(0, 0.15))
    return lit + (inside - lit) * cover, np.maximum(rim, cover)


def stain(canvas: Canvas, rng: np.random.Generator) -> Proposal:
    """A translucent blot with a ragged, sometimes darker border."""
    centre, radius = somewhere(canvas, rng), some_radius(canvas, rng, 0.004, 0.15)
    blot = soften(blob(canvas, rng, centre, radius), 4) * (1 + 0.25 * fractal(rng, canvas.shape, 14, 2))
    cover = step(blot - 0.5, rng.uniform(0.1, 0.6))
    border = rng.uniform(0, 0.6) * np.exp(-(((blot - 0.5) / 0.15) ** 2))
    change = 0.8 * some_change(canvas, cover, rng, 0.8) * (0.75 + border + 0.1 * noise(rng, canvas.shape, 10))
    return (canvas.image + change) * some_tint(rng, 0.3), cover


def dark_region(canvas: Canvas, rng: np.random.Generator) -> Proposal:
    """A part with straight or blurred edges that is darker than the rest and keeps its structure."""
    centre, radius = somewhere(canvas, rng), some_radius(canvas, rng, 0.006, 0.25)
    shape = facet if rng.random() < 0.6 else blob
    cover = soften(shape(canvas, rng, centre, radius), pick(rng, 0, 1, 4, 12))
    remains = log_uniform(rng, 0.15, 0.75)
    uneven = np.clip(remains * (1 + 0.15 * noise(rng, canvas.shape, 6)), 0, 1)
    return canvas.image * uneven, cover


def bright_spot(canvas: Canvas, rng: np.random.Generator) -> Proposal:
    """A spot that is brighter than the rest, with a soft edge."""
    centre, radius = somewhere(canvas, rng), some_radius(canvas, rng, 0.003, 0.1)
    cover = soften(blob(canvas, rng, centre, radius, 0.15), pick(rng, 1, 4, 12))
    return canvas.image + abs(some_change(canvas, cover, rng, 0)), cover


def dent(canvas: Canvas, rng: np.random.Generator) -> Proposal:
    """A round hollow or bump: one flank bright, the other dark, and the structure drawn towards its middle."""
    (x0, y0), radius = somewhere(canvas, rng), some_radius(canvas, rng, 0.006, 0.12)
    height, width = canvas.shape
    y, x = coordinates(canvas.shape)
    u, v = rotated((x * width - x0) / radius, (y * height - y0) / radius, rng.uniform(0, 2 * np.pi))
    u = u * np.float32(rng.uniform(1, 1.8))
    profile = np.exp(-1.5 * (u * u + v * v))
    amount = abs(some_change(canvas, profile, rng, 0.5))
    shading = min(0.7 * amount, 80.0) * (2.2 * u - rng.uniform(0.2, 0.6)) * profile
    return canvas.image + shading, step(profile - 0.03, 0.05)


def cut_paste(canvas: Canvas, rng: np.random.Generator) -> Proposal:
    """A piece of the same picture, turned and lighter or darker, at a wrong place."""
    centre, radius = somewhere(canvas, rng), some_radius(canvas, rng, 0.006, 0.12)
    shape = facet if rng.random() < 0.7 else blob
    cover = shape(canvas, rng, centre, radius)
    source = canvas.image[:, :: pick(rng, -1, 1), :: pick(rng, -1, 1)]
    if canvas.shape[0] == canvas.shape[1] and rng.random() < 0.5:
        source = source.swapaxes(1, 2)
    source = np.roll(source, tuple(int(rng.integers(side)) for side in canvas.shape), (1, 2))
    return source + some_change(canvas, cover, rng, 0.6) * rng.uniform(0.3, 1) * some_tint(rng, 0.1), cover


def blend(canvas: Canvas, rng: np.random.Generator) -> Proposal:
    """Patches of another texture, where smooth noise is high, as in DRAEM (Zavrtanik et al. 2021, section 3.3)."""
    centre, radius = somewhere(canvas, rng), some_radius(canvas, rng, 0.02, 0.3)
    envelope = soften(blob(canvas, rng, centre, radius), 4)
    patches = step(envelope * (1 + 0.6 * fractal(rng, canvas.shape, rng.uniform(4, 16), 2)) - 0.75, 0.15)
    texture = noise(rng, canvas.shape, (rng.uniform(8, 100), rng.uniform(8, 100)))
    level = brightness(canvas, patches) + 0.7 * some_change(canvas, patches, rng, 0.6)
    other = (level + rng.uniform(10, 45) * texture) * some_tint(rng, 0.5)
    return other, patches * np.float32(rng.uniform(0.5, 1))


def missing_part(canvas: Canvas, rng: np.random.Generator) -> Proposal:
    """A piece that is gone, at the object's outline or across it."""
    place = on_edge if rng.random() < 0.7 else somewhere
    centre, radius = place(canvas, rng), some_radius(canvas, rng, 0.02, 0.25)
    cover = facet(canvas, rng, centre, radius)
    return behind(canvas, cover, rng), cover


def colour_spot(canvas: Canvas, rng: np.random.Generator) -> Proposal:
    """One to four spots of paint or ink."""
    cover = np.zeros(canvas.shape, np.float32)
    for _ in range(rng.integers(1, 5)):
        cover = np.maximum(
            cover, blob(canvas, rng, somewhere(canvas, rng), some_radius(canvas, rng, 0.001, 0.02), 0.15)
        )
    paint_ = opaque(canvas, cover, rng, 0.5, tint=0.9)
    return canvas.image + (paint_ - canvas.image) * np.float32(rng.uniform(0.6, 1)), cover


def broken_line(canvas: Canvas, rng: np.random.Generator) -> Proposal:
    """A strip where the structure is interrupted: filled with the darkest or lightest tone around it."""
    centre, radius = somewhere(canvas, rng), some_radius(canvas, rng, 0.003, 0.06)
    cover = soften(facet(canvas, rng, centre, radius))
    around = canvas.image[:, (cover > 0) & canvas.on_object]
    tone = np.percentile(around, pick(rng, 4, 96), axis=1).astype(np.float32)[:, None, None]
    return tone + 4 * noise(rng, canvas.shape, 30), cover


def thread(canvas: Canvas, rng: np.random.Generator) -> Proposal:
    """A hair or a thread that lies on the object in curls, or a few crumbs."""
    centre = somewhere(canvas, rng)
    if rng.random() < 0.7:
        length = canvas.extent * log_uniform(rng, 0.2, 1.4)
        path = walk(rng, np.zeros(2), length, rng.uniform(0, 6.3), rng.uniform(1, 4))
        cover = strokes(canvas.shape, [(moved_to(path, centre), some_width(canvas, rng, 1.2, 3.5))])
    else:
        spots = centre + rng.normal(0, 0.08 * canvas.extent, (rng.integers(2, 7), 2))
        cover = np.max([facet(canvas, rng, spot, some_radius(canvas, rng, 0.0005, 0.004)) for spot in spots], axis=0)
    return opaque(canvas, cover, rng, 0.5, tint=0.5), cover


def chip(canvas: Canvas, rng: np.random.Generator) -> Proposal:
    """A small piece broken off the outline: the ground or a rough fracture shows."""
    centre, radius = on_edge(canvas, rng), some_radius(canvas, rng, 0.004, 0.04)
    cover = blob(canvas, rng, centre, radius, 0.4)
    if rng.random() < 0.5:
        return behind(canvas, cover, rng), cover
    rough = 1 + 0.15 * fractal(rng, canvas.shape, 20, 3)
    return opaque(canvas, cover, rng, 0.5) * rough, cover


def misprint(canvas: Canvas, rng: np.random.Generator) -> Proposal:
    """The picture printed twice with an offset, or strokes of a wrong imprint."""
    centre, radius = somewhere(canvas, rng), some_radius(canvas, rng, 0.01, 0.15)
    if rng.random() < 0.4:
        cover = facet(canvas, rng, centre, radius)
        angle, reach = rng.uniform(0, 2 * np.pi), rng.uniform(0.02, 0.06) * min(canvas.shape)
        ghost = np.roll(canvas.image, (round(reach * np.sin(angle)), round(reach * np.cos(angle))), (1, 2))
        return np.float32(0.4) * canvas.image + np.float32(0.6) * ghost, cover
    pen = some_width(canvas, rng, 1.5, 4)
    glyphs = centre + rng.uniform(-1, 1, (rng.integers(2, 6), 1, 2)) * radius * [1.5, 0.4]
    cover = strokes(canvas.shape, [(glyph + rng.uniform(-0.4, 0.4, (4, 2)) * radius, pen) for glyph in glyphs])
    return opaque(canvas, cover, rng, 0.7, tint=0.6), cover


def _unmistakable(canvas: Canvas, rng: np.random.Generator) -> Proposal:
    """Return a black or white blot: what is left when no other mark can be seen on this surface."""
    cover = blob(canvas, rng, somewhere(canvas, rng), some_radius(canvas, rng, 0.02, 0.05))
    return np.zeros((3, 1, 1), np.float32) + (255 if brightness(canvas, cover) < 128 else 0), cover


PAINTERS: dict[str, Painter] = {
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
