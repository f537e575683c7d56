"""Models by a name of the hub: what it refuses is told in one line that names the cause."""

from types import SimpleNamespace

import pytest
from diffusers import DiffusionPipeline
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

from delta_dit.commands.cli import main
from delta_dit.commands.models import load_sampler
from frugal_shared.errors import RunError


def test_offline_is_one_line(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert main(["generate", "--model", "nobody/nothing", "--output-dir", "run", "--cpu"]) == 1
    told = "model='nobody/nothing' is not in the hub's cache, and HF_HUB_OFFLINE forbids to fetch it; allowed: demo,"
    [line] = capfd.readouterr().err.splitlines()
    assert line.startswith(f"delta-dit: error: {told}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "told"),
    [(GatedRepoError, "is gated on the hub"), (RepositoryNotFoundError, "is not on the hub, or is private")],
)
def test_what_the_hub_refuses_is_named(monkeypatch, kind, told):
    def refuse(*_, **__):
        response = SimpleNamespace(headers={}, request=None, status_code=401)
        raise OSError("Cannot load model") from kind("401 Client Error.", response=response)

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(DiffusionPipeline, "download", refuse)
    with pytest.raises(RunError, match=f"^model='some/model' {told}"):
        load_sampler("some/model")
