import os
import re

import yaml

# `--target` because a Python that is managed from outside, as Debian's is, refuses `pip install` without it; uv in a
# folder of the clone because that need not be on the PATH, nor be taken away again
UVX = "python3 -m pip install --upgrade --target .nox/uv uv && .nox/uv/bin/uvx"
DEMO = f"{UVX} nox -s demo"
TESTS = f"{UVX} nox -s tests"


def test_the_first_screen_of_the_readme_gives_the_two_commands(root):
    first_screen = (root / "README.md").read_text().splitlines()[:30]
    assert DEMO in first_screen
    assert TESTS in first_screen


def test_ci_runs_the_readmes_test_command_last(root):
    script = root / ".ci/run"
    assert os.access(script, os.X_OK)
    # last, because `set -e` would pass over a failing `pip install` of an && list in the middle
    assert script.read_text().splitlines()[-1] == TESTS


def test_every_readme_cites_its_paper_as_citation_cff_does(package, root):
    papers = yaml.safe_load((root / "CITATION.cff").read_text())["references"]
    [paper] = [paper for paper in papers if paper["notes"].endswith(f" {package.name}.")]
    block = re.search(r"^```bibtex\n@misc{\w+,\n(.*?)^}\n```$", (package.folder / "README.md").read_text(), re.M | re.S)
    entry = dict(re.findall(r"^  (\w+) = \{(.*)\},$", block[1], re.MULTILINE))
    assert entry.pop("title").strip("{}").replace(r"$\Delta$", "Δ") == paper["title"]
    assert entry.pop("author") == " and ".join(
        f"{who['family-names']}, {who['given-names']}" for who in paper["authors"]
    )
    assert entry == {"year": str(paper["year"]), "eprint": paper["url"].rpartition("/")[2], "archivePrefix": "arXiv"}
