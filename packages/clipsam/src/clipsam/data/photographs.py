"""Defects painted onto crops of real photographs that scikit-image ships.

Only photographs that anyone may use for anything, as scikit-image 0.26 states of each in ``skimage.data``:

| photograph | what it shows | terms |
|---|---|---|
| brick | a brick wall | CC0, CC0Textures |
| grass | a lawn | CC0, CC0Textures |
| gravel | gravel | CC0, CC0Textures |
| camera | a man with a camera | CC0 by the photographer, Lav Varshney |
| chelsea | a cat | CC0 by the photographer, Stefan van der Walt |
| coffee | a cup on a wooden table | CC0 by the photographer, Rachel Michetti |
| cell | a cell under a microscope | CC0 |
| clock | a wall clock, blurred by motion | public domain, Stefan van der Walt |
| astronaut | a portrait in front of a flag | public domain, NASA |
| coins | Greek coins | no known copyright restrictions, Brooklyn Museum |

The photographs of which it does not state terms (moon, page) are left out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipsam.data.captions import caption
from clipsam.data.defects import PAINTERS, paint
from clipsam.samples import GOOD, Entry, Sample

PHOTOGRAPHS: Mapping[str, str] = MappingProxyType(
    {
        "brick": "brick wall",
        "grass": "grass",
        "gravel": "gravel",
        "camera": "photograph",
        "chelsea": "cat",
        "coffee": "coffee cup",
        "cell": "specimen under a microscope",
        "clock": "clock",
        "astronaut": "portrait",
        "coins": "coins",
    }
)
"""Name in ``skimage.data`` -> what captions call it."""
GREY_SHARE = 0.5


@cache
def photograph(name: str) -> NDArray[np.uint8]:
    """Return one of :data:`PHOTOGRAPHS`, ``(H, W, 3)`` uint8; read-only.

    Raises:
        ImportError: scikit-image is not installed.
    """
    try:
        from skimage import data
    except ImportError:
        raise ImportError("photographs need scikit-image: pip install scikit-image") from None
    image = np.array(Image.fromarray(getattr(data, name)()).convert("RGB"))
    image.flags.writeable = False
    return image


@dataclass(frozen=True, eq=False)
class Painted:
    """``count`` crops of photographs, some with a painted defect; crop ``i`` depends on ``seed`` and ``i`` alone.

    Args:
        count: how many crops.
        images: category -> photograph ``(H, W, 3)`` uint8, for example one's own normal images; default: those of
            :data:`PHOTOGRAPHS`. Each category may also have several: a sequence of such arrays.
        size: side of the square crops in pixels.
        seed: crops of different seeds are different.
        defect_share: the probability that a crop has a defect.
        crop: least side of the crop, as a share of the photograph's shorter side; 1 keeps the largest square.

    Raises:
        ValueError: no images, or a number out of range.
        ImportError: no images given and scikit-image is not installed.
    """

    count: int
    images: Mapping[str, NDArray[np.uint8] | Sequence[NDArray[np.uint8]]] | None = None
    size: int = 256
    seed: int = 0
    defect_share: float = 0.5
    crop: float = 0.35
    grey_share: float = GREY_SHARE
    name: str = "photographs"

    def __post_init__(self) -> None:
        """Check every setting."""
        if self.images is not None and not self.images:
            raise ValueError("images={} is not possible; allowed: at least one category")
        if self.count < 0 or self.size < 32 or self.seed < 0:
            raise ValueError(
                f"count={self.count}, size={self.size}, seed={self.seed} is out of range; allowed: at least 0, 32, 0"
            )
        for field in ("defect_share", "grey_share", "crop"):
            if not 0 <= getattr(self, field) <= 1:
                raise ValueError(f"{field}={getattr(self, field)!r} is out of range; allowed: 0 to 1")

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        if not -self.count <= index < self.count:
            raise IndexError(f"index={index} is out of range; allowed: 0 to {self.count - 1}")
        index %= self.count
        entry, rng = self._entry(index), np.random.default_rng([self.seed, index, 1])
        image = self._crop(entry.category, rng)
        mask = np.zeros(image.shape[:2], bool)
        if entry.defect != GOOD:
            image, mask = paint(image, entry.defect, rng)
        words = caption(PHOTOGRAPHS.get(entry.category, entry.category), entry.defect, "", rng)
        return Sample(image, mask, entry.category, entry.defect, words, entry.source)

    @property
    def categories(self) -> tuple[str, ...]:
        """The photographs' names."""
        return tuple(PHOTOGRAPHS if self.images is None else self.images)

    @property
    def entries(self) -> Sequence[Entry]:
        """Photograph, defect and source of every crop; nothing is painted for it."""
        return self._entries

    @cached_property  # beside the property, because a protocol's property accepts no other kind
    def _entries(self) -> Sequence[Entry]:
        return tuple(self._entry(index) for index in range(self.count))

    def _entry(self, index: int) -> Entry:
        rng, kinds = np.random.default_rng([self.seed, index, 0]), tuple(PAINTERS)
        category = self.categories[index % len(self.categories)]
        defect = kinds[rng.integers(len(kinds))] if rng.random() < self.defect_share else GOOD
        return Entry(category, defect, f"{self.name}/{category}/{self.seed}-{index}")

    def _crop(self, category: str, rng: np.random.Generator) -> NDArray[np.uint8]:
        """Return a random square of a photograph: flipped, turned by quarters, grey now and then, of our size."""
        whole = photograph(category) if self.images is None else self.images[category]
        if not isinstance(whole, np.ndarray):
            whole = whole[int(rng.integers(len(whole)))]
        shorter = min(whole.shape[:2])
        side = max(round(shorter * rng.uniform(self.crop, 1)), 1)
        top, left = (int(rng.integers(length - side + 1)) for length in whole.shape[:2])
        square = np.rot90(whole[top : top + side, left : left + side], int(rng.integers(4)))
        image = Image.fromarray(np.ascontiguousarray(square[:, :: rng.choice([-1, 1])]))
        if rng.random() < self.grey_share:
            image = image.convert("L").convert("RGB")
        return np.array(image.resize((self.size, self.size), Image.Resampling.BICUBIC))
