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
    "ablate": (AblateConfig, "bdp_nas.commands.ablate:main"),
    "bench": (BenchConfig, "bdp_nas.commands.bench:main"),
    "build-table": (BuildTableConfig, "bdp_nas.commands.build_table:main"),
    "demo": (DemoConfig, "bdp_nas.commands.demo:main"),
    "export": (ExportConfig, "bdp_nas.commands.export:main"),
    "plot": (PlotConfig, "bdp_nas.commands.plot:main"),
    "query": (QueryConfig, "bdp_nas.commands.query:main"),
    "retrain": (RetrainConfig, "bdp_nas.commands.retrain:main"),
    "search": (SearchConfig, "bdp_nas.commands.search:main"),
}


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    return run_cli("bdp-nas", COMMANDS, argv)
