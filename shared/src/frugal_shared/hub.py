"""Why the Hugging Face hub does not give a model, in one line; without minutes of retries where it is out of reach."""

import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from frugal_shared.errors import RunError

SECONDS = 3.0  # until the hub counts as out of reach
LOGIN = "log in with: hf auth login"
PORTS = {"http": 80, "https": 443}


class HubError(RunError):
    """The hub refuses something or is out of reach."""


@contextmanager
def hub_errors(what: str, name: str | None, allowed: str) -> Iterator[None]:
    """Name the cause if what is loaded from the hub in this ``with`` block does not come; other errors pass.

    Inside, the hub's client is silent, and makes do with its cache where the hub is out of reach.

    Args:
        what: the option, such as ``"model"``.
        name: its value; nothing is done for None or for a file or folder, which is none of the hub's.
        allowed: what it may be, for the message.

    Raises:
        HubError: whatever a library has made of the hub's own error.
    """
    if name is None or Path(name).exists():
        yield
        return
    try:
        constants: Any = import_module("huggingface_hub.constants")
    except ImportError:  # then nothing in the block can ask the hub
        yield
        return
    forbidden = constants.HF_HUB_OFFLINE
    with _silent(logging.getLogger("huggingface_hub")), _silent(logging.getLogger()):  # open_clip logs to the root
        constants.HF_HUB_OFFLINE = forbidden or _is_out_of_reach(constants.ENDPOINT)
        try:
            yield
        except Exception as error:
            if (cause := _cause(error, forbidden)) is None:
                raise
            raise HubError(f"{what}={name!r} {cause}; allowed: {allowed}") from error
        finally:
            constants.HF_HUB_OFFLINE = forbidden


@contextmanager
def _silent(logger: logging.Logger) -> Iterator[None]:
    level, handlers = logger.level, [*logger.handlers]
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.handlers[:] = handlers  # logging.error() adds one to the root


def _is_out_of_reach(endpoint: str) -> bool:
    """Return whether nobody answers there; behind a proxy, only the client could say."""
    if getproxies().keys() & {"http", "https", "all"}:
        return False
    parts = urlsplit(endpoint)
    try:
        socket.create_connection((parts.hostname, parts.port or PORTS[parts.scheme]), timeout=SECONDS).close()
    except OSError:
        return True
    return False


def _cause(error: Exception, forbidden: bool) -> str | None:
    """Return what the hub has to do with an error or with one that led to it, as the end of a sentence, or None."""
    kinds = import_module("huggingface_hub.errors")
    chain = list(_chain(error))

    def find(*kinds: type[BaseException]) -> Any:
        return next((each for each in chain if isinstance(each, kinds)), None)

    if find(kinds.GatedRepoError):
        return f"is gated on the hub: accept its conditions there, then {LOGIN}"
    if find(kinds.RepositoryNotFoundError):
        return f"is not on the hub, or is private: then {LOGIN}"
    if find(kinds.HFValidationError):
        return "is neither a folder nor a name that the hub could know"
    if find(kinds.OfflineModeIsEnabled) and forbidden:
        return "is not in the hub's cache, and HF_HUB_OFFLINE forbids to fetch it"
    status = refused.response.status_code if (refused := find(kinds.HfHubHTTPError)) else 404
    if status != 404:  # of a file that is not there, the library says more
        return f"is refused by the hub with HTTP status {status}" + (f": {LOGIN}" if status in (401, 403) else "")
    if find(kinds.LocalEntryNotFoundError, ConnectionError, TimeoutError, socket.gaierror):
        return "is not in the hub's cache, and the hub is out of reach"
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and what led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
