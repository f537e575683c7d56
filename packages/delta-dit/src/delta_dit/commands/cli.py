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
    "analyze": (AnalyzeConfig, "delta_dit.commands.analyze:analyze"),
    "bench": (BenchConfig, "delta_dit.commands.bench:bench"),
    "calibrate": (CalibrateConfig, "delta_dit.commands.calibrate:calibrate"),
    "demo": (DemoConfig, "delta_dit.commands.demo:demo"),
    "generate": (GenerateConfig, "delta_dit.commands.generate:generate"),
    "plan": (PlanConfig, "delta_dit.commands.plan:plan_command"),
    "train-demo": (TrainDemoConfig, "delta_dit.embedded.dit:train"),
    "train-demo-lcm": (TrainDemoLcmConfig, "delta_dit.embedded.lcm:train"),
    "train-judge": (TrainJudgeConfig, "delta_dit.embedded.judge:train"),
}


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    return run_cli("delta-dit", COMMANDS, argv)
