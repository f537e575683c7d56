import os
import re

DEMO = "pip install uv && uvx nox -s demo"
TESTS = "pip install uv && uvx nox -s tests"


def test_the_first_screen_of_the_readme_gives_the_two_commands(root):
    first_screen = (root / "README.md").read_text().splitlines()[:30]
    assert DEMO in first_screen
    assert TESTS in first_screen


def test_ci_runs_the_readmes_test_command_last(root):
    script = root / ".ci/run"
    assert os.access(script, os.X_OK)
    # last, because `set -e` would pass over a failing `pip install` of an && list in the middle
    assert script.read_text().splitlines()[-1] == TESTS


def test_every_readme_says_how_to_install_it_from_a_clone(package):
    # both folders in one command, because pip does not know the workspace
    command = rf"^pip install \./shared \"?\./packages/{package.name}\b"
    assert re.search(command, (package.folder / "README.md").read_text(), re.MULTILINE)
