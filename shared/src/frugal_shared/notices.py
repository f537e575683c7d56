"""Remarks that end nothing: one line for the person at the terminal, from one of the processes."""

import logging
import sys


def warn(message: str) -> None:
    """Log a warning of ``frugal_shared``, which goes to the standard error where nobody has said otherwise."""
    distributed = sys.modules.get("torch.distributed")
    if distributed and distributed.is_available() and distributed.is_initialized() and distributed.get_rank() > 0:
        return
    logging.getLogger("frugal_shared").warning(message)
