"""On what a run ran: the machine and the versions, as they stand in manifests and in reports of benchmarks."""

import os
import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = (
    "frugal-shared",
    "torch",
    "accelerate",
    "cache-dit",
    "diffusers",
    "huggingface-hub",
    "numpy",
    "open-clip-torch",
    "pillow",
    "safetensors",
    "scikit-learn",
    "scipy",
    "segment-anything",
    "timm",
    "torchvision",
    "transformers",
)
"""The distributions whose versions may change a result."""
CPU, DRIVER = "/proc/cpuinfo", "/proc/driver/nvidia/version"  # of Linux


def machine() -> dict[str, Any]:
    """Return what the machine is called and consists of; what cannot be found out is None.

    Returns:
        ``os``, ``architecture``, ``cpu`` (its model), ``cores``, ``threads`` (that torch uses), ``gpus`` (names of
        those torch sees), ``cuda`` (that torch was built with), ``driver`` (NVIDIA's).
    """
    return {
        "os": platform.platform(),
        "architecture": platform.machine(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "cuda": torch.version.cuda,
        "driver": _found(r"Kernel Module.*?\s(\d[\d.]+)\s", DRIVER),
    }


def versions(*packages: str) -> dict[str, str | None]:
    """Return the versions of Python, of some distributions and of :data:`PACKAGES`; None of what is not installed."""
    found = {name: _version(name) for name in dict.fromkeys((*packages, *PACKAGES))}
    return found | {"python": platform.python_version()}


def _cpu() -> str | None:
    return _found(r"model name\s*:\s*(.+)", CPU) or platform.processor() or None


def _found(pattern: str, path: str) -> str | None:
    """Return what the pattern's group matches in a file of the system."""
    try:
        match = re.search(pattern, Path(path).read_text(errors="replace"))
    except OSError:
        return None
    return match[1].strip() if match else None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
