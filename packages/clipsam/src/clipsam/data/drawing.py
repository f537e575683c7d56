"""The fields and shapes that textures, objects and defects are drawn with: a generator and a size in, an array out.

A *field* is an ``(H, W)`` array, a *cover* a field in [0, 1]: how much of each pixel a shape covers; a *picture* is
``(3, H, W)`` in [0, 255], planes first because that is several times faster. Coordinates are ``y, x`` of the pixels'
centres, in units of the image's side unless a function says otherwise.
"""

from functools import lru_cache
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Field = NDArray[np.floating]
Shape = tuple[int, int]
T = TypeVar("T")


def pick(rng: np.random.Generator, *choices: T) -> T:
    """Return one of the choices (``rng.choice`` would make a float64 of it, and of all that it touches)."""
    return choices[int(rng.integers(len(choices)))]


def log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """Return a number whose logarithm is uniform between those of ``low`` and ``high``."""
    return low * (high / low) ** rng.random()


@lru_cache(maxsize=8)
def coordinates(shape: Shape) -> tuple[Field, Field]:
    """Return ``y`` of shape ``(H, 1)`` and ``x`` of shape ``(1, W)``, both in (0, 1); read-only."""
    y, x = ((np.arange(side, dtype=np.float32) + 0.5) / side for side in shape)
    y.flags.writeable = x.flags.writeable = False
    return y[:, None], x[None, :]


def resize(field: Field, shape: Shape, resample: Image.Resampling = Image.Resampling.BICUBIC) -> Field:
    """Return ``field`` resampled to ``shape``."""
    return np.asarray(Image.fromarray(field).resize((shape[1], shape[0]), resample))


def noise(rng: np.random.Generator, shape: Shape, cells: float | tuple[float, float]) -> Field:
    """Return smooth noise of about unit variance, with ``cells`` bumps per side (down, across)."""
    return resize(rng.standard_normal(_grid(shape, cells), dtype=np.float32), shape)


def fractal(rng: np.random.Generator, shape: Shape, cells: float, octaves: int = 4, gain: float = 0.55) -> Field:
    """Return noise of several scales: each octave has twice the bumps and ``gain`` of the height."""
    field = rng.standard_normal(_grid(shape, cells), dtype=np.float32)
    for octave in range(1, octaves):
        finer = _grid(shape, cells * 2**octave)
        field = resize(field, finer) + np.float32(gain**octave) * rng.standard_normal(finer, dtype=np.float32)
    return resize(field, shape)


def _grid(shape: Shape, cells: float | tuple[float, float]) -> Shape:
    down, across = cells if isinstance(cells, tuple) else (cells, cells)
    return min(max(round(down), 2), shape[0]), min(max(round(across), 2), shape[1])


def cellular(rng: np.random.Generator, shape: Shape, cells: float, jitter: float = 1.0) -> tuple[Field, Field, Field]:
    """Return Worley's cellular noise of about ``cells`` × ``cells`` grains.

    Drawn at half the size and enlarged, which costs a quarter.

    Returns:
        Distance to the nearest centre, how much farther the second one is (0 on a boundary), both in units of a cell,
        and one random number in [0, 1] per grain.
    """
    half = (max(shape[0] // 2, 1), max(shape[1] // 2, 1))
    y, x = coordinates(half)
    down, across = y * cells, x * cells
    row, column = down.astype(np.int32), across.astype(np.int32)
    count = int(cells) + 3
    centres = rng.random((3, count, count), dtype=np.float32)
    centres[:2] = 0.5 + jitter * (centres[:2] - 0.5)
    nearest = np.full(half, 9, np.float32)
    second, tone = nearest.copy(), np.zeros(half, np.float32)
    for i in (-1, 0, 1):
        rows = centres[:, row[:, 0] + 1 + i]
        for j in (-1, 0, 1):
            offset_y, offset_x, grain = rows[:, :, column[0] + 1 + j]
            distance = (offset_y + (row + i - down)) ** 2 + (offset_x + (column + j - across)) ** 2
            np.copyto(tone, grain, where=distance < nearest)
            np.minimum(second, np.maximum(nearest, distance), out=second)
            np.minimum(nearest, distance, out=nearest)
    nearest, second = np.sqrt(nearest), np.sqrt(second)
    bilinear = Image.Resampling.BILINEAR
    return resize(nearest, shape, bilinear), resize(second - nearest, shape, bilinear), resize(tone, shape, bilinear)


def rotated(x: Field, y: Field, angle: float) -> tuple[Field, Field]:
    """Return the coordinates ``x, y`` turned by ``angle`` radians."""
    cosine, sine = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return cosine * x + sine * y, cosine * y - sine * x


def step(field: Field, width: float) -> Field:
    """Return 0 below zero and 1 above, with a ramp ``width`` wide: an antialiased edge."""
    return np.clip(field / np.float32(max(width, 1e-6)) + np.float32(0.5), 0, 1)


def line(distance: Field, half_width: float, pixel: float) -> Field:
    """Return the cover of the line ``|distance| < half_width``; ``pixel`` is a pixel's size in the same unit."""
    return step(np.float32(half_width) - np.abs(distance), pixel)


def fold(field: Field, period: float = 1.0) -> Field:
    """Return the signed distance to the nearest multiple of ``period``, in ±``period`` / 2."""
    return field - np.float32(period) * np.rint(field / np.float32(period))


def lookup(rng: np.random.Generator, row: Field, column: Field, spread: float) -> Field:
    """Return one random tone per tile (row and column number, any integers), normal with deviation ``spread``."""
    table = (rng.standard_normal((64, 64)) * spread).astype(np.float32)
    return table[row.astype(np.int32) % 64, column.astype(np.int32) % 64]


def polygon(shape: Shape, points: NDArray) -> Field:
    """Return the cover of the polygon with these corners, ``(N, 2)`` of (x, y) in pixels."""
    canvas = Image.new("L", (2 * shape[1], 2 * shape[0]))
    ImageDraw.Draw(canvas).polygon((2 * np.asarray(points)).ravel().tolist(), fill=255)
    return np.asarray(canvas.reduce(2), np.float32) / np.float32(255)


def strokes(shape: Shape, paths: list[tuple[NDArray, float]]) -> Field:
    """Return the cover of open lines, each ``(N, 2)`` of (x, y) and its width in pixels."""
    canvas = Image.new("L", (3 * shape[1], 3 * shape[0]))
    draw = ImageDraw.Draw(canvas)
    for points, width in paths:
        draw.line((3 * np.asarray(points)).ravel().tolist(), fill=255, width=max(round(3 * width), 1), joint="curve")
    return np.asarray(canvas.reduce(3), np.float32) / np.float32(255)


_NEIGHBOURS = (
    (np.s_[..., :-1, :], np.s_[..., 1:, :], np.s_[..., 0, :], np.s_[..., -1, :]),
    (np.s_[..., :-1], np.s_[..., 1:], np.s_[..., 0], np.s_[..., -1]),
)


def soften(field: Field, passes: int = 1) -> Field:
    """Return a field or picture blurred by ``passes`` of the 3×3 binomial filter."""
    for _ in range(passes):
        for before, after, first, last in _NEIGHBOURS:
            quarter = np.float32(0.25) * field
            field = quarter + quarter
            field[after] += quarter[before]
            field[before] += quarter[after]
            field[first] += quarter[first]  # beyond an end it is as at the end
            field[last] += quarter[last]
    return field


def planes(image: NDArray[np.uint8]) -> Field:
    """Return an ``(H, W, 3)`` image as a picture."""
    return np.stack([np.asarray(band, np.float32) for band in Image.fromarray(image).split()])


def pixels(picture: Field) -> NDArray[np.uint8]:
    """Return a picture as an ``(H, W, 3)`` image, rounded and clipped to [0, 255]."""
    rounded = picture + np.float32(0.5)
    np.clip(rounded, 0, 255, out=rounded)
    return np.array(Image.merge("RGB", [Image.fromarray(plane.astype(np.uint8)) for plane in rounded]))
