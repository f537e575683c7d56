"""The commands of ``delta-dit`` and the function each one runs."""

from delta_dit.configs import DemoConfig, TrainDemoConfig, TrainJudgeConfig
from frugal_shared.cli import Commands, run_cli

COMMANDS: Commands = {
    "demo": (DemoConfig, "delta_dit.demo:demo"),
    "train-demo": (TrainDemoConfig, "delta_dit.train:train"),
    "train-judge": (TrainJudgeConfig, "delta_dit.judge:train"),
}


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    return run_cli("delta-dit", COMMANDS, argv)
