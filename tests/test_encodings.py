"""Every command's help, and its tables, where the output is not UTF-8: a log in ASCII, or a file on Windows."""

import os
import subprocess
import sys

import pytest

HELP = """
import sys
from {module}.__main__ import main
from {module}.commands.cli import COMMANDS

codes = set()
for name in (None, *COMMANDS):
    sys.argv = ["{module}", *([name] if name else []), "--help"]
    try:
        main()
    except SystemExit as ended:
        codes.add(ended.code)
sys.exit(codes != {{0}})
"""


def run(folder, encoding, *words):
    environment = os.environ | {"PYTHONIOENCODING": encoding, "COLUMNS": "200"}
    ended = subprocess.run([sys.executable, *words], cwd=folder, env=environment, capture_output=True, timeout=300)
    return ended.returncode, ended.stdout.decode(encoding), ended.stderr.decode(encoding)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_help_of_every_command(package, encoding, tmp_path):
    code, out, errors = run(tmp_path, encoding, "-c", HELP.format(module=package.module))
    assert (code, errors) == (0, "")
    assert f"usage: {package.name}" in out


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_table_with_symbols(encoding, tmp_path):
    """A plan is one of Δ, which neither encoding has."""
    code, out, errors = run(tmp_path, encoding, "-m", "delta_dit", "plan")
    assert (code, errors) == (0, "")
    assert "| forecast of ? |" in out
