"""The commands of ``delta-dit`` and the function each one runs."""

from delta_dit.configs import (
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
    "analyze": (AnalyzeConfig, "delta_dit.analyze:analyze"),
    "bench": (BenchConfig, "delta_dit.bench:bench"),
    "calibrate": (CalibrateConfig, "delta_dit.calibrate:calibrate"),
    "demo": (DemoConfig, "delta_dit.demo:demo"),
    "generate": (GenerateConfig, "delta_dit.generate:generate"),
    "plan": (PlanConfig, "delta_dit.planning:plan_command"),
    "train-demo": (TrainDemoConfig, "delta_dit.train:train"),
    "train-demo-lcm": (TrainDemoLcmConfig, "delta_dit.distill:train"),
    "train-judge": (TrainJudgeConfig, "delta_dit.judge:train"),
}


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    return run_cli("delta-dit", COMMANDS, argv)
