"""What CONTRIBUTING.md says of the sources is so."""

from __future__ import annotations

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


def test_the_map_has_every_folder() -> None:
    folders = {path.parent.name for package in PACKAGES for path in package.glob("*/__init__.py")}
    assert folders <= {Path(path).name for path in named_paths()}


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
