"""The commands of ``clipsam`` and the function each one runs."""

from clipsam.configs import (
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
    "bench": (BenchConfig, "clipsam.bench:bench"),
    "demo": (DemoConfig, "clipsam.demo:demo"),
    "eval": (EvalConfig, "clipsam.evaluate:evaluate"),
    "refine": (RefineConfig, "clipsam.refine_maps:refine"),
    "segment": (SegmentConfig, "clipsam.segment:segment"),
    "train": (TrainConfig, "clipsam.train:train"),
    "train-sam": (TrainSamConfig, "clipsam.train_sam:train"),
    "train-text": (TrainTextConfig, "clipsam.train_text:train"),
}


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    return run_cli("clipsam", COMMANDS, argv)
