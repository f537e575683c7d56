"""The commands of ``delta-dit`` and the function each one runs."""

from delta_dit.configs import CalibrateConfig, DemoConfig, GenerateConfig, PlanConfig, TrainDemoConfig, TrainJudgeConfig
from frugal_shared.cli import Commands, run_cli

COMMANDS: Commands = {
    "calibrate": (CalibrateConfig, "delta_dit.calibrate:calibrate"),
    "demo": (DemoConfig, "delta_dit.demo:demo"),
    "generate": (GenerateConfig, "delta_dit.generate:generate"),
    "plan": (PlanConfig, "delta_dit.planning:plan_command"),
    "train-demo": (TrainDemoConfig, "delta_dit.train:train"),
    "train-judge": (TrainJudgeConfig, "delta_dit.judge:train"),
}


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    return run_cli("delta-dit", COMMANDS, argv)
