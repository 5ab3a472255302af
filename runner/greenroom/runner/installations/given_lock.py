"""A lock that the user provides: a requirements file with hashes, or a `pylock.toml`.

It may have many hashes for a package, without file names and sizes. The index says which files fit this
Python; a file whose hash is not in the lock is never installed.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from threading import Event
from typing import NamedTuple

from greenroom.runner.errors import JobFailed
from greenroom.runner.installations.lock_file import Lock, normalized, render
from greenroom.runner.installations.pythons import markers_of
from greenroom.runner.installations.resolution import resolve
from greenroom.runner.installations.uv import Uv
from greenroom.runner.installations.verification import Interpreter

_LINE = re.compile(
    r"(?P<name>[A-Za-z0-9][\w.-]*)(?:\[[\w.,\s-]*\])?\s*==\s*(?P<version>[^\s;]+)\s*(?:;(?P<marker>.*))?"
)
_HASH = re.compile(r"--hash[=\s]sha256:([0-9a-f]{64})")
_SHOWN = 80


class Pinned(NamedTuple):
    name: str
    version: str
    marker: str
    hashes: frozenset[str]


def read(text: str) -> list[Pinned]:
    """The packages that a lock names.

    Raises:
        ValueError: It is not a valid lock: a package has no version or no hash. The message names it.
    """
    if re.search(r"^lock-version\s*=", text, re.MULTILINE):
        return _from_pylock(text)
    pinned = []
    for line in re.sub(r"\\\s*\n", " ", text).splitlines():
        line = re.sub(r"(?:^|\s)#.*", "", line).strip()  # noqa: PLW2901
        if not line or line.startswith("--"):
            continue
        found = _LINE.fullmatch(_HASH.sub("", line).strip())
        if found is None:
            raise ValueError(f"it has the line {line[:_SHOWN]!r}, which pins no version")
        hashes = frozenset(_HASH.findall(line))
        if not hashes:
            raise ValueError(f"it has no SHA-256 of {found['name']} {found['version']}")
        marker = (found["marker"] or "").strip()
        pinned.append(Pinned(normalized(found["name"]), found["version"], marker, hashes))
    if not pinned:
        raise ValueError("it names no package")
    return pinned


def _from_pylock(text: str) -> list[Pinned]:
    pinned = []
    for one in tomllib.loads(text).get("packages", []):
        if not one.get("version"):
            raise ValueError(f"it has no version of {one.get('name')}")
        hashes = frozenset(wheel["hashes"]["sha256"] for wheel in one.get("wheels", ()))
        pinned.append(Pinned(normalized(one["name"]), one["version"], one.get("marker", ""), hashes))
    return pinned


def files_of(uv: Uv, text: str, python: Interpreter, cancel: Event | None = None) -> Lock:
    """The lock with name and size of the wheel of each package that is for this Python.

    Raises:
        JobFailed: The index lacks a package, or its files have other hashes.
    """
    from packaging.markers import Marker

    markers = dict(markers_of(python))
    wanted = {one.name: one for one in read(text) if not one.marker or Marker(one.marker).evaluate(markers)}
    header = ["The files that a given lock names."]
    requirements = [f"{one.name}=={one.version}" for one in wanted.values()]
    found = resolve(
        uv,
        requirements,
        header=header,
        python=python,
        cancel=cancel,
        dependencies=False,
        every_wheel=True,
    )
    packages = []
    for package in found.packages:
        named = tuple(file for file in package.files if file.sha256 in wanted[package.name].hashes)
        if not named:
            raise _others(package.name, package.version, wanted)
        packages.append(replace(package, files=named))
    return Lock(render(packages, header), resolved=True)


def _others(name: str, version: str, wanted: Mapping[str, Pinned]) -> JobFailed:
    count = len(wanted[name].hashes)
    which = "the hash" if count == 1 else f"any of the {count} hashes"
    return JobFailed.permanent(
        "hash_mismatch",
        f"No wheel of {name} {version} on the package index has {which} in the lock.",
        advice="Check the index, which may rebuild packages, or regenerate the lock.",
    )
