"""The errands that concern every package: ``uvx nox -l`` lists them, ``uvx nox -s demo`` runs one.

A session syncs an environment below ``.nox`` with uv and runs its commands there with ``uv run``. The sessions that
need all packages share ``.nox/all``, because torch makes every environment 6 GB. With ``-P 3.14`` that Python is taken,
in environments of its own, such as ``.nox/all-3.14``; else the first one that uv finds.
"""

import io
import itertools
import json
import os
import re
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "none"  # uv makes the environments, see sync()
nox.options.sessions = ["lint", "typing", "tests"]

ROOT = Path(__file__).parent
UV = os.environ.get("UV", "uv")  # uvx names itself here; it need not be on the PATH
FOLDERS = {
    "delta-dit": "packages/delta-dit",
    "clipsam": "packages/clipsam",
    "partial-finetune": "packages/partial-finetune",
    "bdp-nas": "packages/bdp-nas",
    "frugal-shared": "shared",
}
COMMANDS = [name for name in FOLDERS if name != "frugal-shared"]
# what `wheels` runs of every package: the extras that it takes, and a cheap command that does its work
REAL_COMMANDS = {
    "delta-dit": ("run", "plan --steps 20 --blocks 28 --speedup 1.6 --schedule paper --json plan.json"),
    "clipsam": ("run,demo", "eval --data procedural --samples 6 --stages clip --cpu"),
    "partial-finetune": (
        "run,demo",
        "train --data digits --samples 40 --val-samples 20 --epochs 1 --strategy linear --image-size 28 --cpu",
    ),
    "bdp-nas": ("run", "search --samples 100 --epochs 1 --cells 1 --channels 4 --cpu"),
}
EXTRAS = {
    "delta-dit": ["run", "bench", "scores"],
    "clipsam": ["run", "demo", "hf", "hq", "onnx"],
    "partial-finetune": ["run", "demo"],
    "bdp-nas": ["run", "demo", "onnx"],
    "frugal-shared": ["demo"],
}
DEMOS = ["delta-dit", "clipsam", "partial-finetune", "bdp-nas"]  # the packages whose `demo` command has landed
EVERYTHING = ["--all-packages", "--extra", "run", "--extra", "demo", "--group", "test"]

ODD_DIGITS = " ".join(
    str(label) for label in range(40) if label // 4 % 2 == 1
)  # the plans were made with the even ones
SCORES = ["std", "dual", "mean_prob", "loss", "abs_delta", "el2n", "forgetting", "entropy", "random"]
ABLATE = "bdp-nas ablate --preset small --seeds 5 --cpu"
DEMO_BENCH = f"delta-dit bench --seeds 3 --samples 400 --labels {ODD_DIGITS} --cpu"
EXACT_BENCH = f"delta-dit bench --target exact --seeds 3 --samples 400 --labels {ODD_DIGITS} --cpu"
# every plan with each forecast, of Δ and of features
ABLATED = " ".join(
    [
        f"{plan}-{forecast}{kept}"
        for plan in ("paper", "generic", "calibrated")
        for forecast in ("held", "linear")
        for kept in ("", "-features")
    ]
    + ["calibrated-fitted", "calibrated-fitted-features"]
)
# what `bench` writes: a file of docs/results, and the command lines whose rows it joins
MEASUREMENTS = {
    "delta-dit-demo-1.33": [f"{DEMO_BENCH} --speedup 1.33"],
    "delta-dit-demo-1.6": [f"{DEMO_BENCH} --speedup 1.6"],
    "delta-dit-demo-2": [f"{DEMO_BENCH} --speedup 2"],
    "delta-dit-demo-2.5": [f"{DEMO_BENCH} --speedup 2.5"],
    "delta-dit-demo-lcm-1.12": [f"{DEMO_BENCH} --model demo-lcm --speedup 1.12"],
    "delta-dit-exact": [f"{EXACT_BENCH} --budget 8 10 12.5 16 20 --tuning 1500"],
    "delta-dit-exact-12.5": [f"{EXACT_BENCH} --budget 12.5"],
    "delta-dit-ablation": [
        f"{DEMO_BENCH} --speedup 1.6 --methods {ABLATED}",
        f"{EXACT_BENCH} --budget 12.5 --methods {ABLATED}",
    ],
    "delta-dit-analyze": ["delta-dit analyze --cpu"],
    "clipsam-embedded": [
        *(f"clipsam eval --data procedural cells --samples 126 --seed {seed} --zero-shot --cpu" for seed in range(3)),
        "clipsam eval --data elpv-mono elpv-poly --seed 0 --zero-shot --cpu",
    ],
    "clipsam-references": [
        "clipsam eval --data procedural cells elpv-mono elpv-poly --samples 126 --references 16 --stages umci "
        f"--seed {seed} --cpu"
        for seed in range(3)
    ],
    "clipsam-bench": ["clipsam bench --cpu"],
    "partial-finetune-sweep-elpv": ["partial-finetune sweep --cpu"],
    "partial-finetune-bench": [
        "partial-finetune bench --models dinov2-vits14 --batch-size 8 --repeats 6 --cpu",
        "partial-finetune bench --models vit_base_patch16_224 --batch-size 2 --repeats 4 --cpu",
    ],
    "bdp-nas-ablation": [ABLATE],
    "bdp-nas-fresh-seeds": [f"{ABLATE} --seed 5 --variants none random bdp"],
    "bdp-nas-scores": [
        f"{ABLATE} --searchers darts pc-darts --score {score} --variants {'random' if score == 'random' else 'bdp'}"
        for score in SCORES
    ],
    "bdp-nas-bench": ["bdp-nas bench --cpu"],
}
ONE_THREAD = {"partial-finetune-bench"}
TABLE = os.environ.get("NASBENCH201")  # what `bdp-nas build-table` wrote: then the found cells are looked up in it

each_package = nox.parametrize("package", [nox.param(name, id=name) for name in FOLDERS])


def use(session: nox.Session, environment: str) -> str:
    """Let ``uv run`` use ``.nox/<environment>`` for the rest of the session; return its path."""
    path = str(ROOT / ".nox" / environment)
    session.env.update(
        UV_PROJECT_ENVIRONMENT=path,
        UV_NO_SYNC="1",
        UV_LINK_MODE="hardlink",  # container images like to set "copy": 6 GB for each environment
        VIRTUAL_ENV=None,  # of the shell that started nox
        PYTHONDONTWRITEBYTECODE=None,  # where it is set, every process compiles torch anew: twice the time of its start
    )
    return path


def sync(session: nox.Session, environment: str, *what: str) -> None:
    """Bring ``.nox/<environment>`` to exactly ``what``, and use it."""
    version = str(session.python or "")
    use(session, f"{environment}-{version}" if version else environment)
    python = ["--python", version] if version else []
    session.run_install(UV, "sync", "--no-default-groups", *python, *what)


def run_tests(session: nox.Session, *what: str) -> None:
    """Run pytest in the environment synced last, on up to four cores, a thread each: small tensors gain by no more."""
    session.env["OMP_NUM_THREADS"] = "1"
    workers = str(min(4, os.cpu_count() or 1))
    run(session, "pytest", "-n", workers, "--dist", "worksteal", *what, *session.posargs)


def run(session: nox.Session, *command: str) -> None:
    """Run a command in the environment synced last."""
    session.run(UV, "run", *command)


@nox.session
def demo(session: nox.Session) -> None:
    """Run every package's demo, and join them in runs/demo/index.html and runs/demo/results.json."""
    sync(session, "all", *EVERYTHING)
    folders = {name: f"runs/demo/{name}" for name in DEMOS}
    shutil.rmtree(ROOT / "runs/demo", ignore_errors=True)
    run_together(session, {name: [name, "demo", "--output-dir", folders[name], *session.posargs] for name in DEMOS})
    run(session, "python", "-m", "frugal_shared.report", "runs/demo", *folders.values())


def run_together(session: nox.Session, commands: dict[str, list[str]]) -> None:
    """Run commands in the environment synced last, as many at once as there are cores, which they share.

    What a command writes is shown line by line behind its name. All run to their end; then the session fails if one has
    failed.
    """
    cores = os.cpu_count() or 1
    together = min(cores, len(commands))
    session.env.update(OMP_NUM_THREADS=str(cores // together), PYTHONUNBUFFERED="1", PYTHONUTF8="1")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # where it has no Δ
    session.log(f"{len(commands)} commands, {together} at once; each line begins with the name of its command")
    environment = {key: value for key, value in (os.environ | session.env).items() if value is not None}
    pool = ThreadPoolExecutor(together)
    try:
        codes = pool.map(lambda name: run_shown(name, commands[name], environment), commands)
        failed = [name for name, code in zip(commands, codes) if code]
    finally:
        pool.shutdown(cancel_futures=True)  # after Ctrl-C nothing new is started
    if failed:
        session.error(f"failed: {', '.join(failed)}")


def run_shown(name: str, command: list[str], environment: dict[str, str]) -> int:
    """Run a command in the environment that ``environment`` names, show each line as it comes; return the exit code."""
    began = time.perf_counter()

    def show(line: str) -> None:
        print(f"{name:<16} {time.perf_counter() - began:4.0f} s | {line}", flush=True)

    show("$ " + " ".join(command))
    process = subprocess.Popen(
        [UV, "run", *command],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    )
    with process:
        for line in process.stdout or ():
            show(line.rstrip())
    show(f"exit code {process.returncode}")
    return process.returncode


@nox.session
@nox.parametrize("package", [nox.param(name, id=name) for name in [*FOLDERS, "root"]])
def tests(session: nox.Session, package: str) -> None:
    """Test each package beside nothing but its declared dependencies, then the workspace as a whole."""
    if package == "root":
        sync(session, "all", *EVERYTHING)
        run_tests(session, "tests")
    else:
        extras = [word for extra in EXTRAS[package] for word in ("--extra", extra)]
        sync(session, package, "--package", package, *extras, "--group", "test")
        run_tests(session, f"{FOLDERS[package]}/tests")


@nox.session
def multiprocess(session: nox.Session) -> None:
    """Run only the tests that start several CPU processes; ``tests`` runs them too."""
    sync(session, "all", *EVERYTHING)
    run(session, "pytest", "-m", "multiprocess", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the pages into site/, strictly, after a look whether the generated ones are up to date."""
    sync(session, "all", *EVERYTHING, "--group", "docs")
    run(session, "python", "docs/make_results.py", "--check")
    run(session, "mkdocs", "build", "--strict", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Check the code's rules and its format, the import arrows, and that no helper exists twice."""
    sync(session, "lint", "--only-group", "lint")
    run(session, "ruff", "check", *session.posargs)
    run(session, "ruff", "format", "--check")
    sources = [f"{folder}/src" for folder in FOLDERS.values()]
    session.env["PYTHONPATH"] = os.pathsep.join(sources)  # the packages are read, not installed
    run(session, "lint-imports", "--no-cache")
    run(session, "pylint", "--disable=all", "--enable=duplicate-code", "--score=n", *sources)


@nox.session
def typing(session: nox.Session) -> None:
    """Check the types with pyright."""
    sync(session, "typing", *EVERYTHING, "--group", "lint")
    run(session, "pyright", *session.posargs)


@nox.session
@each_package
def minimums(session: nox.Session, package: str) -> None:
    """Test each package with the lowest versions that it declares."""
    environment = use(session, f"minimums-{package}")
    session.run_install(UV, "venv", "--quiet", "--clear", "--python", "3.11", environment)
    # not `uv sync`: the root's constraint-dependencies pin the versions that were tested, which --no-config passes over
    install = [UV, "pip", "install", "--quiet", "--no-config", "--python", environment]
    extras = ",".join(EXTRAS[package])
    paths = ["./shared[demo]"] if package == "frugal-shared" else ["./shared", f"./{FOLDERS[package]}[{extras}]"]
    # editable, because uv keeps the wheel of a folder until its pyproject.toml changes
    members = [f"--editable={path}" for path in paths]
    session.run_install(
        *install, "--resolution", "lowest-direct", *members, "pytest>=8", "pytest-xdist>=3.6", "packaging>=24"
    )
    run_tests(session, f"{FOLDERS[package]}/tests")


@nox.session(venv_backend="virtualenv", reuse_venv=False)  # not venv, which Debian's Python may lack
@each_package
def wheels(session: nox.Session, package: str) -> None:
    """Build the wheels, and try each in an environment by real pip: the library alone, and the command line."""
    with tempfile.TemporaryDirectory() as dist:
        session.run(UV, "build", "--quiet", "--all-packages", "--no-sources", "--out-dir", dist, external=True)
        session.install("--find-links", dist, package)
        session.run("python", "-c", f"import {package.replace('-', '_')}")
        if package in COMMANDS:
            check_library_alone(session, package)
            check_command_line(session, package, dist)
    check_readme(session, package)
    shutil.rmtree(session.virtualenv.location)  # pip copies: 6 GB


def check_library_alone(session: nox.Session, package: str) -> None:
    """Fail unless the library works without frugal-shared, and its command says in one line what to install."""
    session.run("python", "-c", "import frugal_shared", silent=True, success_codes=[1])
    session.run("python", f"tests/library/{package.replace('-', '_')}_alone.py")
    answer = str(session.run(package, "--help", silent=True, success_codes=[1])).strip()
    if f'pip install ./shared "./{FOLDERS[package]}[run]"' not in answer or "\n" in answer:
        session.error(f"without [run], {package} --help said: {answer}")


def check_command_line(session: nox.Session, package: str, dist: str) -> None:
    """Fail unless the command does some work with the extras that it needs."""
    extras, arguments = REAL_COMMANDS[package]
    session.install("--find-links", dist, f"{package}[{extras}]")
    session.run(package, "--help", silent=True)
    with session.chdir(session.create_tmp()):
        session.run(package, *arguments.split())


def check_readme(session: nox.Session, package: str) -> None:
    """Fail unless what the README says installs the package, from a clone and by git, which takes what is committed."""
    readme = (ROOT / FOLDERS[package] / "README.md").read_text().replace("\\\n", "")
    for line in re.findall(r"^pip install .*$", readme, re.MULTILINE):
        _, _, *words = shlex.split(re.sub(r"git\+https://[^#]*", f"git+{ROOT.as_uri()}", line), comments=True)
        session.run("python", "-m", "pip", "uninstall", "--quiet", "--yes", package, "frugal-shared")
        session.install(*words)
        if package in COMMANDS:
            session.run(package, "--help", silent=True)


@nox.session
def gpu(session: nox.Session) -> None:
    """Test and measure on CUDA GPUs, for 8 minutes at most, into docs/results/gpu-<name>.json."""
    if shutil.which("nvidia-smi") is None and not session.posargs:
        session.skip("there is no CUDA GPU")
    sync(session, "all", *EVERYTHING)
    run(session, "python", "benchmarks/gpu.py", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Measure docs/results/*.json anew, or those named after `--`, and docs/results.md from them; hours on 2 cores."""
    allowed = [*COMMANDS, "help", *MEASUREMENTS]
    for name in session.posargs:
        if name not in allowed:
            session.error(f"{name!r} is no measurement; allowed: {', '.join(allowed)}")
    sync(session, "all", *EVERYTHING, "--extra", "bench")
    for name, lines in MEASUREMENTS.items():
        if not session.posargs or {name, lines[0].split()[0]} & set(session.posargs):
            measure(session, name, lines)
    if not session.posargs or "help" in session.posargs:
        time_help(session)
    run(session, "python", "docs/make_results.py")


def measure(session: nox.Session, name: str, lines: list[str]) -> None:
    """Run the command lines of a measurement, each where an earlier attempt left it, and join their rows."""
    rows, threads = [], {"OMP_NUM_THREADS": "1"} if name in ONE_THREAD else {}
    for number, line in enumerate(lines):
        words, folder = line.split(), ROOT / f"runs/bench/{name}-{number}"
        words += ["--table", TABLE] if TABLE and "ablate" in words else []
        resume = ["--resume"] if folder.exists() else []
        session.run(UV, "run", *words, "--output-dir", str(folder), *resume, env=threads)
        asked = dict(itertools.pairwise(words))
        told = {"seed": int(asked["--seed"])} if "--seed" in asked else {}
        told |= {"score": asked["--score"]} if "--score" in asked else {}
        found = json.loads((folder / "rows.json").read_text())
        # a row may know its own seed
        rows += [row | told | row for row in found if row.get("category", "all") == "all"]
    (ROOT / f"docs/results/{name}.json").write_text(json.dumps(rows, indent=2) + "\n")
    for number in range(len(lines)):  # the next call measures anew
        shutil.rmtree(ROOT / f"runs/bench/{name}-{number}")


def time_help(session: nox.Session) -> None:
    """Time every command's `--help`, into runs/bench/help_seconds.json."""
    programs = str(ROOT / ".nox/all" / ("Scripts" if os.name == "nt" else "bin"))
    seconds = {name: help_seconds(str(shutil.which(name, path=programs))) for name in COMMANDS}
    path = ROOT / "runs/bench/help_seconds.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(seconds, indent=2) + "\n")
    session.log(f"--help, median seconds of 9: {seconds}")


def help_seconds(program: str) -> float:
    """Return the median wall time of nine ``program --help``, after one that warms the disk cache."""
    times = []
    for _ in range(10):
        began = time.perf_counter()
        subprocess.run([program, "--help"], check=True, capture_output=True)
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])
