"""Tests, and whatever they start, find a home in pytest's cache where the user's caches and settings would be."""

import gc
import os

import pytest
from faults import Laboratory

FOLDERS = {"HF_HOME": "huggingface", "TORCH_HOME": "torch", "XDG_CACHE_HOME": ".cache", "XDG_CONFIG_HOME": ".config"}
OTHERS = ("FRUGAL_CACHE", "HF_ASSETS_CACHE", "HF_HUB_CACHE", "HF_TOKEN_PATH", "HUGGINGFACE_HUB_CACHE", "MPLCONFIGDIR")


def pytest_configure(config):
    """Move the home before a library looks where it is; it stays, because converting weights takes seconds."""
    if "PYTEST_XDIST_WORKER" in os.environ:  # has inherited it
        return
    home = config.cache.mkdir("home")
    os.environ.update({name: str(home / folder) for name, folder in FOLDERS.items()})
    os.environ.update(HOME=str(home), USERPROFILE=str(home))
    for name in OTHERS:
        os.environ.pop(name, None)


@pytest.fixture(scope="session")
def laboratory(tmp_path_factory):
    """Where commands and worlds of several processes are run without a start for each; see ``tests/faults.py``."""
    laboratory = Laboratory(tmp_path_factory.mktemp("laboratory"))
    yield laboratory
    laboratory.close()


def pytest_collection_finish():
    """Spare every garbage collection the million objects of what has been imported by now."""
    gc.freeze()


def pytest_unconfigure():
    """Let the interpreter free everything at its end: some libraries complain of what is left."""
    gc.unfreeze()
