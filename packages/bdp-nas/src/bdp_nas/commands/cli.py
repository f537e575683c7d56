"""The commands of ``bdp-nas`` and the function each one runs."""

from bdp_nas.commands.options import (
    AblateConfig,
    BenchConfig,
    BuildTableConfig,
    DemoConfig,
    ExportConfig,
    PlotConfig,
    QueryConfig,
    RetrainConfig,
    SearchConfig,
)
from frugal_shared.cli import Commands, run_cli

COMMANDS: Commands = {
    "ablate": (AblateConfig, "bdp_nas.commands.ablate:ablate"),
    "bench": (BenchConfig, "bdp_nas.commands.bench:bench"),
    "build-table": (BuildTableConfig, "bdp_nas.commands.query:build_table"),
    "demo": (DemoConfig, "bdp_nas.commands.demo:demo"),
    "export": (ExportConfig, "bdp_nas.commands.export:export"),
    "plot": (PlotConfig, "bdp_nas.commands.plot:plot"),
    "query": (QueryConfig, "bdp_nas.commands.query:query"),
    "retrain": (RetrainConfig, "bdp_nas.commands.retrain:retrain"),
    "search": (SearchConfig, "bdp_nas.commands.search:search"),
}


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    return run_cli("bdp-nas", COMMANDS, argv)
