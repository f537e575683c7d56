import tomllib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Member:
    """A member of the workspace, as its files describe it."""

    folder: Path

    @cached_property
    def project(self):
        return tomllib.loads((self.folder / "pyproject.toml").read_text())["project"]

    @property
    def name(self):
        return self.project["name"]

    @property
    def module(self):
        return self.name.replace("-", "_")

    @property
    def source(self):
        return self.folder / "src" / self.module

    @property
    def requirements(self):
        """What it declares: its dependencies, and those of all its extras."""
        return sum(self.project.get("optional-dependencies", {}).values(), self.project["dependencies"])


PACKAGES = [Member(path.parent) for path in sorted(ROOT.glob("packages/*/pyproject.toml"))]
MEMBERS = [*PACKAGES, Member(ROOT / "shared")]


@pytest.fixture
def root():
    return ROOT


@pytest.fixture
def versions():
    """The version of every member, by name."""
    return {member.name: member.project["version"] for member in MEMBERS}


@pytest.fixture(params=PACKAGES, ids=lambda member: member.name)
def package(request):
    """Each of the four packages."""
    return request.param


@pytest.fixture(params=MEMBERS, ids=lambda member: member.name)
def member(request):
    """Each of the four packages, and frugal-shared."""
    return request.param


def pytest_collection_modifyitems(items):
    """Keep the tests of a package's commands together: each process that runs some has to import the package.

    They take long, and so come first: what is left for a worker without work are short ones.
    """
    items.sort(key=lambda item: str(item.callspec.params.get("command", "~")) if hasattr(item, "callspec") else "~")
