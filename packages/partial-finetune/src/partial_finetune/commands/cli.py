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
    "angles": (AnglesConfig, "partial_finetune.commands.angles:show_angles"),
    "bench": (BenchConfig, "partial_finetune.commands.bench:bench"),
    "demo": (DemoConfig, "partial_finetune.commands.demo:demo"),
    "eval": (EvalConfig, "partial_finetune.commands.eval:evaluate"),
    "merge": (MergeConfig, "partial_finetune.commands.merge:merge_file"),
    "select": (SelectConfig, "partial_finetune.commands.train:run_selection"),
    "soup": (SoupConfig, "partial_finetune.commands.soup:soup"),
    "sweep": (SweepConfig, "partial_finetune.commands.sweep:sweep"),
    "train": (TrainConfig, "partial_finetune.commands.train:train"),
}


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    return run_cli("partial-finetune", COMMANDS, argv)
