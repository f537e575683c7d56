import json
import subprocess
import sys
from importlib import import_module

import pytest

HEAVY = {"torch", "torchvision", "diffusers", "transformers", "accelerate", "timm", "open_clip", "segment_anything"}

# runs `python -m <module> *argv`, then prints the exit code and the imported modules as one line
PROBE = """
import json, runpy, sys
module, *sys.argv[1:] = sys.argv[1:]
try:
    runpy.run_module(module, run_name="__main__", alter_sys=True)
except SystemExit as end:
    print("\\n" + json.dumps([end.code, sorted({name.partition(".")[0] for name in sys.modules})]))
"""
# prints every command's exit code and text of `<command> --help`, and the imported modules
HELP = """
import contextlib, io, json, sys
from importlib import import_module
cli, told = import_module(sys.argv[1] + ".commands.cli"), {}
for name in cli.COMMANDS:
    with contextlib.redirect_stdout(io.StringIO()) as text:
        told[name] = cli.main([name, "--help"]), text.getvalue()
print(json.dumps([told, sorted({name.partition(".")[0] for name in sys.modules})]))
"""
# as if frugal-shared were not installed, nor what it brings
HIDE_SHARED = "import sys; sys.modules |= dict.fromkeys(['frugal_shared', 'tyro'])\n"


def command(package, *argv):
    """Run ``python -m <module> *argv``."""
    return subprocess.run([sys.executable, "-m", package.module, *argv], capture_output=True, text=True)


def probe(package, *argv, before=""):
    """Return exit code, stdout, stderr and the imported modules of ``python -m <module> *argv``."""
    arguments = [sys.executable, "-c", before + PROBE, package.module, *argv]
    result = subprocess.run(arguments, capture_output=True, text=True)
    *lines, last = result.stdout.splitlines()
    code, modules = json.loads(last)
    return code, " ".join(lines), result.stderr, modules


def test_help_names_the_commands_and_imports_no_torch(package):
    code, out, err, modules = probe(package, "--help")
    assert (code, err) == (0, "")
    assert package.name in out
    for name in import_module(f"{package.module}.commands.cli").COMMANDS:
        assert name in out
    assert package.module in modules
    assert not HEAVY & set(modules)


def test_import_brings_in_no_torch_and_none_of_the_host_library(package):
    code = f"import sys, {package.module}, {package.module}.commands.cli; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not (HEAVY | {"numpy", "sklearn"}) & set(result.stdout.split())


def test_everything_at_the_door_is_there(package):
    module = import_module(package.module)
    assert all(getattr(module, name) for name in module.__all__)
    with pytest.raises(AttributeError, match="attribute Nothing"):
        _ = module.Nothing


def test_help_of_every_command_imports_no_torch(package):
    result = subprocess.run([sys.executable, "-c", HELP, package.module], capture_output=True, text=True, check=True)
    told, modules = json.loads(result.stdout)
    assert result.stderr == ""
    assert told.keys() == import_module(f"{package.module}.commands.cli").COMMANDS.keys()
    for name, (code, text) in told.items():
        assert code == 0, name
        assert "--debug" in text, f"{name} takes no CommandConfig"
    assert not HEAVY & set(modules)


def test_version(package):
    result = command(package, "--version")
    assert (result.returncode, result.stdout) == (0, f"{package.name} {package.project['version']}\n")


@pytest.mark.parametrize("argument", ["no-such-command", "--no-such-option"])
def test_what_is_unknown_is_refused_in_one_line(package, argument):
    result = command(package, argument)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"{package.name}: error: ")
    assert argument in result.stderr
    assert result.stderr.count("\n") == 1


def test_an_unknown_option_of_a_command_is_refused_in_one_line(package, capsys):
    cli = import_module(f"{package.module}.commands.cli")
    for name in cli.COMMANDS:
        assert cli.main([name, "--no-such-option"]) == 2, name
        told = capsys.readouterr().err
        assert "--no-such-option" in told
        assert told.count("\n") == 1


def test_without_frugal_shared_the_command_says_what_to_install(package):
    code, out, err, _ = probe(package, "--help", before=HIDE_SHARED)
    hint = f'in a clone of the project: pip install ./shared "./packages/{package.name}[run]"'
    line = f"{package.name}: error: the command line needs frugal-shared; {hint}"
    assert (code, out.strip(), err) == (line, "", "")


def test_without_frugal_shared_the_library_is_whole_and_does_its_work(package, root):
    # `nox -s wheels` runs the example beside nothing but the package's own dependencies
    example = root / f"tests/library/{package.module}_alone.py"
    names = import_module(package.module).__all__
    code = f"""{HIDE_SHARED}
import runpy, {package.module} as library
runpy.run_path({str(example)!r})
for name in {names}:
    getattr(library, name)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_num_processes_starts_the_packages_own_workers(package, monkeypatch):
    """That they then run, and are one run, is proved in ``test_launch.py`` and ``test_distributed.py``."""
    started = []
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr("torch.distributed.run.run", started.append)
    argv = ["demo", "--cpu", "--num-processes", "2"]
    assert import_module(f"{package.module}.commands.cli").main(argv) == 0
    (options,) = started
    assert (options.nproc_per_node, options.training_script) == ("2", sys.executable)
    assert options.training_script_args == ["-P", "-u", "-m", package.module, *argv]
