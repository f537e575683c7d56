"""Inspection images drawn by a program: categories of surfaces and objects, normal or with one defect and its mask.

In unlimited number and of no one's licence. What changes from image to image of one category: colour, scale, pose,
contrast, light, grain, focus, sensor noise; a quarter is grey, half of these with little contrast. Normal images have
harmless irregularities (blotches, shading, uneven tiles), so that "normal" is not "perfectly even".
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from clipsam.data.captions import caption
from clipsam.data.defects import PAINTERS, paint
from clipsam.data.drawing import Field, coordinates, fractal, noise, pick, pixels, planes, rotated, soften
from clipsam.data.objects import THINGS
from clipsam.data.textures import TEXTURES
from clipsam.samples import GOOD, Entry, Sample

CATEGORIES: tuple[str, ...] = (*TEXTURES, *THINGS)
TRAIN_CATEGORIES: tuple[str, ...] = CATEGORIES[::2]
HELD_OUT_CATEGORIES: tuple[str, ...] = CATEGORIES[1::2]
"""The other half: nothing that is trained here may see them. Both halves hold surfaces and objects."""
DEFECTS: tuple[str, ...] = tuple(PAINTERS)

COLOURS: dict[str, tuple[int, int, int]] = {
    "white": (238, 236, 230),
    "grey": (150, 150, 150),
    "silver": (190, 194, 200),
    "black": (62, 62, 64),
    "brown": (136, 88, 54),
    "beige": (212, 190, 152),
    "red": (196, 48, 42),
    "orange": (224, 122, 36),
    "yellow": (226, 196, 62),
    "gold": (206, 164, 76),
    "copper": (190, 112, 76),
    "green": (70, 142, 72),
    "olive": (122, 122, 62),
    "turquoise": (62, 164, 160),
    "blue": (56, 98, 176),
    "purple": (122, 76, 150),
    "pink": (226, 142, 164),
}
METALS = ("grey", "silver", "silver", "gold", "copper", "black")
STONES = ("grey", "white", "beige", "brown", "black", "red", "green")
WOODS = ("brown", "brown", "beige", "orange", "grey", "white")
PALETTE: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("brushed_metal", "galvanized_steel", "tread_plate", "bolt", "screw", "washer", "nut"), METALS),
    **dict.fromkeys(("gear", "coin", "bearing", "spring", "wire_mesh"), METALS),
    **dict.fromkeys(("marble", "concrete", "terrazzo", "asphalt", "brick_wall"), STONES),
    **dict.fromkeys(("wood", "floorboards", "cardboard", "basket_weave"), WOODS),
}
"""Colours of the categories that do not come in any colour."""
GREY_SHARE = 0.25


@dataclass(frozen=True, eq=False)
class Procedural:
    """``count`` drawn inspection images; image ``i`` is a function of ``seed``, ``i`` and the settings alone.

    Categories take turns, so that any run of consecutive images is balanced; kinds of defect are drawn at random.

    Args:
        count: how many images.
        categories: names out of :data:`CATEGORIES`.
        size: side in pixels, 32 or more.
        seed: data sets of different seeds share no image.
        defect_share: the probability that an image has a defect.
        defects: kinds out of :data:`DEFECTS`.

    Raises:
        ValueError: an unknown category or kind, or a number out of range.
    """

    count: int
    categories: tuple[str, ...] = CATEGORIES
    size: int = 256
    seed: int = 0
    defect_share: float = 0.5
    defects: tuple[str, ...] = DEFECTS
    name: str = "procedural"

    def __post_init__(self) -> None:
        """Check every setting."""
        _check_names("categories", self.categories, CATEGORIES)
        _check_names("defects", self.defects, DEFECTS)
        for field, low in (("count", 0), ("size", 32), ("seed", 0)):
            if getattr(self, field) < low:
                raise ValueError(f"{field}={getattr(self, field)!r} is out of range; allowed: {low} or more")
        if not 0 <= self.defect_share <= 1:
            raise ValueError(f"defect_share={self.defect_share!r} is out of range; allowed: 0 to 1")

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        if not -self.count <= index < self.count:
            raise IndexError(f"index={index} is out of range; allowed: 0 to {self.count - 1}")
        index %= self.count
        entry = self._entry(index)
        return draw(entry.category, entry.defect, np.random.default_rng([self.seed, index, 1]), self.size, entry.source)

    @property
    def entries(self) -> Sequence[Entry]:
        """Category, defect and source of every image; nothing is drawn for it."""
        return self._entries

    @cached_property  # beside the property, because a protocol's property accepts no other kind
    def _entries(self) -> Sequence[Entry]:
        return tuple(self._entry(index) for index in range(self.count))

    def _entry(self, index: int) -> Entry:
        rng = np.random.default_rng([self.seed, index, 0])
        category = self.categories[index % len(self.categories)]
        defect = self.defects[rng.integers(len(self.defects))] if rng.random() < self.defect_share else GOOD
        return Entry(category, defect, f"procedural/{category}/{self.seed}-{index}")


def draw(category: str, defect: str, rng: np.random.Generator, size: int = 256, source: str = "") -> Sample:
    """Draw one image.

    Args:
        category: one of :data:`CATEGORIES`.
        defect: one of :data:`DEFECTS`, or ``"good"``.
        rng: the source of every choice.
        size: side in pixels.
        source: what the sample calls itself.
    """
    scene, on_object, colour = _scene(category, rng, size)
    mask = np.zeros((size, size), bool)
    if defect != GOOD:
        scene, mask = paint(scene, defect, rng, on_object)
    return Sample(_camera(scene, rng), mask, category, defect, caption(category, defect, colour, rng), source)


def _scene(category: str, rng: np.random.Generator, n: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_], str]:
    """Return a flawless picture, where the object is, and the name of its colour."""
    palette = PALETTE.get(category, tuple(COLOURS))
    colour = palette[rng.integers(len(palette))]
    if category in TEXTURES:
        image, on_object = _coloured(TEXTURES[category](rng, n), colour, rng), np.ones((n, n), bool)
    else:
        image, on_object = _on_ground(category, colour, rng, n)
    image = image * _light(rng, n)
    if rng.random() < GREY_SHARE:
        image, colour = _grey(image, rng), "grey"
    return pixels(image), on_object, colour


def _coloured(tone: Field, colour: str, rng: np.random.Generator) -> Field:
    """Return tones as shades of a colour: 0 is a dark one, 1 a light one."""
    light = np.array(COLOURS[colour]) * rng.uniform(1, 1.4) * rng.uniform(0.92, 1.08, 3)
    shadow = rng.uniform(0, 0.35)
    return (shadow + (1 - shadow) * tone) * light.astype(np.float32)[:, None, None]


def _on_ground(category: str, colour: str, rng: np.random.Generator, n: int) -> tuple[Field, NDArray[np.bool_]]:
    """Return an object in a random pose on a plain ground with its shadow, and where it is."""
    radius = rng.uniform(0.25, 0.47)
    y, x = coordinates((n, n))
    x0, y0 = 0.5 + rng.uniform(-0.5, 0.5, 2) * (0.5 - radius)
    u, v = rotated((x - x0) / radius, (y - y0) / radius, rng.uniform(0, 2 * np.pi))
    tone, cover = THINGS[category](rng, u.astype(np.float32), v.astype(np.float32), 1 / (radius * n))
    tone = tone + 0.02 * fractal(rng, (n, n), 6, 4)
    ground = _coloured(_ground(rng, n), list(COLOURS)[rng.integers(len(COLOURS))], rng)
    if rng.random() < 0.5:  # under the same lamp, most of these grounds are neutral
        ground = ground.mean(axis=0)
    drop = tuple(rng.integers(-n // 40, n // 40 + 1, 2))
    ground = ground * (1 - rng.uniform(0, 0.5) * soften(np.roll(cover, drop, (0, 1)), 3))
    return ground + (_coloured(tone, colour, rng) - ground) * cover, cover > 0.02


def _ground(rng: np.random.Generator, n: int) -> Field:
    """Return what objects lie on: even, cloudy or grained; black, mid or white."""
    level = pick(rng, 0.05, 0.3, 0.6, 0.95)
    return level + rng.uniform(0.005, 0.03) * fractal(rng, (n, n), 4, 3) + pick(rng, 0, 0.02) * noise(rng, (n, n), n)


def _light(rng: np.random.Generator, n: int) -> Field:
    """Return the light on the scene: a slope, a vignette and blotches, of mean about 1."""
    y, x = coordinates((n, n))
    slope, _ = rotated(x - 0.5, y - 0.5, rng.uniform(0, 2 * np.pi))
    vignette = pick(rng, 0, 0, 0.6, 1.2) * ((x - 0.5) ** 2 + (y - 0.5) ** 2)
    return 1 + rng.uniform(0, 0.4) * slope - vignette + rng.uniform(0, 0.05) * noise(rng, (n, n), rng.uniform(2, 7))


def _grey(image: Field, rng: np.random.Generator) -> Field:
    """Return the picture in grey; half of the time with little contrast about another brightness."""
    grey = np.tensordot(np.array([0.299, 0.587, 0.114], np.float32), image, 1)
    if rng.random() < 0.5:
        grey = rng.uniform(70, 190) + (grey - float(grey.mean())) * rng.uniform(0.25, 0.7)
    return np.broadcast_to(grey, image.shape)


def _camera(scene: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return the scene as a camera takes it: a little out of focus, with noise and its own exposure."""
    picture = soften(planes(scene), int(rng.integers(0, 3)))
    picture *= rng.uniform(0.85, 1.1)
    picture += rng.uniform(0, 6) * rng.standard_normal(scene.shape[:2], np.float32)
    return pixels(picture)


def _check_names(field: str, names: tuple[str, ...], allowed: tuple[str, ...]) -> None:
    unknown = [name for name in names if name not in allowed]
    if unknown or not names:
        raise ValueError(f"{field}={unknown or names!r} is unknown; allowed: {', '.join(allowed)}")
