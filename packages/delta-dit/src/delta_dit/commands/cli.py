"""The commands of ``delta-dit`` and the function each one runs."""

from delta_dit.commands.options import (
    AnalyzeConfig,
    BenchConfig,
    CalibrateConfig,
    DemoConfig,
    GenerateConfig,
    PlanConfig,
    TrainDemoConfig,
    TrainDemoLcmConfig,
    TrainJudgeConfig,
)
from frugal_shared.cli import Commands, run_cli

COMMANDS: Commands = {
    "analyze": (AnalyzeConfig, "delta_dit.commands.analyze:main"),
    "bench": (BenchConfig, "delta_dit.commands.bench:main"),
    "calibrate": (CalibrateConfig, "delta_dit.commands.calibrate:main"),
    "demo": (DemoConfig, "delta_dit.commands.demo:main"),
    "generate": (GenerateConfig, "delta_dit.commands.generate:main"),
    "plan": (PlanConfig, "delta_dit.commands.plan:main"),
    "train-demo": (TrainDemoConfig, "delta_dit.commands.train_demo:main"),
    "train-demo-lcm": (TrainDemoLcmConfig, "delta_dit.commands.train_demo_lcm:main"),
    "train-judge": (TrainJudgeConfig, "delta_dit.commands.train_judge:main"),
}


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    return run_cli("delta-dit", COMMANDS, argv)
