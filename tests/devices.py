"""Where the tests marked ``gpu`` run: on CUDA, and nowhere else unless FRUGAL_TEST_DEVICE says so.

``FRUGAL_TEST_DEVICE=cpu pytest -m gpu`` tries on a CPU whether they run at all; what they claim is about a GPU.
"""

import os
import subprocess
import sys

import pytest
import torch

DEVICE = os.environ.get("FRUGAL_TEST_DEVICE") or ("cuda" if torch.cuda.is_available() else None)


def on_gpu(test):
    """Mark a test that needs a GPU."""
    return pytest.mark.gpu(pytest.mark.skipif(DEVICE is None, reason="needs a CUDA GPU")(test))


def on_gpus(test):
    """Mark a test that needs two GPUs."""
    return pytest.mark.gpu(pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA GPUs")(test))


def distance(found, wanted):
    """The relative error ‖found − wanted‖ / ‖wanted‖, in float32 on the CPU."""
    found, wanted = (values.detach().float().cpu() for values in (found, wanted))
    return ((found - wanted).norm() / wanted.norm()).item()


def run_module(module, *words, folder):
    """Run a package's command in a process of its own; fail with what it wrote if it fails."""
    ended = subprocess.run([sys.executable, "-m", module, *words], cwd=folder, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return ended
