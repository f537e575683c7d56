"""The commands of ``partial-finetune`` and the function each one runs."""

from frugal_shared.cli import Commands, run_cli
from partial_finetune.commands.options import (
    AnglesConfig,
    BenchConfig,
    DemoConfig,
    EvalConfig,
    MergeConfig,
    SelectConfig,
    SoupConfig,
    SweepConfig,
    TrainConfig,
)

COMMANDS: Commands = {
    "angles": (AnglesConfig, "partial_finetune.commands.angles:main"),
    "bench": (BenchConfig, "partial_finetune.commands.bench:main"),
    "demo": (DemoConfig, "partial_finetune.commands.demo:main"),
    "eval": (EvalConfig, "partial_finetune.commands.eval:main"),
    "merge": (MergeConfig, "partial_finetune.commands.merge:main"),
    "select": (SelectConfig, "partial_finetune.commands.select:main"),
    "soup": (SoupConfig, "partial_finetune.commands.soup:main"),
    "sweep": (SweepConfig, "partial_finetune.commands.sweep:main"),
    "train": (TrainConfig, "partial_finetune.commands.train:main"),
}


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    return run_cli("partial-finetune", COMMANDS, argv)
