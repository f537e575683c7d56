"""The commands of ``clipsam`` and the function each one runs."""

from clipsam.commands.options import (
    BenchConfig,
    DemoConfig,
    EvalConfig,
    RefineConfig,
    SegmentConfig,
    TrainConfig,
    TrainSamConfig,
    TrainTextConfig,
)
from frugal_shared.cli import Commands, run_cli

COMMANDS: Commands = {
    "bench": (BenchConfig, "clipsam.commands.bench:bench"),
    "demo": (DemoConfig, "clipsam.commands.demo:demo"),
    "eval": (EvalConfig, "clipsam.commands.eval:evaluate"),
    "refine": (RefineConfig, "clipsam.commands.refine:refine"),
    "segment": (SegmentConfig, "clipsam.commands.segment:segment"),
    "train": (TrainConfig, "clipsam.commands.train:train"),
    "train-sam": (TrainSamConfig, "clipsam.embedded.sam_recipe:train"),
    "train-text": (TrainTextConfig, "clipsam.embedded.text_recipe:train"),
}


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    return run_cli("clipsam", COMMANDS, argv)
