"""What the manifest says about the machine, the versions and the code."""

import json
import platform
import shutil
import subprocess
from importlib.metadata import version
from types import SimpleNamespace

import pytest
import torch

from frugal_shared import machine as machine_module
from frugal_shared.config import RunConfig
from frugal_shared.machine import machine, versions
from frugal_shared.run import Run, _git_commit

DRIVERS = {
    "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023\n": "535.104.05",
    "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  550.54.15  Release Build  (b)\n": "550.54.15",
    "something else\n": None,
}


@pytest.fixture
def manifest(tmp_path):
    with Run(RunConfig(output_dir=tmp_path / "run", cpu=True), "frugal-shared") as run:
        return json.loads((run.folder / "manifest.json").read_text())


def test_it_holds_machine_and_versions(manifest):
    assert manifest["machine"] == machine()
    assert manifest["versions"] == versions()


def test_machine_is_this_one():
    found = machine()
    assert found["os"] == platform.platform()
    assert found["threads"] == torch.get_num_threads()
    assert found["cuda"] == torch.version.cuda
    assert found["cpu"]


def test_gpus_are_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"GPU {index}")
    assert machine()["gpus"] == ["GPU 0", "GPU 1"]


@pytest.mark.parametrize("text", DRIVERS)
def test_driver_is_read_where_the_kernel_tells_it(tmp_path, monkeypatch, text):
    (tmp_path / "version").write_text(text)
    monkeypatch.setattr(machine_module, "DRIVER", str(tmp_path / "version"))
    assert machine()["driver"] == DRIVERS[text]


def test_a_machine_that_tells_nothing_is_no_error(tmp_path, monkeypatch):
    monkeypatch.setattr(machine_module, "DRIVER", str(tmp_path / "absent"))
    monkeypatch.setattr(machine_module, "CPU", str(tmp_path))
    monkeypatch.setattr(platform, "processor", lambda: "")
    assert (machine()["driver"], machine()["cpu"]) == (None, None)


def test_versions_tell_what_is_installed_and_what_is_not():
    found = versions("pytest", "no-such-distribution")
    assert found["pytest"] == version("pytest")
    assert found["no-such-distribution"] is None
    assert found["python"] == platform.python_version()
    recorded = {"transformers", "torchvision", "scipy", "cache-dit", "segment-anything", "huggingface-hub"}
    assert recorded | {"scikit-learn", "pillow", "torch", "accelerate", "frugal-shared"} <= found.keys()


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A user's own project under git, and ``some_package`` below it, which is not committed."""
    if shutil.which("git") is None:
        pytest.skip("no git")
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):  # of a hook that runs the tests
        monkeypatch.delenv(name, raising=False)

    def git(*arguments):
        identity = ["-c", "user.name=Nobody", "-c", "user.email=nobody@example.org", "-c", "commit.gpgsign=false"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    package = tmp_path / "venv" / "site-packages" / "some_package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (tmp_path / "train.py").write_text("")
    git("init")
    git("add", "train.py")
    git("commit", "-m", "mine")
    module = SimpleNamespace(__file__=str(package / "__init__.py"))
    monkeypatch.setattr("frugal_shared.run.import_module", lambda _: module)
    return git


def test_the_commit_is_not_that_of_a_project_it_is_installed_below(project):
    assert _git_commit("some-package") is None


def test_the_commit_is_that_of_the_checkout(project):
    project("add", "venv")
    project("commit", "-m", "package")
    assert _git_commit("some-package") == project("rev-parse", "HEAD")


def test_no_git_no_commit(project, monkeypatch):
    project("add", "venv")
    monkeypatch.setenv("PATH", "")
    assert _git_commit("some-package") is None
