"""``python -m clipsam`` and the ``clipsam`` command."""

import sys


def main() -> None:
    """Run the command line, or say what it needs."""
    try:
        from clipsam.cli import main as run
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != "frugal_shared":
            raise
        sys.exit('clipsam: error: the command line needs frugal-shared: pip install "clipsam[run]"')
    sys.exit(run())


if __name__ == "__main__":
    main()
