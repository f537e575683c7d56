"""``python -m partial_finetune`` and the ``partial-finetune`` command."""

import sys
from importlib.util import find_spec


def main() -> None:
    """Run the command line, or say what it needs."""
    if find_spec("frugal_shared") is None:
        hint = 'in a clone of the project: pip install ./shared "./packages/partial-finetune[run]"'
        sys.exit(f"partial-finetune: error: the command line needs frugal-shared; {hint}")
    from partial_finetune.commands.cli import main as run

    sys.exit(run())


if __name__ == "__main__":
    main()
