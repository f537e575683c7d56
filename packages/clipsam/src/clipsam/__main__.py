"""``python -m clipsam`` and the ``clipsam`` command."""

import sys
from importlib.util import find_spec


def main() -> None:
    """Run the command line, or say what it needs."""
    if find_spec("frugal_shared") is None:
        hint = 'in a clone of the project: pip install ./shared "./packages/clipsam[run]"'
        sys.exit(f"clipsam: error: the command line needs frugal-shared; {hint}")
    from clipsam.commands.cli import main as run

    sys.exit(run())


if __name__ == "__main__":
    main()
