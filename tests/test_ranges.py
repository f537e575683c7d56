from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def test_ranges_of_siblings_hold_the_siblings_local_version(member, versions):
    # uv takes the workspace's own copy whatever the range says; pip will not
    for requirement in map(Requirement, member.requirements):
        sibling = canonicalize_name(requirement.name)
        if sibling in versions:
            assert requirement.specifier, f"{requirement} has no range"
            assert requirement.specifier.contains(versions[sibling], prereleases=True), str(requirement)


def test_every_package_offers_its_command_line_as_an_extra(package):
    assert "frugal-shared" in {Requirement(text).name for text in package.project["optional-dependencies"]["run"]}


def test_the_library_part_does_not_need_frugal_shared(package):
    assert "frugal-shared" not in {Requirement(text).name for text in package.project["dependencies"]}
