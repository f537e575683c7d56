"""The commands of ``delta-dit`` and the function each one runs."""

from delta_dit.configs import TrainDemoConfig
from frugal_shared.cli import Commands, run_cli

COMMANDS: Commands = {
    "train-demo": (TrainDemoConfig, "delta_dit.train:train"),
}


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    return run_cli("delta-dit", COMMANDS, argv)
