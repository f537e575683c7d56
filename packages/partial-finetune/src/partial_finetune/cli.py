"""The commands of ``partial-finetune`` and the function each one runs."""

from frugal_shared.cli import Commands, run_cli
from partial_finetune.configs import (
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
    "angles": (AnglesConfig, "partial_finetune.show_angles:show_angles"),
    "bench": (BenchConfig, "partial_finetune.bench:bench"),
    "demo": (DemoConfig, "partial_finetune.demo:demo"),
    "eval": (EvalConfig, "partial_finetune.evaluate:evaluate"),
    "merge": (MergeConfig, "partial_finetune.merge:merge_file"),
    "select": (SelectConfig, "partial_finetune.train:run_selection"),
    "soup": (SoupConfig, "partial_finetune.make_soup:soup"),
    "sweep": (SweepConfig, "partial_finetune.sweep:sweep"),
    "train": (TrainConfig, "partial_finetune.train:train"),
}


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    return run_cli("partial-finetune", COMMANDS, argv)
