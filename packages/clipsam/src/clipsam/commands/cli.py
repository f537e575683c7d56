"""The commands of ``clipsam`` and the function each one runs."""

from clipsam.commands.options import (
    BenchConfig,
    CalibrateConfig,
    DemoConfig,
    EvalConfig,
    ExportConfig,
    RefineConfig,
    SegmentConfig,
    TrainConfig,
    TrainSamConfig,
    TrainTextConfig,
)
from frugal_shared.cli import Commands, run_cli

COMMANDS: Commands = {
    "bench": (BenchConfig, "clipsam.commands.bench:main"),
    "calibrate": (CalibrateConfig, "clipsam.commands.calibrate:main"),
    "demo": (DemoConfig, "clipsam.commands.demo:main"),
    "eval": (EvalConfig, "clipsam.commands.eval:main"),
    "export": (ExportConfig, "clipsam.commands.export:main"),
    "refine": (RefineConfig, "clipsam.commands.refine:main"),
    "segment": (SegmentConfig, "clipsam.commands.segment:main"),
    "train": (TrainConfig, "clipsam.commands.train:main"),
    "train-sam": (TrainSamConfig, "clipsam.commands.train_sam:main"),
    "train-text": (TrainTextConfig, "clipsam.commands.train_text:main"),
}


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    return run_cli("clipsam", COMMANDS, argv)
