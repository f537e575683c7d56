"""What a defect is painted on, and where and how: places, shapes, brightness and colour."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from clipsam.data.drawing import Field, log_uniform, noise, polygon, rotated


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


# --- where: places and shapes ---


def somewhere(canvas: Canvas, rng: np.random.Generator) -> NDArray:
    """Return a random pixel of the object as (x, y)."""
    pixels = np.flatnonzero(canvas.on_object)
    row, column = divmod(int(pixels[rng.integers(len(pixels))]), canvas.shape[1])
    return np.array([column + 0.5, row + 0.5])


def on_edge(canvas: Canvas, rng: np.random.Generator) -> NDArray:
    """Return a random pixel on the object's outline (the picture's, if the object fills it) as (x, y)."""
    inner = np.asarray(ndimage.binary_erosion(canvas.on_object), bool)
    rows, columns = np.nonzero(canvas.on_object & ~inner)
    place = rng.integers(len(rows))
    return np.array([columns[place] + 0.5, rows[place] + 0.5])


def some_radius(canvas: Canvas, rng: np.random.Generator, low: float, high: float) -> float:
    """Return the radius of a disc whose share of the object is log-uniform in ``low`` to ``high``."""
    share = log_uniform(rng, low, high)
    return max(canvas.extent * float(np.sqrt(share / np.pi)), 2.0)


def blob(canvas: Canvas, rng: np.random.Generator, centre: NDArray, radius: float, wobble: float = 0.25) -> Field:
    """Return the cover of a rounded shape: an ellipse whose radius varies with the angle."""
    angle = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    waves = sum(rng.normal() / k * np.cos(k * angle + rng.uniform(0, 6)) for k in range(2, 7))
    reach = radius * np.clip(1 + wobble * waves, 0.3, 2)
    stretch = rng.uniform(1, 1.6)
    x, y = reach * np.cos(angle) * stretch, reach * np.sin(angle) / stretch
    return polygon(canvas.shape, centre + np.stack(rotated(x, y, rng.uniform(0, np.pi)), axis=1))


def facet(canvas: Canvas, rng: np.random.Generator, centre: NDArray, radius: float) -> Field:
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


def walk(rng: np.random.Generator, start: NDArray, length: float, heading: float, bend: float) -> NDArray:
    """Return a random walk of 24 steps, ``(25, 2)``; its heading changes smoothly by about ``bend`` radians."""
    turns = np.cumsum(rng.normal(0, bend / np.sqrt(24), 24)) + heading
    steps = np.stack([np.cos(turns), np.sin(turns)], axis=1) * length / 24
    return start + np.concatenate([np.zeros((1, 2)), np.cumsum(steps, axis=0)])


def moved_to(path: NDArray, centre: NDArray) -> NDArray:
    """Return a path ``(N, 2)`` with its middle at a place."""
    return path + centre - path[len(path) // 2]


def some_width(canvas: Canvas, rng: np.random.Generator, low: float, high: float) -> float:
    """Return a line's width in pixels, drawn from ``low`` to ``high`` pixels of an image of 256."""
    return max(rng.uniform(low, high) * min(canvas.shape) / 256, 1.0)


# --- how: brightness and colour ---


def brightness(canvas: Canvas, cover: Field) -> float:
    """Return the mean brightness of the object under a cover."""
    weight = cover * canvas.on_object
    total = float(weight.sum())
    return float((canvas.image[1] * weight).sum()) / total if total > 0 else 128.0


def some_change(canvas: Canvas, cover: Field, rng: np.random.Generator, dark_share: float) -> float:
    """Return by how many grey levels to change: from just visible on this surface to strong, with room to do so."""
    least = 22 + 0.6 * canvas.contrast
    amount = log_uniform(rng, least, max(150, 1.5 * least))
    below = brightness(canvas, cover)
    dark = rng.random() < dark_share
    if (below if dark else 255 - below) < 1.2 * least:
        dark = not dark
    amount = min(amount, max(0.85 * (below if dark else 255 - below), least))
    return -amount if dark else amount


def some_tint(rng: np.random.Generator, strength: float) -> Field:
    """Return a random colour cast, ``(3, 1, 1)``, of mean 1."""
    tint = 1 + strength * rng.uniform(-1, 1, (3, 1, 1))
    return (tint / tint.mean()).astype(np.float32)


def opaque(canvas: Canvas, cover: Field, rng: np.random.Generator, dark_share: float, tint: float = 0.0) -> Field:
    """Return an opaque fill that hides the surface, with a little grain of its own."""
    level = np.clip(brightness(canvas, cover) + some_change(canvas, cover, rng, dark_share), 4, 250)
    grain = 1 + rng.uniform(0.01, 0.08) * noise(rng, canvas.shape, 24)
    return level * grain * some_tint(rng, tint)


def behind(canvas: Canvas, cover: Field, rng: np.random.Generator) -> Field:
    """Return what shows where a part is gone: the colour beside the object, or a dark or light ground."""
    beside = canvas.image[:, ~canvas.on_object]
    if beside.shape[1] < 0.02 * canvas.on_object.size:
        return opaque(canvas, cover, rng, 0.7)
    colour = beside.mean(axis=1)[:, None, None]
    return colour + 0.5 * beside.std(axis=1).mean() * noise(rng, canvas.shape, 12)
