"""``python -m delta_dit`` and the ``delta-dit`` command."""

import sys
from importlib.util import find_spec


def main() -> None:
    """Run the command line, or say what it needs."""
    if find_spec("frugal_shared") is None:
        hint = 'in a clone of the project: pip install ./shared "./packages/delta-dit[run]"'
        sys.exit(f"delta-dit: error: the command line needs frugal-shared; {hint}")
    from delta_dit.commands.cli import main as run

    sys.exit(run())


if __name__ == "__main__":
    main()
