"""``bdp-nas build-table``: a benchmark's published files as one small table without pickles."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import track

from bdp_nas.benchmarks import read_benchmark
from bdp_nas.commands.options import BuildTableConfig


def main(config: BuildTableConfig) -> None:
    """Convert published files to a table.

    Raises:
        ValueError: files that cannot be read, or of another form.
    """
    table = read_benchmark(config.source, config.epochs, watched)
    table.save(config.output)
    Console(soft_wrap=True).print(escape(f"{config.output}: {len(table.test):,} architectures, {table.space}"))


def watched(files: Sequence[Path]) -> Iterable[Path]:
    """Yield the files, and show on the standard error how many are left."""
    return track(files, "reading", console=Console(stderr=True), transient=True)
