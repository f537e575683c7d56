"""``bdp-nas search``: find an architecture on ever fewer samples, on any number of processes, resumable."""

import math
from dataclasses import asdict, replace
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from bdp_nas.commands.bilevel import Found, Search
from bdp_nas.commands.data import open_data
from bdp_nas.commands.folders import FOUND, OPTIONS, SUPERNET, read_found
from bdp_nas.commands.options import SearchConfig
from bdp_nas.table import Table
from frugal_shared.checkpoint import write_bytes, write_json
from frugal_shared.errors import UsageError
from frugal_shared.run import Run
from frugal_shared.tensors import pack_tensors


def main(config: SearchConfig) -> None:
    """Search, and write what was found into the run folder.

    Raises:
        ValueError: data, or options that do not go together.
        RunError: an image cannot be read, or the ``[demo]`` extra is missing.
    """
    table = Table.load(config.table) if config.table else None
    if table is not None and table.space != config.space:
        raise UsageError(f"table={str(config.table)!r} is of the space {table.space!r}; allowed: {config.space!r}")
    with Run(config, "bdp-nas") as run:
        run.restore()  # what was logged after the checkpoint
        found = run_search(run, config, run.folder, config.seed)
        results = {name: getattr(found, name) for name in ("forward", "backward", "seconds", "flops", "collapsed")}
        results |= {f"samples/{level}": count for level, count in found.samples.items()}
        if table is not None:
            results |= {f"{name}/test": each.test for name, each in table.query(found.genotype).items()}
        run.finish({name: float(value) for name, value in results.items()})
        if run.accelerator.is_main_process:
            Console(soft_wrap=True).print(escape(f"found {found.genotype}"), highlight=False)


def run_search(run: Run, config: SearchConfig, folder: Path, seed: int) -> Found:
    """Search in a folder, or go on there, or read back what was found there.

    Args:
        run: where the processes and the log are.
        config: the search.
        folder: gets ``found.json``, ``genotype.json``, ``options.json``, ``supernet.safetensors``, and checkpoints
            meanwhile.
        seed: of everything random.

    Raises:
        ValueError: data, or options that do not go together, or a checkpoint of another search.
        RunError: data that cannot be read.
    """
    if (folder / FOUND).exists():
        return read_found(folder)
    doing = Search(run.accelerator, config, open_data(config, seed).train, seed)
    doing.restore(folder)
    cost = doing.planned_cost()
    share = "as the losses will have it" if math.isnan(cost) else f"{cost:.0%} of what it takes without pruning"
    say(run, f"samples: {share}")
    doing.train(run, folder, config.epochs, log=folder == run.folder)
    found = doing.conclude()
    if found.collapsed:
        say(run, f"collapsed: most of {found.genotype} only skips; beta-darts or fewer epochs may help")

    def write() -> None:
        write_bytes(folder / SUPERNET, pack_tensors(doing.supernet.state_dict()))
        replace(doing.blueprint, genotype=found.genotype).write(folder)
        write_json(folder / OPTIONS, asdict(replace(config, seed=seed)))
        write_json(folder / FOUND, asdict(found))

    doing.finish(folder, write)
    return found


def say(run: Run, text: str) -> None:
    """Tell the person at the terminal, once."""
    if run.accelerator.is_main_process:
        Console(soft_wrap=True, stderr=True).print(escape(text), highlight=False)
