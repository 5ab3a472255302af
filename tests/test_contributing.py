"""What CONTRIBUTING.md says of the sources is so."""

from __future__ import annotations

import json
import os
import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = (ROOT / "actors/greenroom/actors", ROOT / "runner/greenroom/runner")
TEXT = (ROOT / "CONTRIBUTING.md").read_text("utf-8")


def named_paths() -> list[str]:
    """Every file and folder it names; NAME, TOPIC and the like stand for any."""
    named = re.findall(r"`([\w.*/-]+(?:/|\.(?:py|md|toml|txt|lock)))`", TEXT)
    return [re.sub(r"\b(launch_)?[A-Z]{4,}(?=[/.])", r"\1*", path) for path in named]


def test_every_file_that_contributing_names_exists() -> None:
    missing = [
        path
        for path in named_paths()
        if not any(any(package.rglob(path)) for package in PACKAGES)
        and not any(any(folder.glob(path)) for folder in (ROOT, ROOT / "tests"))
    ]
    assert not missing


def test_the_map_has_every_module_and_package_of_both_roots() -> None:
    one, other = re.findall(r"^`((?:actors|runner)/greenroom/\w+)/` .*\n\n((?:\|.*\n)+)", TEXT, re.MULTILINE)
    assert [ROOT / one[0], ROOT / other[0]] == [*PACKAGES]
    for package, (_, table) in zip(PACKAGES, (one, other), strict=True):
        first = "".join(row.split(" | ")[0] for row in table.splitlines())
        inside = {path.name for path in package.glob("*.py")} - {"__init__.py"}
        inside |= {f"{path.parent.name}/" for path in package.glob("*/__init__.py")}
        assert set(re.findall(r"`(\w+(?:\.py|/))`", first)) == inside


def test_the_map_has_every_folder_of_the_tests_that_is_not_named_for_a_part_of_the_source() -> None:
    (row,) = re.findall(r"^\| `tests/` \|.*", TEXT, re.MULTILINE)
    folders = {path.parent.name for path in (ROOT / "tests").glob("*/*.py")}
    parts = {path.stem for package in PACKAGES for path in (package, *package.iterdir())}
    assert folders - parts <= set(re.findall(r"`(\w+)/?`", row))


def test_every_make_command_that_contributing_names_exists() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for target in re.findall(r"`make ([a-z-]+)", TEXT):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_lock_has_every_dependency_in_a_version_that_fits_and_names_no_index() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    lock = (ROOT / "requirements-dev.lock").read_text("utf-8")
    locked = dict(re.findall(r"^([\w.-]+)==(\S+)", lock, re.MULTILINE))
    wanted = [*project["project"]["dependencies"]]
    for group in project["dependency-groups"].values():
        wanted += (entry for entry in group if isinstance(entry, str))

    for requirement in map(Requirement, wanted):
        version = locked.get(canonicalize_name(requirement.name))
        assert version, f"{requirement} is not in the lock: run `make lock`"
        assert requirement.specifier.contains(version, prereleases=True), f"{requirement}: run `make lock`"
    assert "://" not in lock


def test_hosted_workflows_test_every_python_that_the_package_declares() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    declared = [
        version
        for one in project["classifiers"]
        if re.fullmatch(r"3\.\d+", version := one.removeprefix("Programming Language :: Python :: "))
    ]
    workflow = (ROOT / ".github/workflows/ci.yml").read_text("utf-8")
    (tested,) = re.findall(r"python: (\[.*\])\n    runs-on: .*\n    timeout-minutes: 45", workflow)
    assert json.loads(tested) == declared
    assert project["requires-python"] == f">={declared[0]}"


def test_packages_of_the_system_are_listed_in_one_place() -> None:
    scripts = [ROOT / ".ci/run", *(ROOT / ".github/workflows").iterdir()]
    assert not [script.name for script in scripts if "apt-get install " in script.read_text("utf-8")]
    assert all(os.access(script, os.X_OK) for script in (ROOT / ".ci").iterdir())


def test_packages_that_tests_skip_without_are_among_those_that_are_installed() -> None:
    packages = re.compile(r"apt-get install (?:-\S+ )*((?:[a-z][a-z0-9.+-]*[a-z0-9+] ?)+)")
    tests = "".join(path.read_text("utf-8") for path in (ROOT / "tests").rglob("*.py"))
    named = {one for found in packages.findall(tests) for one in found.split()}
    lists = re.findall(r"packages\+?=\((.*)\)", (ROOT / ".ci/install-packages").read_text("utf-8"))
    assert len(lists) == 2
    # make runs the tests, and Ubuntu has chromium as a snap only.
    assert named - {"make", "chromium"} <= {*" ".join(lists).split()}
    assert {"g++", "spirv-headers", "docker-registry", "tmux"} <= named
    (container,) = packages.findall((ROOT / "Dockerfile.test").read_text("utf-8"))
    assert {*container.split()} - {"make"} <= {*lists[0].split()}
