"""``python -m bdp_nas`` and the ``bdp-nas`` command."""

import sys
from importlib.util import find_spec


def main() -> None:
    """Run the command line, or say what it needs."""
    if find_spec("frugal_shared") is None:
        hint = 'in a clone of the project: pip install ./shared "./packages/bdp-nas[run]"'
        sys.exit(f"bdp-nas: error: the command line needs frugal-shared; {hint}")
    from bdp_nas.commands.cli import main as run

    sys.exit(run())


if __name__ == "__main__":
    main()
