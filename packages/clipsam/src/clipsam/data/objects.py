"""Things: each function draws one in coordinates where it fills about the unit disc.

``draw(rng, u, v, pixel)`` gets the coordinates right and down of every pixel (both ``(n, n)``) and a pixel's size in
their unit; it returns the tone in about [0, 1] and the cover in [0, 1] (0 where the background shows).
"""

from collections.abc import Callable

import numpy as np

from clipsam.data.drawing import Field, fold, line, lookup, pick, step

Thing = Callable[[np.random.Generator, Field, Field, float], tuple[Field, Field]]


def _hexagon(u: Field, v: Field) -> Field:
    """Return the distance from the centre, measured so that a regular hexagon is its unit circle."""
    diagonal = np.float32(np.sqrt(3) / 2)
    return np.maximum(np.abs(v), np.maximum(np.abs(diagonal * u + 0.5 * v), np.abs(diagonal * u - 0.5 * v)))


def _box(u: Field, v: Field, half_width: float, half_height: float, corner: float = 0.0) -> Field:
    """Return the distance inside a rectangle with rounded corners, negative outside."""
    beyond_u, beyond_v = np.abs(u) - (half_width - corner), np.abs(v) - (half_height - corner)
    outside = np.hypot(np.maximum(beyond_u, 0), np.maximum(beyond_v, 0))
    return corner - outside - np.minimum(np.maximum(beyond_u, beyond_v), 0)


def _dome(rng: np.random.Generator, inside: Field, u: Field, v: Field, width: float) -> Field:
    """Return the light on an edge rounded over ``width``: bright towards a lamp at a random side, dark away from it."""
    lamp = rng.uniform(0, 2 * np.pi)
    facing = np.float32(np.cos(lamp)) * u + np.float32(np.sin(lamp)) * v
    slope = np.clip(1 - inside / np.float32(width), 0, 1)
    return np.float32(rng.uniform(0.15, 0.4)) * slope * np.clip(facing * 1.5, -1, 1)


def bolt(rng: np.random.Generator, u: Field, v: Field, pixel: float) -> tuple[Field, Field]:
    """A hexagonal head with a round chamfer."""
    radius, hexagon = np.hypot(u, v), _hexagon(u, v)
    ring = line(radius - rng.uniform(0.75, 0.83), 0.02, pixel)
    tone = 0.6 + _dome(rng, 0.95 - hexagon, u, v, 0.3) - 0.15 * ring
    return tone, step(0.88 - hexagon, pixel)


def screw(rng: np.random.Generator, u: Field, v: Field, pixel: float) -> tuple[Field, Field]:
    """A round head with a slot, a cross or a hexagonal socket."""
    radius = np.hypot(u, v)
    slot = rng.uniform(0.07, 0.13)
    recess = (
        step(_box(u, v, 0.75, slot), pixel),
        step(np.maximum(_box(u, v, 0.6, slot), _box(u, v, slot, 0.6)), pixel),
        step(rng.uniform(0.3, 0.45) - _hexagon(u, v), pixel),
    )[rng.integers(3)]
    tone = 0.62 + _dome(rng, 0.95 - radius, u, v, rng.uniform(0.2, 0.9))
    return tone * (1 - rng.uniform(0.5, 0.8) * recess), step(0.95 - radius, pixel)


def washer(rng: np.random.Generator, u: Field, v: Field, pixel: float) -> tuple[Field, Field]:
    """A flat ring."""
    radius, hole = np.hypot(u, v), rng.uniform(0.35, 0.65)
    inside = np.minimum(0.95 - radius, radius - hole)
    turned = 0.03 * np.sin(radius * rng.uniform(30, 90))
    return 0.6 + turned + _dome(rng, inside, u, v, 0.1), step(inside, pixel)


def nut(rng: np.random.Generator, u: Field, v: Field, pixel: float) -> tuple[Field, Field]:
    """A hexagon with a threaded hole."""
    radius, hexagon, hole = np.hypot(u, v), _hexagon(u, v), rng.uniform(0.4, 0.55)
    thread = line(radius - hole - 0.05, 0.04, pixel) * 0.25
    tone = 0.6 + _dome(rng, np.minimum(0.9 - hexagon, radius - hole), u, v, 0.25) - thread
    return tone, step(np.minimum(0.86 - hexagon, radius - hole), pixel)


def pill(rng: np.random.Generator, u: Field, v: Field, pixel: float) -> tuple[Field, Field]:
    """A round or oblong tablet with a bevel and a score."""
    length = pick(rng, 1.0, 0.95, 0.55)
    inside = _box(u, v, 0.95, 0.95 * length, 0.95 * length)
    score = line(u, 0.02, pixel) * step(inside - 0.15, 0.1) * pick(rng, 0, 0.2)
    return 0.8 + 0.7 * _dome(rng, inside, u, v, 0.25) - score, step(inside, pixel)


def capsule(rng: np.random.Generator, u: Field, v: Field, pixel: float) -> tuple[Field, Field]:
    """A rounded stick in two tones, with a highlight."""
    width = rng.uniform(0.3, 0.42)
    inside = _box(u, v, 0.95, width, width)
    halves = rng.uniform(0.3, 0.5) * step(u - rng.uniform(-0.15, 0.15), pixel)
    gloss = 0.25 * np.exp(-(((v + 0.4 * width) / (0.25 * width)) ** 2)) * step(inside - 0.3 * width, 0.2)
    return 0.85 - halves + gloss - 0.5 * (v / width) ** 2 * 0.4, step(inside, pixel)


def bottle_cap(rng: np.random.Generator, u: Field, v: Field, pixel: float) -> tuple[Field, Field]:
    """A crown cork seen from above: a crimped rim about a flat top."""
    radius, angle = np.hypot(u, v), np.arctan2(v, u)
    crimps = np.cos(angle * 21)
    inside = 0.92 + 0.04 * crimps - radius
    rim = step(radius - 0.74, pixel)
    tone = 0.7 + _dome(rng, np.abs(0.74 - radius), u, v, 0.12) + rim * (0.18 * crimps - 0.08)
    emblem = line(radius - rng.uniform(0.3, 0.55), rng.uniform(0.02, 0.1), pixel) * pick(rng, 0, 0.3)
    return tone - emblem, step(inside, pixel)


def gear(rng: np.random.Generator, u: Field, v: Field, pixel: float) -> tuple[Field, Field]:
    """A toothed wheel with a bore, sometimes with openings."""
    radius, angle = np.hypot(u, v), np.arctan2(v, u)
    teeth = np.tanh(3 * np.cos(angle * rng.integers(9, 26)))
    bore = rng.uniform(0.12, 0.3)
    inside = np.minimum(0.85 + 0.09 * teeth - radius, radius - bore)
    if rng.random() < 0.5:
        holes = int(rng.integers(3, 7))
        turn = fold(angle, 2 * np.pi / holes)
        inside = np.minimum(inside, np.hypot(radius * np.cos(turn) - 0.52, radius * np.sin(turn)) - 0.12)
    return 0.6 + _dome(rng, inside, u, v, 0.08) - 0.1 * line(radius - 0.7, 0.02, pixel), step(inside, pixel)


def button(rng: np.random.Generator, u: Field, v: Field, pixel: float) -> tuple[Field, Field]:
    """A disc with a rim and two or four holes."""
    radius = np.hypot(u, v)
    apart = rng.uniform(0.15, 0.24)
    across = np.abs(u) - apart
    down = np.abs(v) - apart if rng.random() < 0.6 else v
    inside = np.minimum(0.95 - radius, np.hypot(across, down) - rng.uniform(0.07, 0.11))
    rim = _dome(rng, np.abs(radius - rng.uniform(0.65, 0.8)), u, v, 0.12)
    return 0.65 + rim + 0.04 * np.sin(6 * u + 3 * np.sin(4 * v)), step(inside, pixel)


def cable(rng: np.random.Generator, u: Field, v: Field, pixel: float) -> tuple[Field, Field]:
    """Parallel insulated wires, or one thick braid, running across the picture."""
    wires = int(rng.integers(1, 6))
    half = rng.uniform(0.35, 0.75)
    bent = v + rng.uniform(-0.15, 0.15) * np.sin(u * rng.uniform(1, 3) + rng.uniform(0, 6))
    lane = bent * wires / (2 * half) + 0.5 * (wires % 2 - 1)
    height = np.sqrt(np.clip(1 - (2 * fold(lane)) ** 2, 0, 1))
    braid = pick(rng, 0, 0.12) * np.sin(40 * u + 25 * bent) * np.sin(40 * u - 25 * bent)
    return 0.2 + 0.6 * height + braid + lookup(rng, np.rint(lane), 0 * lane, 0.1), step(half - np.abs(bent), pixel)


def circuit_board(rng: np.random.Generator, u: Field, v: Field, pixel: float) -> tuple[Field, Field]:
    """Parallel and turning tracks with round pads."""
    pitch = rng.uniform(0.12, 0.22)
    kink = np.clip(u * pick(rng, -1, 1) + rng.uniform(-0.4, 0.4), -0.3, 0.3)
    lane = (v + kink) / pitch
    row, column = np.rint(lane), np.floor(u / (4 * pitch) + 0.37 * np.rint(lane))
    tracks = line(fold(lane), 0.17, pixel / pitch) * (lookup(rng, row, column, 1) > -0.6)
    spot = np.hypot(fold(u / pitch + 0.5 * row, 4.0), fold(lane))
    pads = (lookup(rng, row, column, 1) > 0) * step(0.4 - spot, pixel / pitch) * (1 - step(0.17 - spot, pixel / pitch))
    board = 0.35 + lookup(rng, np.floor(u * 50), np.floor(v * 50), 0.015)
    return np.maximum(board, np.maximum(tracks * 0.6, pads * 0.95)), np.ones_like(board)


def coin(rng: np.random.Generator, u: Field, v: Field, pixel: float) -> tuple[Field, Field]:
    """A disc with a raised rim, a beaded border and a relief of lobes."""
    radius, angle = np.hypot(u, v), np.arctan2(v, u)
    beads = 0.15 * np.cos(angle * 60) * line(radius - 0.82, 0.035, pixel)
    lobes = 0.45 + 0.12 * np.cos(angle * rng.integers(1, 7) + rng.uniform(0, 6)) + 0.06 * np.cos(angle * 5)
    relief = _dome(rng, np.abs(radius - lobes), u, v, 0.07) + _dome(rng, np.abs(radius - lobes * 0.5), u, v, 0.05)
    rim = _dome(rng, np.abs(radius - 0.89), u, v, 0.05)
    return 0.6 + beads + relief + rim, step(0.95 - radius, pixel)


def zipper(rng: np.random.Generator, u: Field, v: Field, pixel: float) -> tuple[Field, Field]:
    """Two rows of interlocking teeth between strips of tape."""
    pitch, reach = rng.uniform(0.09, 0.16), rng.uniform(0.14, 0.24)
    side = np.sign(v)
    along = fold(u / pitch + 0.25 * side)
    teeth = line(along, 0.33, pixel / pitch) * step(reach - np.abs(np.abs(v) - 0.4 * reach), pixel)
    weave = 0.05 * np.sin(u * 60) * np.sin(v * 60)
    tape = 0.3 + weave + 0.08 * line(np.abs(v) - 0.55, 0.015, pixel)
    return tape + (0.85 - 0.5 * np.abs(along) - tape) * teeth, step(0.8 - np.abs(v), pixel)


def bearing(rng: np.random.Generator, u: Field, v: Field, pixel: float) -> tuple[Field, Field]:
    """Two races with balls between them."""
    radius, angle = np.hypot(u, v), np.arctan2(v, u)
    balls, bore = int(rng.integers(7, 14)), rng.uniform(0.25, 0.36)
    middle, gap = (bore + 0.95) / 2, 0.13
    turn = fold(angle, 2 * np.pi / balls)
    spot = np.hypot(radius * np.cos(turn) - middle, radius * np.sin(turn)) / gap
    race = 0.65 + _dome(rng, np.minimum(0.95 - radius, radius - bore), u, v, 0.08)
    groove = step(gap - np.abs(radius - middle), pixel)
    ball = step(0.95 - spot, pixel / gap) * (0.95 - 0.5 * spot**2)
    return race * (1 - groove) + groove * np.maximum(0.15, ball), step(np.minimum(0.95 - radius, radius - bore), pixel)


def chip(rng: np.random.Generator, u: Field, v: Field, pixel: float) -> tuple[Field, Field]:
    """An integrated circuit: a dark package with pins on two sides and a mark at pin 1."""
    half, pitch = rng.uniform(0.4, 0.7), rng.uniform(0.14, 0.24)
    package = _box(u, v, 0.9, half, 0.03)
    pins = line(fold(u / pitch), 0.22, pixel / pitch) * step(_box(u, v, 0.82, half + 0.18), pixel)
    mark = step(0.08 - np.hypot(u + 0.72, v - half + 0.18), pixel) * 0.2
    print_ = line(fold(v, 0.22), 0.03, pixel) * (lookup(rng, np.rint(v / 0.22), np.floor(u * 14), 1) > 0)
    body = 0.3 + mark + 0.35 * print_ * step(_box(u, v, 0.6, half * 0.5), pixel) + _dome(rng, package, u, v, 0.06)
    covered = step(package, pixel)
    return body * covered + 0.85 * (1 - covered), np.maximum(covered, pins)


def spring(rng: np.random.Generator, u: Field, v: Field, pixel: float) -> tuple[Field, Field]:
    """A coil seen from the side."""
    coils, half = rng.uniform(2.5, 6), rng.uniform(0.35, 0.6)
    slant = v / half * 0.25
    front, back = fold(u * coils + slant), fold(u * coils - slant + 0.5)
    wire = 0.2 + 0.05 * rng.random()
    ends = step(_box(u, v, 0.95, half, 0.05), pixel)
    near, far = line(front, wire, pixel * coils), line(back, wire, pixel * coils)
    light, dark = 0.85 - 8 * front**2, 0.45 - 4 * back**2
    return near * light + (1 - near) * dark, ends * np.maximum(near, far)


def battery(rng: np.random.Generator, u: Field, v: Field, pixel: float) -> tuple[Field, Field]:
    """A cylinder lying down, in a two-tone sleeve, with its terminal."""
    half = rng.uniform(0.25, 0.36)
    body, terminal = _box(u + 0.05, v, 0.88, half, 0.05), _box(u - 0.85, v, 0.08, half * 0.4, 0.02)
    round_ = 0.5 + 0.4 * np.cos(v / half * 1.4 + rng.uniform(-0.5, 0.5))
    sleeve = 1 - rng.uniform(0.2, 0.6) * step(u - rng.uniform(0.1, 0.5), pixel)
    stripe = 1 - 0.3 * line(u + rng.uniform(0, 0.5), rng.uniform(0.02, 0.1), pixel)
    return round_ * sleeve * stripe, np.maximum(step(body, pixel), step(terminal, pixel))


def connector(rng: np.random.Generator, u: Field, v: Field, pixel: float) -> tuple[Field, Field]:
    """A housing with rows of contacts."""
    pitch, rows = rng.uniform(0.18, 0.28), int(rng.integers(1, 4))
    half = (rows + 0.6) * pitch / 2
    housing = _box(u, v, 0.93, half + 0.08, 0.06)
    across, down = fold(u + pitch / 2, pitch), fold(v + pitch * (rows % 2 - 1) / 2, pitch)
    within = step(_box(u, v, 0.85, half - 0.1 * pitch), pixel)
    contacts = step(_box(across, down, 0.28 * pitch, 0.28 * pitch), pixel) * within
    body = 0.4 + _dome(rng, housing, u, v, 0.08) - 0.12 * step(_box(u, v, 0.85, half), pixel)
    return body + (0.9 - 2 * np.abs(across) - body) * contacts, step(housing, pixel)


THINGS: dict[str, Thing] = {
    thing.__name__: thing
    for thing in (
        bolt,
        screw,
        washer,
        nut,
        pill,
        capsule,
        bottle_cap,
        gear,
        button,
        cable,
        circuit_board,
        coin,
        zipper,
        bearing,
        chip,
        spring,
        battery,
        connector,
    )
}
