"""``bdp-nas plot``: the cell, α over time, kept samples per class, and a wall of kept and pruned pictures."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure as Plot
from PIL.Image import Image
from rich.console import Console

from bdp_nas.commands.bilevel import Found
from bdp_nas.commands.blueprint import Blueprint
from bdp_nas.commands.data import Images, open_data
from bdp_nas.commands.drawing import Panel, alpha_plot, class_plot, genotype_plot, wall
from bdp_nas.commands.options import PlotConfig
from bdp_nas.commands.search import read_config, read_found
from bdp_nas.spaces import get_space
from bdp_nas.spaces.cell import MixedCell
from bdp_nas.spaces.space import Supernet

KEPT, PRUNED = "kept", "pruned"


def plot(config: PlotConfig) -> None:
    """Draw the pictures of a search into a folder.

    Raises:
        ValueError: the images of the search cannot be had any more.
        RunError: ``source`` is no run folder of a search that is done.
    """
    found, blueprint = read_found(config.source), Blueprint.read(config.source)
    options = read_config(config.source)
    images = open_data(options, options.seed).train
    folder = config.output_dir or config.source / "plots"
    folder.mkdir(parents=True, exist_ok=True)
    plots = {
        "genotype": genotype_plot(blueprint.space, found.genotype),
        "alpha": alpha_plot(panels(found, blueprint)),
        "classes": kept_plot(found, blueprint.classes),
    }
    for name, figure in plots.items():
        figure.savefig(folder / f"{name}.{config.format}", dpi=150)
    for name, picture in walls(found, images, config.pictures).items():
        picture.save(folder / f"{name}.png")
    Console(soft_wrap=True).print(str(folder), highlight=False)


def panels(found: Found, blueprint: Blueprint) -> list[Panel]:
    """Return the mixture of every edge over time."""
    supernet = get_space(blueprint.space).supernet(blueprint.size)
    made = []
    for kind, operations in supernet.operations.items():
        weights = np.array([epoch["mixture"][kind] for epoch in found.history])  # (T, edges, operations)
        names = edge_names(supernet, kind, weights.shape[1])
        made += [Panel(name, operations, weights[:, edge]) for edge, name in enumerate(names)]
    return made


def edge_names(supernet: Supernet, kind: str, count: int) -> list[str]:
    """Return the names of the edges of a kind of cell; the states before the first node are called in."""
    graph = next((module.graph for module in supernet.modules() if isinstance(module, MixedCell)), None)
    if graph is None:
        return [kind] if count == 1 else [f"{kind} {number}" for number in range(count)]
    before = f"{kind} " if len(supernet.operations) > 1 else ""
    names = [f"in {number}" if graph.inputs > 1 else "in" for number in range(graph.inputs)]
    names += [str(node + 1) for node in range(graph.nodes)]
    return [f"{before}{names[source]} → {node + 1}" for source, node in graph.edges]


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


def pixels(images: Images, rows: Sequence[int]) -> np.ndarray:
    """Return images ``(N, C, H, W)`` in [0, 1]."""
    return images.pixels[list(rows)].numpy() / 255
