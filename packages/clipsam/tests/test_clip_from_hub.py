import pytest
from huggingface_hub import constants

from clipsam.commands.models import backbone_of
from clipsam.commands.options import ClipConfig
from frugal_shared.errors import RunError


def test_a_clip_that_the_hub_does_not_give_is_one_line(monkeypatch, capfd, caplog):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    config = ClipConfig(clip="ViT-B-32", clip_weights="openai")
    told = "^clip_weights='openai' is not in the hub's cache, and HF_HUB_OFFLINE forbids to fetch it; allowed: "
    with pytest.raises(RunError, match=told):
        backbone_of(config, stages=(5,))
    assert not caplog.messages
    assert capfd.readouterr().err == ""
