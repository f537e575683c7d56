"""The commands of ``bdp-nas`` and the function each one runs."""

from bdp_nas.configs import (
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
    "ablate": (AblateConfig, "bdp_nas.ablate:ablate"),
    "bench": (BenchConfig, "bdp_nas.bench:bench"),
    "build-table": (BuildTableConfig, "bdp_nas.query:build_table"),
    "demo": (DemoConfig, "bdp_nas.demo:demo"),
    "export": (ExportConfig, "bdp_nas.export:export"),
    "plot": (PlotConfig, "bdp_nas.plot:plot"),
    "query": (QueryConfig, "bdp_nas.query:query"),
    "retrain": (RetrainConfig, "bdp_nas.retrain:retrain"),
    "search": (SearchConfig, "bdp_nas.search:search"),
}


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    return run_cli("bdp-nas", COMMANDS, argv)
