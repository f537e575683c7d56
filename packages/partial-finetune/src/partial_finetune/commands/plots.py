"""The picture that several commands draw."""

from collections.abc import Mapping

from matplotlib.figure import Figure as Plot
from matplotlib.ticker import MaxNLocator


def angle_plot(angle_of: Mapping[str, float]) -> Plot:
    """Return the angle of every layer, a line per kind over the blocks: only layers of one kind are compared.

    Args:
        angle_of: unit name, such as ``"attn[3]"``, → radians; units outside blocks are left out.
    """
    lines: dict[str, dict[int, float]] = {}
    for name, value in angle_of.items():
        kind, bracket, block = name.rstrip("]").partition("[")
        if bracket:
            lines.setdefault(kind, {})[int(block)] = value
    plot = Plot(figsize=(5.6, 3.8), layout="constrained")
    axes = plot.subplots()
    for kind, line in lines.items():
        blocks = sorted(line)
        axes.plot(blocks, [1000 * line[block] for block in blocks], "o-", label=kind)
    axes.set_xlabel("block")
    axes.set_ylabel("angle (milliradians)")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if lines:
        axes.legend()
    return plot
