"""Data sets that need no download: every one is the same bytes on every machine, with named splits.

``digits`` are scikit-learn's 1,797 handwritten digits. ``TexturedDigits`` fills such a real outline with a procedural
texture, so that the outline (low frequencies) and the detail (high frequencies) of a picture can be judged apart.
``elpv`` are 2,624 real photographs of solar cells, from a package of the ``[demo]`` extra.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from frugal_shared.errors import check_choice
from frugal_shared.seeds import generator
from frugal_shared.weights import package_file

Split = Literal["train", "val", "test"]
SPLITS = ("train", "val", "test")
CellType = Literal["mono", "poly"]
CELL_TYPES = ("mono", "poly")

TEXTURES = ("solid", "horizontal", "diagonal", "checks")
INKS = ((0.95, 0.35, 0.35), (0.35, 0.9, 0.4), (0.4, 0.55, 1.0), (0.95, 0.85, 0.3), (0.9, 0.45, 0.95), (0.35, 0.9, 0.9))
BACKGROUND = 0.05
CELL_BORDER = 15  # pixels around a solar cell that show the gap to its neighbour
CELL_GREY = 110  # the median grey value that every cell is brought to: exposures differ a lot
SHADE = 0.35  # what the dark part of a texture leaves of the ink


def _stratified(labels: np.ndarray, train_share: float, val_share: float) -> dict[str, np.ndarray]:
    """Return row numbers per split, stratified by label, always the same; ``val_share`` is of what train leaves."""
    train, rest = train_test_split(np.arange(len(labels)), train_size=train_share, stratify=labels, random_state=0)
    val, test = train_test_split(rest, train_size=val_share, stratify=labels[rest], random_state=0)
    return {"train": np.sort(train), "val": np.sort(val), "test": np.sort(test)}


@cache
def _digit_rows() -> dict[str, np.ndarray]:
    """Return row numbers per split: 55 % train, 35 % val, 10 % test, stratified by digit."""
    return _stratified(load_digits(return_X_y=True)[1], 0.55, 7 / 9)


def digits(split: Split) -> tuple[torch.Tensor, torch.Tensor]:
    """Return scikit-learn's handwritten digits of one split.

    Returns:
        Images ``(N, 8, 8)`` float32 in [0, 1], and labels ``(N,)`` int64 in 0..9.

    Raises:
        UsageError: an unknown split.
    """
    check_choice("split", split, SPLITS)
    pixels, labels = load_digits(return_X_y=True)
    rows = _digit_rows()[split]
    return torch.from_numpy(pixels[rows]).float().view(-1, 8, 8) / 16, torch.from_numpy(labels[rows]).long()


@dataclass(frozen=True)
class TexturedDigits:
    """Endless textured digits: 32×32 RGB, class = digit × 4 + texture (40 classes).

    Which digit, ink and texture the sample ``index`` of ``seed`` gets follows from these two numbers alone.
    """

    split: Split = "train"
    seed: int = 0

    num_classes = 10 * len(TEXTURES)
    size = 32

    def __post_init__(self) -> None:
        """Check the split."""
        check_choice("split", self.split, SPLITS)

    def batch(self, index: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return batch number ``index``: images ``(count, 3, 32, 32)`` in [0, 1] and labels ``(count,)`` in 0..39."""
        outlines, labels = _outlines(self.split)
        random = generator(self.seed, index)
        rows = torch.randint(len(labels), (count,), generator=random)
        inks = torch.randint(len(INKS), (count,), generator=random)
        textures = torch.randint(len(TEXTURES), (count,), generator=random)
        return render(outlines[rows], inks, textures), labels[rows] * len(TEXTURES) + textures


def render(outlines: torch.Tensor, inks: torch.Tensor, textures: torch.Tensor) -> torch.Tensor:
    """Fill outlines with ink and texture.

    Args:
        outlines: ``(B, 32, 32)`` in [0, 1], how much ink lies at each pixel.
        inks: ``(B,)``, rows of :data:`INKS`.
        textures: ``(B,)``, indices of :data:`TEXTURES`.

    Returns:
        ``(B, 3, 32, 32)`` in [0, 1].
    """
    colour = torch.tensor(INKS)[inks][:, :, None, None]  # (B, 3, 1, 1)
    pattern = _patterns()[textures][:, None]  # (B, 1, 32, 32)
    cover = outlines[:, None]  # (B, 1, 32, 32)
    return BACKGROUND + cover * (colour * pattern - BACKGROUND)


@cache
def _outlines(split: Split) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = digits(split)
    large = F.interpolate(images[:, None], size=32, mode="bicubic", align_corners=False)[:, 0]
    return (large * 1.5).clamp(0, 1), labels


@cache
def _patterns() -> torch.Tensor:
    """Return the four textures, ``(4, 32, 32)``, 1 where the ink is bright and SHADE where it is dark."""
    y, x = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    bright = torch.stack([torch.ones_like(x).bool(), y // 2 % 2 == 0, (x + y) % 3 != 0, (x // 2 + y // 2) % 2 == 0])
    return torch.where(bright, 1.0, SHADE)


@dataclass(frozen=True, eq=False)
class SolarCells:
    """Electroluminescence photographs of solar cells: dark spots and lines are where a cell gives no current."""

    paths: tuple[Path, ...]
    """The photographs' files."""
    probability: torch.Tensor
    """``(N,)`` float32, how sure the experts were of a defect: 0 (functional), 1/3, 2/3 or 1 (defective)."""
    cell_type: tuple[CellType, ...]
    """Whether each cell is cut from one crystal or from many."""

    def images(self, rows: torch.Tensor | slice = slice(None)) -> torch.Tensor:
        """Return the photographs of these rows (numbers, a mask or a slice), ``(M, 300, 300)`` uint8.

        Only they are read: all 2,624 would take seconds and 236 MB.
        """
        chosen = torch.arange(len(self.paths))[rows].tolist()
        images = np.empty((len(chosen), 300, 300), np.uint8)
        for image, row in zip(images, chosen, strict=True):
            with Image.open(self.paths[row]) as photograph:
                image[:] = np.asarray(photograph)
        return torch.from_numpy(images)


def elpv(split: Split, cell_type: CellType | None = None) -> SolarCells:
    """Return one split of ELPV: 60 % train, 20 % val, 20 % test, stratified by defect probability × cell type.

    Licence CC BY-NC-SA 4.0: evaluate and fine-tune on it, never ship weights trained on it. The cells were cut out of
    44 modules, which the labels do not name: cells of one module are in several splits.

    Args:
        split: which part.
        cell_type: only these cells; default: both kinds.

    Raises:
        UsageError: an unknown split or cell type.
        RunError: the ``[demo]`` extra is missing.
    """
    check_choice("split", split, SPLITS)
    check_choice("cell_type", cell_type, (None, *CELL_TYPES))
    labels = package_file("elpv-dataset", "elpv_dataset/data/labels.csv")
    paths, probabilities, types = np.array([line.split() for line in labels.read_text().splitlines()]).T
    rows = _stratified(np.char.add(probabilities, types), 0.6, 0.5)[split]
    if cell_type is not None:
        rows = rows[types[rows] == cell_type]
    return SolarCells(
        paths=tuple(labels.parent / path for path in paths[rows]),
        probability=torch.from_numpy(probabilities[rows].astype(np.float32)),
        cell_type=tuple(types[rows].tolist()),
    )


def normalise_cell(photograph: np.ndarray) -> np.ndarray:
    """Return a photograph of a solar cell without its border and in one exposure for all: clip(110 · grey / median).

    Args:
        photograph: ``(H, W)`` uint8.

    Returns:
        ``(H − 30, W − 30)`` uint8.
    """
    inner = photograph[CELL_BORDER:-CELL_BORDER, CELL_BORDER:-CELL_BORDER].astype(np.float32)
    return np.clip(np.rint(inner * (CELL_GREY / max(float(np.median(inner)), 1.0))), 0, 255).astype(np.uint8)
