import re
import tomllib

import pytest
import yaml

UVX = "python3 -m pip install --upgrade --target .nox/uv uv && .nox/uv/bin/uvx nox -s "  # as in the README


def filled(line, values):
    """Return a command with the values of the matrix put in."""
    return re.sub(r"\$\{\{ matrix\.(\w+) \}\}", lambda key: values[key[1]], line)


@pytest.fixture
def jobs(root):
    """The commands of each job, by its name and the values of its matrix."""
    found = {}
    for path in root.glob(".github/workflows/*.yml"):
        for name, job in yaml.safe_load(path.read_text())["jobs"].items():
            matrix = job.get("strategy", {}).get("matrix", {})
            listed = [{key: value} for key, values in matrix.items() if key != "include" for value in values]
            for values in [*listed, *matrix.get("include", [])] or [{}]:
                commands = [step["run"] for step in job["steps"] if "run" in step]
                found[(name, *values.values())] = [filled(line, values) for line in commands]
    return found


def test_the_workflows_run_sessions_of_nox_by_the_readmes_command(jobs, root):
    sessions = set(re.findall(r"^def (\w+)\(session", (root / "noxfile.py").read_text(), re.MULTILINE))
    for lines in jobs.values():
        for line in lines:
            assert line.startswith(UVX)
            asked = re.sub(r" -P [\d.]+", "", line.removeprefix(UVX)).split()
            assert {word.strip('"').partition("(")[0] for word in asked} <= sessions, line


def test_every_commit_is_tested_with_the_first_and_the_last_python(jobs, member):
    named = re.findall(r"Python :: (3\.\d+)", " ".join(member.project["classifiers"]))
    pythons = [
        re.search(r" -P (\S+)", line)[1] for (name, *_), lines in jobs.items() if name == "tests" for line in lines
    ]
    assert pythons == [named[0], named[-1]]


def test_every_package_has_its_wheels_tried(jobs, member):
    assert ("wheels", member.name) in jobs


def test_the_issue_forms_name_every_package(root, member):
    for name in ("bug", "request"):
        form = yaml.safe_load((root / f".github/ISSUE_TEMPLATE/{name}.yml").read_text())
        assert member.name in form["body"][0]["attributes"]["options"]


def test_pre_commit_has_the_ruff_of_lint(root):
    hooks = yaml.safe_load((root / ".pre-commit-config.yaml").read_text())["repos"]
    [rev] = [repo["rev"] for repo in hooks if repo["repo"].endswith("/ruff-pre-commit")]
    assert (
        f"ruff=={rev.removeprefix('v')}"
        in tomllib.loads((root / "pyproject.toml").read_text())["tool"]["uv"]["constraint-dependencies"]
    )
