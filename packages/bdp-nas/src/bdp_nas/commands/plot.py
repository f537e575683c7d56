"""``bdp-nas plot``: the cell, α over time, kept samples per class, and a wall of kept and pruned pictures."""

from rich.console import Console

from bdp_nas.commands.data import open_data
from bdp_nas.commands.folders import read_blueprint, read_found, read_options
from bdp_nas.commands.options import PlotConfig
from bdp_nas.commands.pictures import kept_plot, mixture_plot, walls
from bdp_nas.drawing import genotype_plot


def main(config: PlotConfig) -> None:
    """Draw the pictures of a search into a folder.

    Raises:
        ValueError: the images of the search cannot be had any more.
        RunError: ``source`` is no run folder of a search that is done.
    """
    found, blueprint = read_found(config.source), read_blueprint(config.source)
    options = read_options(config.source)
    images = open_data(options, options.seed).train
    folder = config.output_dir or config.source / "plots"
    folder.mkdir(parents=True, exist_ok=True)
    plots = {
        "genotype": genotype_plot(blueprint.space, found.genotype),
        "alpha": mixture_plot(found, blueprint),
        "classes": kept_plot(found, blueprint.classes),
    }
    for name, figure in plots.items():
        figure.savefig(folder / f"{name}.{config.format}", dpi=150)
    for name, picture in walls(found, images, config.pictures).items():
        picture.save(folder / f"{name}.png")
    Console(soft_wrap=True).print(str(folder), highlight=False)
