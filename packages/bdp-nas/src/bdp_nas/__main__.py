"""``python -m bdp_nas`` and the ``bdp-nas`` command."""

import sys
from importlib.util import find_spec


def main() -> None:
    """Run the command line, or say what it needs."""
    if find_spec("frugal_shared") is None:
        sys.exit('bdp-nas: error: the command line needs frugal-shared: pip install "bdp-nas[run]"')
    from bdp_nas.commands.cli import main as run

    sys.exit(run())


if __name__ == "__main__":
    main()
