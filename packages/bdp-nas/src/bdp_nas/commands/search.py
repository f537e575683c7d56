"""``bdp-nas search``: find an architecture on ever fewer samples, on any number of processes, resumable."""

import math
import shutil
from dataclasses import asdict, replace
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from bdp_nas.commands.bilevel import CHECKPOINTS, Found, Search
from bdp_nas.commands.data import open_data
from bdp_nas.commands.options import SearchConfig
from bdp_nas.table import Table
from frugal_shared.checkpoint import write_bytes, write_json
from frugal_shared.errors import RunError, UsageError
from frugal_shared.reading import read_dataclass
from frugal_shared.run import Run
from frugal_shared.tensors import pack_tensors

FOUND, SUPERNET, OPTIONS = "found.json", "supernet.safetensors", "options.json"


def search(config: SearchConfig) -> None:
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
    for epoch in run.progress(range(doing.epoch, config.epochs), initial=doing.epoch, total=config.epochs):
        doing.run_epoch()
        doing.save(folder)
        if folder == run.folder:
            run.log(epoch + 1, **{key: value for key, value in doing.history[-1].items() if isinstance(value, float)})
    found = doing.finish()
    if found.collapsed:
        say(run, f"collapsed: most of {found.genotype} only skips; beta-darts or fewer epochs may help")
    if run.accelerator.is_main_process:
        write_bytes(folder / SUPERNET, pack_tensors(doing.supernet.state_dict()))
        replace(doing.blueprint, genotype=found.genotype).write(folder)
        write_json(folder / OPTIONS, asdict(replace(config, seed=seed)))
        write_json(folder / FOUND, asdict(found))
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    run.accelerator.wait_for_everyone()
    return found


def read_found(folder: Path) -> Found:
    """Return what a search left in its folder.

    Raises:
        RunError: it left nothing, or something else.
    """
    try:
        return read_dataclass(folder / FOUND, Found)
    except RunError as error:
        raise RunError(f"{error}; allowed: the run folder of a search that is done") from None


def read_config(folder: Path) -> SearchConfig:
    """Return the options of the search that was done in a folder, with its own seed.

    Raises:
        RunError: it left nothing, or something else.
    """
    try:
        return read_dataclass(folder / OPTIONS, SearchConfig)
    except RunError as error:
        raise RunError(f"{error}; allowed: the run folder of a search that is done") from None


def say(run: Run, text: str) -> None:
    """Tell the person at the terminal, once."""
    if run.accelerator.is_main_process:
        Console(soft_wrap=True, stderr=True).print(escape(text), highlight=False)
