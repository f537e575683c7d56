"""A member imports what it declares; which way imports run is what `lint-imports` checks, see the root pyproject."""

import ast
import sys
from functools import cache
from importlib.metadata import packages_distributions

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def imports(path):
    """Return the full names of what a file imports, at its top, inside a function, or for type checkers only."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@cache
def providers():
    """Return the distributions that bring a module, by its name; to list all their files takes half a second."""
    return packages_distributions()


def top(names):
    return {name.partition(".")[0] for name in names}


def library(package):
    """Return the files behind what ``import package`` offers: what its stub names, what that imports, and so on."""
    stub = ast.parse((package.source / "__init__.pyi").read_text())
    offered = {f"{package.module}.{node.module}" for node in ast.walk(stub) if isinstance(node, ast.ImportFrom)}
    files, new = set(), {package.source / "__init__.py", *files_of(package, offered)}
    while new:
        files |= new
        new = files_of(package, set().union(*map(imports, new))) - files
    return files


def files_of(package, names):
    """Return the files of those names that are modules or folders of the package."""
    paths = [package.source.parent.joinpath(*name.split(".")) for name in names]
    return {file for path in paths for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()}


def test_a_member_imports_only_what_it_declares(member, versions):
    declared = {canonicalize_name(Requirement(text).name) for text in member.requirements}
    siblings = {name.replace("-", "_"): [name] for name in versions}  # editable, so that their files are not listed
    known = providers() | siblings  # what is not installed, such as a heavy extra, is taken for a distribution's name
    undeclared = [
        f"{path.name} imports {name}"
        for path in sorted(member.source.rglob("*.py"))
        for name in sorted(top(imports(path)) - sys.stdlib_module_names - {member.module})
        if not {canonicalize_name(distribution) for distribution in known.get(name, [name])} & declared
    ]
    assert undeclared == []


def test_the_library_part_imports_only_what_comes_without_an_extra(package):
    declared = {canonicalize_name(Requirement(text).name) for text in package.project["dependencies"]}
    files = library(package)
    assert len(files) > 5
    for path in files:
        for name in top(imports(path)) - sys.stdlib_module_names - {package.module}:
            assert {canonicalize_name(provider) for provider in providers()[name]} & declared, (path, name)
