"""Environments for another Python than Greenroom's own get its wheels, and what its markers ask for."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from greenroom.runner.errors import JobFailed
from greenroom.runner.installations.given_lock import read
from greenroom.runner.installations.lock_file import LockedFile, LockedPackage
from greenroom.runner.installations.pythons import files_for, find
from greenroom.runner.installations.sources import PackageSources
from greenroom.runner.installations.uv import Uv
from greenroom.runner.installations.verification import Interpreter

OLD = Interpreter(version="3.9.18", tag="cpython-39", base="/usr/bin/python3.9")


def package(name: str, marker: str = "", *tags: str) -> LockedPackage:
    files = tuple(LockedFile(name=f"{name}-1.0-{tag}.whl", sha256=tag, size=1) for tag in tags)
    return LockedPackage(name, "1.0", marker, files)


def names(python: Interpreter, *packages: LockedPackage) -> list[str]:
    return [one.sha256 for one in files_for(python, packages)]


def test_wheels_and_markers_are_those_of_the_python_it_is_for() -> None:
    own = f"cp3{sys.version_info.minor}"
    anywhere = package("either", "", "cp39-none-any", f"{own}-none-any")
    old = package("tomli", "python_full_version < '3.11'", "py3-none-any")
    assert names(OLD, anywhere, old) == ["cp39-none-any", "py3-none-any"]
    assert names(Interpreter.here(), anywhere, old) == [f"{own}-none-any"]


def test_a_package_without_a_wheel_for_it_names_its_version() -> None:
    with pytest.raises(JobFailed, match=r"fast 1\.0 has no wheel for this platform and Python 3\.9\."):
        files_for(OLD, [package("fast", "", "cp313-none-any")])


@pytest.mark.parametrize("wanted", ["", f"3.{sys.version_info.minor}"])
def test_its_own_python_is_not_looked_for(tmp_path: Path, wanted: str) -> None:
    nowhere = Uv(tmp_path, PackageSources(), tmp_path / "no-uv")
    assert find(nowhere, wanted) == Interpreter.here()


REQUIREMENTS = """
# made by a tool
--index-url https://index.example/simple
Black[d]==26.1 ; python_version >= '3.9' \\
    --hash=sha256:{a} \\
    --hash=sha256:{b}
    # via -r requirements.in
click==8.1 --hash=sha256:{b}
"""
PYLOCK = """
lock-version = "1.0"
[[packages]]
name = "black"
version = "26.1"
marker = "python_version >= '3.9'"
wheels = [{ name = "black-26.1-py3-none-any.whl", hashes = { sha256 = "HASH" } }]
"""


def test_a_given_lock_is_a_requirements_file_with_hashes_or_a_pylock() -> None:
    a, b = "a" * 64, "b" * 64
    black, click = read(REQUIREMENTS.replace("{a}", a).replace("{b}", b))
    assert (black.name, black.version, black.hashes) == ("black", "26.1", frozenset({a, b}))
    assert black.marker == "python_version >= '3.9'"
    assert (click.name, click.marker, click.hashes) == ("click", "", frozenset({b}))
    assert read(PYLOCK.replace("HASH", a)) == [black._replace(hashes=frozenset({a}))]


@pytest.mark.parametrize("line", ["black>=26", "-e .", "./black.whl", "black==26.1", "-r other.txt"])
def test_what_is_not_pinned_by_hash_is_no_lock(line: str) -> None:
    with pytest.raises(ValueError, match=r"pins no version|has no SHA-256"):
        read(line)
