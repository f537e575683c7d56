from collections import Counter
from importlib import import_module
from importlib.metadata import version


def test_every_member_has_the_same_files(member, root):
    for name in ("pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE"):
        assert (member.folder / name).stat().st_size > 0, name
    assert (member.folder / "LICENSE").read_bytes() == (root / "LICENSE").read_bytes()
    assert (member.source / "py.typed").is_file()
    assert list((member.folder / "tests").glob("**/test_*.py"))


def test_every_package_has_the_same_door(package):
    for name in ("__init__.py", "__main__.py", "commands/cli.py"):
        assert (package.source / name).is_file(), name
    assert len((package.source / "__init__.py").read_text().splitlines()) <= 25
    assert package.project["scripts"] == {package.name: f"{package.module}.__main__:main"}


def test_the_version_is_the_same_everywhere(member):
    declared = member.project["version"]
    assert version(member.name) == declared
    assert import_module(member.module).__version__ == declared
    assert f"\n## {declared} (" in (member.folder / "CHANGELOG.md").read_text()


def test_test_files_have_distinct_names(root):
    folders = ("tests", "shared/tests", "packages/*/tests")
    names = Counter(path.name for folder in folders for path in root.glob(f"{folder}/**/test_*.py"))
    assert [name for name, count in names.items() if count > 1] == []
