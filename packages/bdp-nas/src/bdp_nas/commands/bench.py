"""``bdp-nas bench``: what pruning saves and costs, and a step of every searcher, on this machine.

Random weights and random pixels are as fast as real ones, so nothing has to be downloaded.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import count
from statistics import median
from time import perf_counter
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import DataLoader

from bdp_nas.commands.options import BenchConfig
from bdp_nas.commands.presets import PRESETS
from bdp_nas.commands.search import run_search
from bdp_nas.genotype import NONE
from bdp_nas.pruner import BilevelPruner
from bdp_nas.schedule import KeepSchedule
from bdp_nas.searchers import get_searcher
from bdp_nas.searchers.searcher import Batch
from bdp_nas.spaces import get_space
from bdp_nas.spaces.cell import MixedCell, MixedEdges, sum_of
from bdp_nas.spaces.nasbench201 import OPERATIONS
from bdp_nas.spaces.operations import BUILDERS
from bdp_nas.spaces.space import Size, Supernet
from frugal_shared.parts import measure_parts
from frugal_shared.report import Report
from frugal_shared.run import Run
from frugal_shared.timing import compare

Row = dict[str, Any]

CLASSES = 10
EPOCHS = 10  # of the search whose pruning is timed
TIMED = ("darts-2", "pc-darts", "beta-darts", "random")
HEADINGS = {"part": "part", "what": "what", "seconds": "seconds", "usual_seconds": "usual", "ratio": "×"}
HEADINGS |= {"ratio_low": "× low", "ratio_high": "× high", "samples": "samples", "usual_samples": "usual samples"}
HEADINGS |= {"share": "share"}
PRINTED = ("part", "what", "seconds", "usual", "×", "share")  # what a terminal has room for


@dataclass(frozen=True)
class Workload:
    """A supernet of NAS-Bench-201 and its batch."""

    channels: int
    cells: int
    side: int
    batch: int

    def __str__(self) -> str:
        return f"{self.channels} channels, {self.cells} per stage, {self.side}×{self.side}, batch {self.batch}"

    def images(self) -> Batch:
        """Return a random batch."""
        return torch.randn(self.batch, 3, self.side, self.side), torch.randint(CLASSES, (self.batch,))

    @property
    def size(self) -> Size:
        """Of the supernet."""
        return Size(CLASSES, self.channels, self.cells)


SMALL = Workload(channels=16, cells=1, side=16, batch=64)
WORKLOADS = (SMALL, Workload(channels=16, cells=5, side=32, batch=64))  # the second one as published


def main(config: BenchConfig) -> None:
    """Time every part and write the rows and the report; a resumed run keeps the parts it has."""
    with Run(config, "bdp-nas") as run:
        parts: list[Callable[[], list[Row]]] = [
            lambda: [search_row(run, config)],
            lambda: overhead_rows(config),
            lambda: [searcher_row(name, config) for name in TIMED],
            lambda: [grouped_row(config)],
        ]
        rows = measure_parts(run, parts, config.seed, config.json)
        if run.accelerator.is_main_process:
            report(rows, config).write(run.folder)
            show(rows)
        run.finish(flat(rows))


def search_row(run: Run, config: BenchConfig) -> Row:
    """Time whole searches without and with pruning, in pairs; none of them is resumed."""
    number, samples = count(), {}

    def searching(pruning: Any) -> None:
        recipe = replace(PRESETS["small"].search, pruning=pruning, seed=config.seed, output_dir=config.output_dir)
        folder = run.folder / "searches" / f"{next(number)}-{perf_counter():.0f}"
        samples[pruning] = sum(run_search(run, recipe, folder, config.seed).samples.values())

    row = against("search", "none ÷ bdp", lambda: searching("none"), lambda: searching("bdp"), config.repeats)
    return row | {"samples": samples["bdp"], "usual_samples": samples["none"]}


def overhead_rows(config: BenchConfig) -> list[Row]:
    """Time all that pruning adds to a search, beside the steps of that search: a row for each size of the supernet."""
    rows = []
    for load in WORKLOADS:
        added, steps = pruning_seconds(config.samples, load.batch)
        seconds = steps * median_seconds(stepper("darts", load), config.repeats)
        row = {"part": "overhead", "what": f"{config.samples:,} samples; {load}", "seconds": added}
        rows.append(row | {"usual_seconds": seconds, "share": added / seconds, "samples": config.samples})
    return rows


def pruning_seconds(samples: int, batch: int) -> tuple[float, int]:
    """Run the pruner through a search without a network; return its seconds and the number of steps."""
    data: Any = torch.arange(samples)  # a sample is its number
    labels = data % CLASSES
    weights, architecture = torch.randperm(samples).tensor_split(2)
    logits, steps = torch.randn(batch, CLASSES), 0
    began = perf_counter()
    pruner = BilevelPruner(
        data, labels, weights, architecture, lambda part: DataLoader(part, batch), schedule=KeepSchedule(EPOCHS)
    )
    for _ in range(EPOCHS):
        for level, indices in pruner.kept.items():
            for part in indices.split(batch):
                pruner.observe(level, part, logits[: len(part)], labels[part])
        steps += -(-max(map(len, pruner.kept.values())) // batch)
        pruner.step()
    return perf_counter() - began, steps


def stepper(
    name: str, load: Workload, change: Callable[[Supernet], object] = lambda supernet: None
) -> Callable[[], None]:
    """Return what does one step of a search: of the architecture, then of the weights.

    Args:
        name: of the searcher.
        load: supernet and batch.
        change: is done to the supernet first.
    """
    searcher = get_searcher(name)()
    supernet = searcher.supernet(get_space("nasbench201"), load.size)
    change(supernet)
    alphas = searcher.alpha_optimizer(supernet)
    weights = torch.optim.SGD(supernet.weights(), 0.025, 0.9, weight_decay=3e-4)
    train, validation = load.images(), load.images()

    def step() -> None:
        searcher.arch_step(supernet, train, validation, alphas, weights, 0.5)
        searcher.weight_step(supernet, train, weights)

    return step


def median_seconds(call: Callable[[], None], repeats: int) -> float:
    """Return the median time of a call, after one that is not counted."""
    seconds = []
    for _ in range(repeats + 1):
        began = perf_counter()
        call()
        seconds.append(perf_counter() - began)
    return median(seconds[1:])


def searcher_row(name: str, config: BenchConfig) -> Row:
    """Time a step of a searcher against one of first-order DARTS."""
    return against("step", f"darts ÷ {name}; {SMALL}", stepper("darts", SMALL), stepper(name, SMALL), config.repeats)


def grouped_row(config: BenchConfig) -> Row:
    """Time a step in the supernet, which computes edges together, against one with a module for every edge."""
    usual, ours = stepper("darts", SMALL, separate), stepper("darts", SMALL)
    return against("grouped", f"edge by edge ÷ together; {SMALL}", usual, ours, config.repeats)


class EdgeByEdge(nn.Module):
    """The mixtures on the edges that leave a state, with a module for every operation on every edge.

    Args:
        together: what is replaced.
        operations: their names; ``none`` is computed, too, as in the published code.
    """

    def __init__(self, together: MixedEdges, operations: Sequence[str]) -> None:
        super().__init__()
        self.edges = nn.ModuleList(
            nn.ModuleList(
                Zero() if name == NONE else BUILDERS[name](together.mixed, together.stride, affine=False)
                for name in operations
            )
            for _ in range(together.edges)
        )

    def forward(self, x: Tensor, weights: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        """Return the mixture of every edge."""
        return [
            sum_of([weight * operation(x) for weight, operation in zip(row, edge)])  # type: ignore[arg-type]
            for row, edge in zip(weights, self.edges)
        ]


class Zero(nn.Module):
    """``none``, computed."""

    def forward(self, x: Tensor) -> Tensor:
        """Return 0 in the shape of x."""
        return 0.0 * x


def separate(supernet: Supernet) -> None:
    """Replace what computes edges together in the cells of NAS-Bench-201."""
    for cell in supernet.modules():
        if isinstance(cell, MixedCell):
            apart = [EdgeByEdge(source, OPERATIONS) for source in cell.sources if isinstance(source, MixedEdges)]
            cell.sources = nn.ModuleList(apart)


def against(part: str, what: str, usual: Callable[[], None], ours: Callable[[], None], repeats: int) -> Row:
    """Time two calls in alternating pairs; the ratio is the median of the pairs' ratios, usual ÷ ours."""
    found = compare(usual, ours, warmup=1, repeats=repeats)
    seconds = {"seconds": found.b_seconds, "usual_seconds": found.a_seconds}
    ratios = {"ratio": found.ratio, "ratio_low": found.ratio_low, "ratio_high": found.ratio_high}
    return {"part": part, "what": what, **seconds, **ratios}


def flat(rows: Sequence[Row]) -> dict[str, float]:
    """Return the figures under names of part, what and column."""
    return {
        f"{row['part']}/{row['what']}/{key}": value
        for row in rows
        for key, value in row.items()
        if isinstance(value, int | float)
    }


def shown(rows: Sequence[Row]) -> list[Row]:
    """Return rows under the headings of the tables."""
    return [{HEADINGS[key]: row.get(key) for key in HEADINGS} for row in rows]


def show(rows: Sequence[Row]) -> None:
    """Print the rows as a table."""
    table = Table(title=f"{torch.get_num_threads()} threads")
    for name in PRINTED:
        table.add_column(name, justify="left" if name in ("part", "what") else "right")
    for row in shown(rows):
        values = (row[name] for name in PRINTED)
        table.add_row(*("" if v is None else f"{v:.4g}" if isinstance(v, float) else escape(str(v)) for v in values))
    Console().print(table)


def report(rows: Sequence[Row], config: BenchConfig) -> Report:
    """Return the report: the table and what was measured."""
    page = Report("What pruning saves and costs", f"{torch.get_num_threads()} threads of this machine's CPU")
    page.table(
        shown(rows), f"seconds are medians over {config.repeats}; × is the median of alternating pairs, usual ÷ ours"
    )
    page.command(f"bdp-nas bench --samples {config.samples} --repeats {config.repeats} --seed {config.seed}")
    page.note(
        "search: whole searches, data and checkpoints included, with the small preset of `ablate`. overhead: all that "
        f"the pruner does in a search of {EPOCHS} epochs, without the network, beside the time that as many steps in "
        "the supernet take; on an accelerator the steps are shorter and its share is larger. step: of the architecture "
        "and of the weights; PC-DARTS mixes a quarter of the channels. grouped: with a module for every operation on "
        "every edge, `none` included, as published, against one convolution for all edges that leave a state. Random "
        "weights and pixels."
    )
    return page
