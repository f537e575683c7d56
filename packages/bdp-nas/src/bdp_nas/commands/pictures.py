"""The pictures of a search that is done: α over time, kept samples per class, walls of what was kept and pruned."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure as Plot
from numpy.typing import NDArray
from PIL.Image import Image

from bdp_nas.blueprint import Blueprint
from bdp_nas.commands.bilevel import Found
from bdp_nas.commands.data import Images
from bdp_nas.drawing import alpha_plot, class_plot, panels
from bdp_nas.spaces import get_space
from frugal_shared.report import grid

KEPT, PRUNED = "kept", "pruned"
TILE = 32  # least side of a picture in a wall, in pixels


def mixture_plot(found: Found, blueprint: Blueprint) -> Plot:
    """Return the mixture of every edge over time."""
    supernet = get_space(blueprint.space).supernet(blueprint.size)
    return alpha_plot(panels(supernet, [epoch["mixture"] for epoch in found.history]))


def kept_plot(found: Found, classes: Sequence[str]) -> Plot:
    """Return the samples that each level used in each epoch, by class."""
    levels = found.history[0]["classes"]
    return class_plot(
        {level: np.array([epoch["classes"][level] for epoch in found.history]) for level in levels}, classes
    )


def walls(found: Found, images: Images, count: int, columns: int = 12) -> dict[str, Image]:
    """Return pictures that a level kept to the end and pictures that none did, evenly spaced; no wall of nothing."""
    kept = sorted(index for indices in found.kept.values() for index in indices)
    rows = {KEPT: kept, PRUNED: sorted(set(range(len(images))).difference(kept))}
    return {name: wall(pixels(images, evenly(each, count)), columns) for name, each in rows.items() if each}


def evenly(rows: Sequence[int], count: int) -> list[int]:
    """Return at most ``count`` of the rows, at equal distances."""
    chosen = np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int)
    return [rows[place] for place in chosen]


def pixels(images: Images, rows: Sequence[int]) -> NDArray[np.floating]:
    """Return images ``(N, C, H, W)`` in [0, 1]."""
    return images.pixels[list(rows)].numpy() / 255


def wall(images: NDArray[np.floating], columns: int = 12) -> Image:
    """Return pictures side by side.

    Args:
        images: ``(N, C, H, W)`` in [0, 1], grey or colour.
        columns: pictures in a row.
    """
    shown = np.moveaxis(images if images.shape[1] == 3 else images[:, :1].repeat(3, axis=1), 1, -1)
    return grid(shown, columns, max(1, TILE // shown.shape[1]))
