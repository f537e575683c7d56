"""Why the hub does not give a model: one line that names the cause, whatever a library makes of the hub's error."""

import logging
import re
import socket
from types import SimpleNamespace

import pytest
from huggingface_hub import constants, errors

from frugal_shared import hub
from frugal_shared.errors import RunError
from frugal_shared.hub import hub_errors


def http(kind, status):
    """Return an error of the hub's client as it is raised for such an answer."""
    request = SimpleNamespace(url="somewhere")
    return kind("raw\n\nlines", response=SimpleNamespace(headers={}, request=request, status_code=status))


@pytest.fixture
def reachable(monkeypatch):
    """The hub, as far as a connection tells, which is counted."""
    calls = []

    def connect(address, timeout):
        calls.append(address)
        return SimpleNamespace(close=lambda: None)

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "create_connection", connect)
    monkeypatch.setattr(hub, "getproxies", dict)
    return calls


def told(error, wrapped=None):
    """Return what is told of an error inside, of which a library has perhaps made another one."""
    with pytest.raises(RunError) as caught, hub_errors("model", "some/model", "a hub name, or a folder"):
        if wrapped is None:
            raise error
        try:
            raise error
        except Exception as cause:
            raise wrapped from cause
    message = str(caught.value)
    assert message.startswith("model='some/model' ") and message.endswith("; allowed: a hub name, or a folder")
    assert "\n" not in message
    return message


CAUSES = {
    "gated, not logged in": (http(errors.GatedRepoError, 401), "is gated on the hub: .* log in with"),
    "gated, not on the list": (http(errors.GatedRepoError, 403), "is gated on the hub: .* log in with"),
    "absent or private": (http(errors.RepositoryNotFoundError, 401), "is not on the hub, or is private: .* log in"),
    "bad token": (http(errors.HfHubHTTPError, 401), "is refused by the hub with HTTP status 401: log in"),
    "forbidden": (http(errors.HfHubHTTPError, 403), "is refused by the hub with HTTP status 403: log in"),
    "busy": (http(errors.HfHubHTTPError, 429), "is refused by the hub with HTTP status 429;"),
    "no name": (errors.HFValidationError("a/b/c"), "is neither a folder nor a name"),
    "not cached": (errors.LocalEntryNotFoundError("no"), "is not in the hub's cache, and the hub is out of reach"),
    "no DNS": (socket.gaierror(-2, "Name or service not known"), "the hub is out of reach"),
    "slow": (TimeoutError(), "the hub is out of reach"),
    "cut off": (errors.OfflineModeIsEnabled("offline"), "is not in the hub's cache, and the hub is out of reach"),
}


@pytest.mark.parametrize("wrapped", [None, OSError("does not appear to have a file"), RuntimeError("failed")])
@pytest.mark.parametrize("case", CAUSES)
def test_the_cause_is_named(reachable, case, wrapped):
    error, expected = CAUSES[case]
    assert re.search(expected, told(error, wrapped))


def test_offline_by_order_is_told_as_such(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "and HF_HUB_OFFLINE forbids to fetch it" in told(errors.OfflineModeIsEnabled("offline"))


@pytest.mark.parametrize("error", [ValueError("bad weights"), KeyboardInterrupt(), http(errors.HfHubHTTPError, 404)])
def test_other_errors_pass(reachable, error):
    with pytest.raises(type(error)) as caught, hub_errors("model", "some/model", "a folder"):
        raise error
    assert caught.value is error


def test_out_of_reach_only_the_cache_is_asked(monkeypatch):
    def refuse(*_, **__):
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(hub, "getproxies", dict)
    with hub_errors("model", "some/model", "a folder"):
        assert constants.HF_HUB_OFFLINE
    assert not constants.HF_HUB_OFFLINE


def test_in_reach_the_hub_is_asked(reachable):
    with hub_errors("model", "some/model", "a folder"):
        assert not constants.HF_HUB_OFFLINE
    assert len(reachable) == 1


def test_a_folder_is_none_of_the_hubs(reachable, tmp_path):
    for name in (None, str(tmp_path)):
        with pytest.raises(TimeoutError), hub_errors("model", name, "a folder"):
            raise TimeoutError
    assert not reachable


@pytest.mark.parametrize("offline", [True, False])
def test_where_no_connection_would_tell_anything_none_is_made(reachable, monkeypatch, offline):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(hub, "getproxies", lambda: {"https": "proxy:8080"})
    with hub_errors("model", "some/model", "a folder"):
        assert offline == constants.HF_HUB_OFFLINE
    assert not reachable


def test_the_client_is_silent_inside_and_speaks_again(reachable, caplog):
    client = logging.getLogger("huggingface_hub.utils._http")
    levels = [logging.getLogger(name).level for name in (None, "huggingface_hub")]
    with pytest.raises(RunError), hub_errors("model", "some/model", "a folder"):
        client.warning("Retrying in 1s [Retry 1/5].")
        logging.error("Failed to download weights")
        raise TimeoutError
    assert not caplog.messages
    assert [logging.getLogger(name).level for name in (None, "huggingface_hub")] == levels


def test_a_real_request_without_network_is_one_line_at_once(tmp_path, monkeypatch, caplog, capfd):
    from huggingface_hub import hf_hub_download

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(RunError, match="is not in the hub's cache"), hub_errors("model", "some/model", "a folder"):
        hf_hub_download("some/model", "config.json", cache_dir=tmp_path)
    assert not caplog.messages
    assert capfd.readouterr() == ("", "")
