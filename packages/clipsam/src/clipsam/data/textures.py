"""Surfaces: each function draws one as a field of tones, ``(n, n)`` in about [0, 1]; colour and light come later.

All of them are harmless as drawn: grain, knots, uneven tiles and loose threads belong to a flawless surface.
"""

from collections.abc import Callable

import numpy as np

from clipsam.data.drawing import (
    Field,
    cellular,
    coordinates,
    fold,
    fractal,
    line,
    lookup,
    noise,
    pick,
    rotated,
    step,
)

Texture = Callable[[np.random.Generator, int], Field]


def _turned(rng: np.random.Generator, n: int, tilt: float = np.pi) -> tuple[Field, Field]:
    """Return coordinates ``x, y`` about the centre, upright (half of the time) or turned by up to ``tilt``."""
    y, x = coordinates((n, n))
    quarter = rng.integers(4) * np.pi / 2
    return rotated(x - 0.5, y - 0.5, quarter + (rng.uniform(-tilt, tilt) if rng.random() < 0.5 else 0))


def _tiles(rng: np.random.Generator, x: Field, y: Field, rows: float, columns: float, shift: float) -> tuple:
    """Return the place within each tile (across and down, in ±0.5 tiles), and the tile's column and row number."""
    down = y * rows + rng.uniform()
    row = np.floor(down)
    across = x * columns + shift * row + rng.uniform()
    column = np.floor(across)
    return across - column - 0.5, down - row - 0.5, column, row


def _joints(across: Field, down: Field, wide: float, high: float, pixel_x: float, pixel_y: float) -> Field:
    """Return the cover of the joints around tiles, ``wide`` and ``high`` in units of a tile."""
    return np.maximum(line(0.5 - np.abs(across), wide, pixel_x), line(0.5 - np.abs(down), high, pixel_y))


def brushed_metal(rng: np.random.Generator, n: int) -> Field:
    """Fine parallel scores and a soft sheen."""
    lines = noise(rng, (n, n), (n, rng.uniform(2, 8))) + 0.6 * noise(rng, (n, n), (n / 3, 3))
    tone = 0.6 + rng.uniform(0.03, 0.14) * lines + 0.08 * noise(rng, (n, n), (5, 2))
    return tone.T if rng.random() < 0.5 else tone


def fabric(rng: np.random.Generator, n: int) -> Field:
    """A plain or twill weave of threads that vary in thickness."""
    x, y = _turned(rng, n, 0.4)
    threads, twill = rng.uniform(14, 46), rng.random() < 0.4
    across, down = x * threads + 0.12 * noise(rng, (n, n), 6), y * threads + 0.12 * noise(rng, (n, n), 6)
    column, row = np.floor(across), np.floor(down)
    over = (column + row) % 4 < 2 if twill else (column + row) % 2 < 1
    warp, weft = np.cos(np.pi * fold(across - 0.5)), np.cos(np.pi * fold(down - 0.5))
    threads_tone = lookup(rng, column, 0 * row, 0.05), lookup(rng, 0 * column, row, 0.05)
    dip = rng.uniform(0.05, 0.3)
    return 0.15 + 0.75 * np.where(over, warp + threads_tone[0], weft + threads_tone[1] - dip)


def wood(rng: np.random.Generator, n: int) -> Field:
    """Growth rings cut lengthwise, with fibres."""
    x, y = _turned(rng, n, 0.2)
    warp = 0.25 * noise(rng, (n, n), (2, 5)) + 0.04 * noise(rng, (n, n), (6, 12))
    rings = np.sin((y + rng.uniform(0.1, 0.5) * warp) * rng.uniform(20, 80) + 2 * x)
    fibres = (
        noise(rng, (n, n), (n / 2, 10)) if abs(float(x[0, -1] - x[0, 0])) > 0.5 else noise(rng, (n, n), (10, n / 2))
    )
    return 0.55 + rng.uniform(0.08, 0.22) * rings + 0.06 * fibres


def floorboards(rng: np.random.Generator, n: int) -> Field:
    """Planks side by side with dark joints, staggered ends and grain."""
    x, y = _turned(rng, n, 0.2)
    boards = rng.uniform(3, 8)
    down = y * boards + rng.uniform()
    row = np.floor(down)
    across = x * rng.uniform(1, 2.5) + lookup(rng, row, 0 * row, 7)
    grain = np.sin(40 * (y + 0.06 * noise(rng, (n, n), (3, 5))) + 9 * lookup(rng, row, np.floor(across), 1))
    joints = np.maximum(line(fold(down), 0.03, boards / n), line(fold(across), 0.006, 2 / n))
    tone = 0.6 + 0.07 * grain + lookup(rng, row, np.floor(across), 0.1) + 0.04 * noise(rng, (n, n), n / 3)
    return tone * (1 - rng.uniform(0.5, 0.9) * joints)


def marble(rng: np.random.Generator, n: int) -> Field:
    """Veins along the folds of warped noise."""
    folds = fractal(rng, (n, n), rng.uniform(1.5, 4), 4)
    veins = np.exp(-np.abs(folds) * rng.uniform(5, 14))
    cloud = 0.08 * fractal(rng, (n, n), 3, 3)
    return 0.75 + cloud - rng.uniform(0.25, 0.6) * veins * np.clip(0.6 + 0.5 * noise(rng, (n, n), 3), 0, 1)


def concrete(rng: np.random.Generator, n: int) -> Field:
    """Cloudy and fine-grained, sometimes with small pores or the joint of a formwork."""
    tone = 0.6 + 0.07 * fractal(rng, (n, n), rng.uniform(2, 5), 5, 0.65) + 0.04 * noise(rng, (n, n), n)
    if rng.random() < 0.5:
        tone = tone - 0.25 * step(noise(rng, (n, n), n / 6) - 2.1, 0.4)
    if rng.random() < 0.4:
        x, _ = _turned(rng, n, 0.05)
        tone = tone - 0.25 * line(x - rng.uniform(-0.4, 0.4), rng.uniform(0.003, 0.01), 1 / n)
    return tone


def leather(rng: np.random.Generator, n: int) -> Field:
    """Small rounded grains between creases."""
    _, gap, grain = cellular(rng, (n, n), rng.uniform(18, 44))
    creases = np.clip(gap * rng.uniform(1.5, 4), 0, 1)
    return 0.25 + 0.5 * creases + 0.08 * grain + 0.05 * fractal(rng, (n, n), 4, 3)


def ceramic_tiles(rng: np.random.Generator, n: int) -> Field:
    """Square or oblong tiles with grout, each a little different."""
    x, y = _turned(rng, n)
    rows, columns = rng.uniform(3, 9), rng.uniform(3, 9)
    across, down, column, row = _tiles(rng, x, y, rows, columns, 0)
    grout = rng.uniform(0.02, 0.06)
    joints = _joints(across, down, grout, grout * rows / columns, columns / n, rows / n)
    tile = 0.65 + lookup(rng, row, column, rng.uniform(0.01, 0.08)) + rng.uniform(0, 0.05) * fractal(rng, (n, n), 9, 3)
    return tile + pick(rng, -0.5, -0.3, 0.3) * joints


def brick_wall(rng: np.random.Generator, n: int) -> Field:
    """Staggered bricks in mortar."""
    x, y = _turned(rng, n, 0.2)
    rows = rng.uniform(5, 14)
    columns = rows * rng.uniform(0.3, 0.5)
    across, down, column, row = _tiles(rng, x, y, rows, columns, pick(rng, 0.5, 0.5, 0.33))
    rough = 0.06 * noise(rng, (n, n), 30)
    joint = rng.uniform(0.06, 0.12)
    mortar = _joints(across + rough * 0.3, down + rough, joint * columns / rows, joint, columns / n, rows / n)
    brick = 0.5 + lookup(rng, row, column, 0.09) + 0.07 * fractal(rng, (n, n), 20, 3)
    return brick + pick(rng, -0.3, 0.35) * mortar


def wire_mesh(rng: np.random.Generator, n: int) -> Field:
    """Round wires crossing over a dark or a light ground."""
    x, y = _turned(rng, n)
    x, y = x + 0.004 * noise(rng, (n, n), 4), y + 0.004 * noise(rng, (n, n), 4)
    wires, thick = rng.uniform(6, 20), rng.uniform(0.08, 0.2)
    across, down = fold(x * wires), fold(y * wires)
    vertical, horizontal = line(across, thick, wires / n), line(down, thick, wires / n)
    over = (np.rint(x * wires) + np.rint(y * wires)) % 2 < 1
    tones = 0.9 - 2.2 * np.abs(across), 0.9 - 2.2 * np.abs(down)
    first, second = np.where(over, vertical, horizontal), np.where(over, horizontal, vertical)
    top, below = np.where(over, *tones), np.where(over, *tones[::-1])
    ground = pick(rng, 0.12, 0.25, 1.0) + 0.03 * noise(rng, (n, n), 5)
    return first * top + (1 - first) * (second * below * 0.8 + (1 - second) * ground)


def carpet(rng: np.random.Generator, n: int) -> Field:
    """Deep, coarse tufts, sometimes in ribs."""
    x, y = _turned(rng, n, 0.2)
    tufts = 0.16 * noise(rng, (n, n), n / rng.uniform(1.5, 4)) + 0.08 * noise(rng, (n, n), n / 8)
    ribs = pick(rng, 0, 0.12, 0.2) * np.sin((y + 0.01 * noise(rng, (n, n), 8)) * 2 * np.pi * rng.uniform(12, 30) + x)
    return 0.5 + tufts + ribs + 0.05 * noise(rng, (n, n), 5)


def ruled_paper(rng: np.random.Generator, n: int) -> Field:
    """Fibrous paper with printed rules or a grid."""
    x, y = _turned(rng, n, 0.15)
    lines, half_width = rng.uniform(5, 20), rng.uniform(0.002, 0.006)
    print_ = line(fold(y, 1 / lines), half_width, 1 / n)
    if rng.random() < 0.6:
        print_ = np.maximum(print_, line(fold(x, 1 / lines), half_width, 1 / n))
    fibres = 0.02 * noise(rng, (n, n), n / 2) + 0.03 * fractal(rng, (n, n), 5, 3)
    return 0.85 + fibres - rng.uniform(0.2, 0.6) * print_


def striped_print(rng: np.random.Generator, n: int) -> Field:
    """Stripes, checks, zigzags or dots printed in two tones."""
    x, y = _turned(rng, n)
    periods = rng.uniform(4, 16)
    across, down, pixel = fold(x * periods), fold(y * periods), periods / n
    patterns = (
        line(across, rng.uniform(0.12, 0.35), pixel),
        np.abs(line(across, 0.25, pixel) - line(down, 0.25, pixel)),
        line(fold(x * periods + np.abs(fold(y * periods, 2.0))), 0.25, pixel),
        step(rng.uniform(0.2, 0.4) - np.hypot(across, down), pixel),
        step(rng.uniform(0.3, 0.48) - np.abs(across) - np.abs(down), pixel),
    )
    tone = patterns[rng.integers(len(patterns))]
    tone = tone if rng.random() < 0.5 else 1 - tone
    return 0.2 + rng.uniform(0.3, 0.7) * tone + 0.03 * fractal(rng, (n, n), 8, 4)


def corrugated_sheet(rng: np.random.Generator, n: int) -> Field:
    """Waves of sheet metal, shaded from one side, with the seams where sheets overlap."""
    x, y = _turned(rng, n, 0.2)
    waves = rng.uniform(5, 22)
    profile = np.sin(2 * np.pi * (x * waves + 0.05 * noise(rng, (n, n), 3)))
    sharp = np.tanh(profile * rng.uniform(0.7, 4))
    seams = line(fold(y + rng.uniform(), rng.uniform(0.4, 0.9)), 0.004, 1 / n)
    return 0.5 + rng.uniform(0.12, 0.3) * sharp - 0.3 * seams + 0.03 * fractal(rng, (n, n), 6, 4)


def foam(rng: np.random.Generator, n: int) -> Field:
    """Open pores of many sizes."""
    distance, gap, grain = cellular(rng, (n, n), rng.uniform(10, 36))
    pores = np.clip(1.2 - distance / (0.25 + 0.6 * grain), 0, 1) * np.clip(gap * 4, 0, 1)
    return 0.75 - rng.uniform(0.3, 0.6) * pores + 0.05 * fractal(rng, (n, n), 10, 3)


def galvanized_steel(rng: np.random.Generator, n: int) -> Field:
    """Zinc spangle: flat crystals of different brightness."""
    distance, gap, grain = cellular(rng, (n, n), rng.uniform(5, 18))
    feathers = 0.05 * np.sin(distance * 30 + 20 * grain) * rng.random()
    return (
        0.45
        + rng.uniform(0.15, 0.4) * (grain - 0.3)
        + feathers
        + 0.05 * np.clip(gap * 6, 0, 1)
        + 0.03 * noise(rng, (n, n), n)
    )


def perforated_sheet(rng: np.random.Generator, n: int) -> Field:
    """Round or slotted holes in rows, straight or staggered, with a lit rim."""
    x, y = _turned(rng, n)
    rows = rng.uniform(6, 18)
    columns = rows * pick(rng, 1, 1, 0.5)
    across, down, _, _ = _tiles(rng, x, y, rows, columns, pick(rng, 0, 0.5))
    length = 0.35 * (rows / columns - 1)  # of the straight part of a slot
    distance = np.hypot(np.maximum(np.abs(across) * (rows / columns) - length, 0), down)
    radius = rng.uniform(0.2, 0.38)
    rim = line(distance - radius - 0.04, 0.05, rows / n) * np.sign(down) * rng.uniform(0, 0.15)
    sheet = 0.65 + 0.04 * fractal(rng, (n, n), 4, 4) + rim
    return sheet + (pick(rng, 0.08, 0.2, 1.0) - sheet) * step(radius - distance, rows / n)


def knitwear(rng: np.random.Generator, n: int) -> Field:
    """Columns of V-shaped stitches."""
    x, y = _turned(rng, n, 0.2)
    columns = rng.uniform(10, 26)
    across = fold(x * columns + 0.05 * noise(rng, (n, n), 6))
    stitches = y * columns * rng.uniform(0.8, 1.4) + np.abs(across) * rng.uniform(1, 1.8)
    tone = 0.5 + 0.3 * np.sin(2 * np.pi * stitches) - 0.4 * line(np.abs(across) - 0.5, 0.12, 0.3)
    return tone - 0.15 * line(across, 0.06, 0.2) + 0.06 * noise(rng, (n, n), n / 2)


def louvre(rng: np.random.Generator, n: int) -> Field:
    """Parallel slats, each shaded from edge to edge, held by cords."""
    x, y = _turned(rng, n, 0.1)
    slats = rng.uniform(6, 20)
    down = y * slats + 0.04 * noise(rng, (n, n), (4, 2))
    slat = 0.45 + rng.uniform(0.15, 0.6) * fold(down) + lookup(rng, 0 * down, np.rint(down), 0.03)
    gaps = line(np.abs(fold(down)) - 0.5, rng.uniform(0.03, 0.1), slats / n)
    cords = line(fold(x + rng.uniform(), rng.uniform(0.3, 0.6)), 0.005, 1 / n)
    return slat * (1 - 0.8 * gaps) - pick(rng, 0, 0.25) * cords + 0.02 * noise(rng, (n, n), n / 2)


def terrazzo(rng: np.random.Generator, n: int) -> Field:
    """Chips of stone in a plain ground."""
    distance, gap, grain = cellular(rng, (n, n), rng.uniform(8, 40))
    chips = step(np.minimum(gap, 0.7 - distance) - rng.uniform(0.1, 0.25), 0.1) * step(grain - 0.3, 0.05)
    return 0.6 + (grain - 0.5) * rng.uniform(0.3, 0.9) * chips + 0.03 * fractal(rng, (n, n), 10, 4)


def tread_plate(rng: np.random.Generator, n: int) -> Field:
    """Raised lozenges, alternately left and right, on a metal plate."""
    x, y = _turned(rng, n)
    rows = rng.uniform(7, 16)
    across, down, column, row = _tiles(rng, x, y, rows, rows, 0)
    right = (column + row) % 2 < 1
    along, aside = np.where(right, across + down, across - down), np.where(right, across - down, across + down)
    raised = step(1 - np.abs(along) / 0.8 - np.abs(aside) / rng.uniform(0.2, 0.32), 6 * rows / n)
    return 0.5 + 0.25 * raised * np.tanh(aside * 12) + 0.1 * raised + 0.05 * fractal(rng, (n, n), 4, 5)


def basket_weave(rng: np.random.Generator, n: int) -> Field:
    """Flat strips passing over and under each other."""
    x, y = _turned(rng, n)
    strips = rng.uniform(6, 16)
    across, down = x * strips, y * strips
    over = (np.floor(across) + np.floor(down)) % 2 < 1
    width, length = (
        np.where(over, fold(across - 0.5), fold(down - 0.5)),
        np.where(over, fold(down - 0.5), fold(across - 0.5)),
    )
    strip = np.clip(1.15 - np.abs(2 * width) ** 6, 0, 1) * (1 - 1.2 * length**2)
    strands = 0.05 * np.sin(width * 2 * np.pi * rng.integers(2, 6))
    return 0.15 + 0.6 * strip + strands + lookup(rng, np.floor(across), np.floor(down), 0.05)


def asphalt(rng: np.random.Generator, n: int) -> Field:
    """Coarse grit."""
    tone = 0.4 + rng.uniform(0.08, 0.2) * noise(rng, (n, n), n / rng.uniform(1, 3))
    return tone + 0.05 * noise(rng, (n, n), n / 6) + 0.03 * fractal(rng, (n, n), 3, 3)


def cardboard(rng: np.random.Generator, n: int) -> Field:
    """Flat board with faint flutes, fibres and a fold."""
    x, y = _turned(rng, n, 0.1)
    flutes = rng.uniform(0.01, 0.05) * np.sin(2 * np.pi * x * rng.uniform(18, 50))
    crease = line(y - rng.uniform(-0.4, 0.4), 0.006, 2 / n) * pick(rng, 0, 0.1, 0.2)
    return 0.7 + flutes - crease + 0.04 * noise(rng, (n, n), n / 2) + 0.04 * fractal(rng, (n, n), 4, 3)


TEXTURES: dict[str, Texture] = {
    texture.__name__: texture
    for texture in (
        brushed_metal,
        fabric,
        wood,
        floorboards,
        marble,
        concrete,
        leather,
        ceramic_tiles,
        brick_wall,
        wire_mesh,
        carpet,
        ruled_paper,
        striped_print,
        corrugated_sheet,
        foam,
        galvanized_steel,
        perforated_sheet,
        knitwear,
        louvre,
        terrazzo,
        tread_plate,
        basket_weave,
        asphalt,
        cardboard,
    )
}
