"""``python -m partial_finetune`` and the ``partial-finetune`` command."""

import sys


def main() -> None:
    """Run the command line, or say what it needs."""
    try:
        from partial_finetune.cli import main as run
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != "frugal_shared":
            raise
        sys.exit('partial-finetune: error: the command line needs frugal-shared: pip install "partial-finetune[run]"')
    sys.exit(run())


if __name__ == "__main__":
    main()
