"""The commands of ``partial-finetune``: none yet, because no method has landed."""

import argparse
import sys
from importlib.metadata import metadata

from frugal_shared.cli import Commands

COMMANDS: Commands = {}


def main(argv: list[str] | None = None) -> int:
    """Answer ``--help`` and ``--version``, refuse anything else, and return the exit code."""
    about = metadata("partial-finetune")
    purpose = f"{about['Summary']}. No method has landed yet, so there is no command to run."
    parser = argparse.ArgumentParser("partial-finetune", description=purpose)
    parser.add_argument("--version", action="version", version=f"partial-finetune {about['Version']}")
    _, unknown = parser.parse_known_args(argv)
    if unknown:
        sys.stderr.write(f"partial-finetune: error: {unknown[0]!r} is unknown; allowed: --help, --version\n")
        return 2
    parser.print_help()
    return 0
