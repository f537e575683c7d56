"""Every block of code in the documentation is run, or marked as needing what is not here.

Python blocks of a page share a namespace and an empty current folder. Of shell blocks, and of commands in running text,
the options are parsed by the commands' own configs. Comments right above a block say otherwise:

- ``<!-- needs: weights -->`` (or network, gpu, compiler, data): only compiled, and our own names in it looked up
- ``<!-- run -->``: the commands of a shell block are run, too
- ``<!-- setup``, Python, ``-->``: run, and not shown
"""

import ast
import re
import shlex
from importlib import import_module
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path

import pytest

from frugal_shared.options import parse_options

ROOT = Path(__file__).parents[1]
PATTERNS = ("*.md", "docs/**/*.md", "packages/*/README.md", "shared/README.md")
PAGES = sorted(path for pattern in PATTERNS for path in ROOT.glob(pattern))
PROGRAMS = {path.name: path.name.replace("-", "_") for path in ROOT.glob("packages/*")}
OTHERS = {"pip", "uv", "python", "python3"}  # tests/test_install_hints.py reads what pip is to install
NEEDS = {"weights", "network", "gpu", "compiler", "data"}

BLOCK = re.compile(
    r"^<!-- setup\n(?P<setup>.*?)^-->$"
    r"|(?:^<!-- (?P<mark>run|needs: \w+) -->\n)?^```(?P<language>\w*)\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
INLINE = re.compile(rf"`((?:{'|'.join(PROGRAMS)})\s[^`]+)`")
LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)#\s]+)[^)]*\)")


def named(path):
    return str(path.relative_to(ROOT))


every_page = pytest.mark.parametrize("page", PAGES, ids=named)


def blocks(page):
    """Yield language, mark, code and the number of lines above the code, of every block of a page."""
    text = page.read_text()
    for found in BLOCK.finditer(text):
        part = "code" if found["setup"] is None else "setup"
        yield found["language"] or "python", found["mark"], found[part], text[: found.start(part)].count("\n")


def commands(code):
    """Yield the words of every command of a shell block, or of one in running text."""
    for line in code.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        yield from (list(group) for end, group in groupby(words, lambda word: word == "&&") if not end)


def program_of(words):
    """Return one of our programs and its arguments, however it is started; None if it is another's."""
    if words[:2] == ["accelerate", "launch"]:
        launch = import_module("accelerate.commands.launch").launch_command_parser().parse_args(words[2:])
        return launch.training_script.replace("_", "-"), launch.training_script_args
    return (words[0], words[1:]) if words[0] in PROGRAMS else None


def check_command(words):
    """Fail unless a command, its options and their values exist."""
    if (ours := program_of(words)) is not None:
        program, (name, *options) = ours
        if name != "--help":
            kind, _ = import_module(f"{PROGRAMS[program]}.commands.cli").COMMANDS[name]
            parse_options(f"{program} {name}", kind, options)
    elif words[0] in ("uvx", ".nox/uv/bin/uvx"):
        sessions = re.findall(r"^def (\w+)\(session", (ROOT / "noxfile.py").read_text(), re.MULTILINE)
        asked = [word.partition("(")[0] for word in words[3:]] if words[2] == "-s" else []
        assert set(asked) <= set(sessions)
    else:
        assert words[0] in OTHERS


def check_names(code):
    """Compile a block that cannot be run, and look up what it imports from our packages."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and node.module.partition(".")[0] in PROGRAMS.values():
            for alias in node.names:
                assert alias.name in names_of(node.module), f"{node.module}.{alias.name}"


def names_of(module):
    """Return the names in a module of ours; of one whose extra is not installed, those that it defines."""
    try:
        return dir(import_module(module))
    except ImportError:
        source = Path(find_spec(module).origin).read_text()
        return [node.name for node in ast.parse(source).body if isinstance(node, ast.ClassDef | ast.FunctionDef)]


@every_page
def test_every_block_is_of_a_known_kind(page):
    text, found = page.read_text(), list(BLOCK.finditer(page.read_text()))
    shown = [block for block in found if block["setup"] is None]
    assert len(re.findall(r"^```", text, re.MULTILINE)) == 2 * len(shown)
    marks = [block["mark"] for block in shown if block["mark"]]
    assert len(re.findall(r"^<!-- (?:needs|run|setup)", text, re.MULTILINE)) == len(marks) + len(found) - len(shown)
    assert {block["language"] for block in shown} <= {"python", "sh", "bash", "text", "bibtex"}
    assert set(marks) <= {"run", *(f"needs: {what}" for what in NEEDS)}


@every_page
def test_every_command_exists(page):
    shell = [code for language, _, code, _ in blocks(page) if language in ("sh", "bash")]
    inline = [" ".join(found.split()) for found in INLINE.findall(page.read_text())]
    for words in (words for code in (*shell, *inline) for words in commands(code)):
        check_command(words)


@every_page
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": page.stem}
    for language, mark, code, above in blocks(page):
        if language == "python" and mark:
            check_names(code)
        elif language == "python":  # errors point at the line of the page
            exec(compile("\n" * above + code, str(page), "exec"), namespace)
        elif mark == "run":
            for program, arguments in map(program_of, commands(code)):
                assert import_module(f"{PROGRAMS[program]}.commands.cli").main(arguments) == 0


@every_page
def test_every_link_to_a_file_leads_somewhere(page):
    for target in LINK.findall(page.read_text()):
        if (page.parent / target).name != "reliability.md":  # its own page, which may not have landed
            assert (page.parent / target).exists(), target


def test_the_api_pages_have_every_public_name(package, root):
    page = (root / f"docs/api/{package.name}.md").read_text()
    for name in import_module(package.module).__all__:
        assert re.search(rf"^::: {package.module}(?:\.\w+)+\.{name}$", page, re.MULTILINE), name
