"""``python -m delta_dit`` and the ``delta-dit`` command."""

import sys


def main() -> None:
    """Run the command line, or say what it needs."""
    try:
        from delta_dit.cli import main as run
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != "frugal_shared":
            raise
        sys.exit('delta-dit: error: the command line needs frugal-shared: pip install "delta-dit[run]"')
    sys.exit(run())


if __name__ == "__main__":
    main()
