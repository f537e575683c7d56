"""Tests, and whatever they start, find a home of pytest's where the user's caches and settings would be."""

import os
import tempfile
from pathlib import Path

FOLDERS = {"HF_HOME": "huggingface", "TORCH_HOME": "torch", "XDG_CACHE_HOME": ".cache", "XDG_CONFIG_HOME": ".config"}
ELSEWHERE = ("HF_HUB_CACHE", "HF_ASSETS_CACHE", "HF_TOKEN_PATH", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")


def pytest_configure(config):
    """Move the home, before a library looks where it is; the processes of xdist inherit it."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        return
    home = tempfile.TemporaryDirectory(prefix="frugal-home-")
    config.add_cleanup(home.cleanup)
    os.environ.update({name: str(Path(home.name, folder)) for name, folder in FOLDERS.items()})
    os.environ.update(HOME=home.name, USERPROFILE=home.name)
    # these take seconds to make, and are the same in every run: weights that are checked by their hash, and fonts
    os.environ.update(FRUGAL_CACHE=str(config.cache.mkdir("weights")), MPLCONFIGDIR=str(config.cache.mkdir("fonts")))
    for name in ELSEWHERE:
        os.environ.pop(name, None)
