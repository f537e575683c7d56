"""What a page or an error message says to install can be installed today: from a clone, or from the repository by git.

``nox -s wheels`` runs the READMEs' commands with real pip.
"""

import ast
import re
import shlex
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
FOLDERS = [ROOT / "shared", *ROOT.glob("packages/*")]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *(folder / "README.md" for folder in FOLDERS)]
SOURCES = [path for folder in FOLDERS for path in folder.glob("src/**/*.py")]
PROJECTS = {folder: tomllib.loads((folder / "pyproject.toml").read_text())["project"] for folder in FOLDERS}
NAMES = {project["name"]: folder for folder, project in PROJECTS.items()}
ADVICE = re.compile(r"\bpip install ((?:[^`\n\\]|\\\n)+)")
REPOSITORY = re.compile(r"https://github\.com/([\w.-]+/frugal-vision)\b")


def texts_of(path):
    """Yield a page, or the strings of a file of Python; what an f-string puts in is left out."""
    if path.suffix == ".md":
        yield path.read_text()
        return
    nodes = list(ast.walk(ast.parse(path.read_text())))
    joined = [node.values for node in nodes if isinstance(node, ast.JoinedStr)]
    alone = [[node] for node in nodes if isinstance(node, ast.Constant) and not any(node in parts for parts in joined)]
    for parts in (*joined, *alone):
        yield "".join(str(part.value) for part in parts if isinstance(part, ast.Constant))


def advice():
    """Yield every file that says what to install, and the words behind ``pip install``."""
    for path in (*PAGES, *SOURCES):
        for found in (found for text in texts_of(path) for found in ADVICE.findall(text)):
            words = shlex.split(found.replace("\\\n", " "), comments=True)
            yield path.relative_to(ROOT).as_posix(), words[: words.index("&&")] if "&&" in words else words


def wanted(word):
    """Return the folder of what a word installs, and the extras; None if it is not ours."""
    if word.startswith("./"):
        path, _, extras = word.rstrip("]").partition("[")
        return ROOT / path, set(extras.split(",")) - {""}
    if " @ git+" in word:
        requirement = Requirement(word)
        assert requirement.url.endswith(f"#subdirectory={NAMES[requirement.name].relative_to(ROOT).as_posix()}")
        return NAMES[requirement.name], requirement.extras
    assert re.split(r"[\[=<>~]", word)[0] not in NAMES, f"{word!r} is not on a package index"
    return None


def test_what_is_advised_can_be_installed():
    given = list(advice())
    assert {"packages/delta-dit/src/delta_dit/__main__.py", "docs/index.md", "shared/README.md"} <= {
        at for at, _ in given
    }
    for at, words in given:
        folders = dict(filter(None, map(wanted, words)))
        for folder, extras in folders.items():
            optional = PROJECTS[folder]["optional-dependencies"]
            assert extras <= optional.keys(), (at, words)
            lines = [*PROJECTS[folder]["dependencies"], *(line for extra in extras for line in optional[extra])]
            needed = {NAMES[name] for line in lines if (name := Requirement(line).name) in NAMES}
            assert needed <= folders.keys(), (at, words)  # pip does not read the workspace


def test_every_readme_has_a_command_for_a_clone_and_one_for_git(member):
    text = (member.folder / "README.md").read_text()
    clone, git = re.findall(r"^pip install (?:.*\\\n)*.*$", text, re.MULTILINE)
    for command in (clone, git):
        words = shlex.split(command.replace("\\\n", ""))[2:]
        assert {wanted(word)[0] for word in words} == {ROOT / "shared", member.folder}
        assert all(("git+https:" in word) == (command is git) for word in words)


def test_the_address_of_the_project_is_the_same_everywhere():
    files = [*PAGES, *ROOT.glob(".github/**/*.*"), *(folder / "pyproject.toml" for folder in FOLDERS)]
    found = {path: set(REPOSITORY.findall(path.read_text())) for path in files}
    assert len(set().union(*found.values())) == 1, found


def test_what_a_project_links_to_exists(member):
    for url in member.project["urls"].values():
        assert REPOSITORY.match(url)
        assert (ROOT / url.partition("/blob/main/")[2]).exists(), url
