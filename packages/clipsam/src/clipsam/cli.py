"""The commands of ``clipsam``: none yet, because no method has landed."""

import argparse
import sys
from importlib.metadata import metadata

from frugal_shared.cli import Commands

COMMANDS: Commands = {}


def main(argv: list[str] | None = None) -> int:
    """Answer ``--help`` and ``--version``, refuse anything else, and return the exit code."""
    about = metadata("clipsam")
    purpose = f"{about['Summary']}. No method has landed yet, so there is no command to run."
    parser = argparse.ArgumentParser("clipsam", description=purpose)
    parser.add_argument("--version", action="version", version=f"clipsam {about['Version']}")
    _, unknown = parser.parse_known_args(argv)
    if unknown:
        sys.stderr.write(f"clipsam: error: {unknown[0]!r} is unknown; allowed: --help, --version\n")
        return 2
    parser.print_help()
    return 0
