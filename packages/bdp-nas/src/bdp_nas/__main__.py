"""``python -m bdp_nas`` and the ``bdp-nas`` command."""

import sys


def main() -> None:
    """Run the command line, or say what it needs."""
    try:
        from bdp_nas.cli import main as run
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != "frugal_shared":
            raise
        sys.exit('bdp-nas: error: the command line needs frugal-shared: pip install "bdp-nas[run]"')
    sys.exit(run())


if __name__ == "__main__":
    main()
