"""The commands of ``partial-finetune``: none yet, because no method has landed."""

from frugal_shared.cli import Commands, run_cli

COMMANDS: Commands = {}


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    return run_cli("partial-finetune", COMMANDS, argv)
