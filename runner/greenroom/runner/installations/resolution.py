"""Resolves requirements into a lock, for the shipped locks and for versions the user names."""

from __future__ import annotations

import re
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any
from urllib.parse import unquote, urlsplit

from greenroom.actors.values import Failure
from greenroom.runner.backends.base import Environment, Platform
from greenroom.runner.errors import JobFailed
from greenroom.runner.installations.lock_file import (
    LOCKS,
    Lock,
    LockedFile,
    LockedPackage,
    normalized,
    render,
)
from greenroom.runner.installations.pythons import files_for
from greenroom.runner.installations.sources import PackageSources, is_local, local_path
from greenroom.runner.installations.uv import Uv
from greenroom.runner.installations.verification import Interpreter
from greenroom.runner.installations.web import Web

_PYTHON = "3.11"
"""The oldest supported Python; a universal lock serves it and all newer ones."""
_SHOWN = 60
"""Characters of the user's input to quote."""
_LONGEST = 200
"""Characters of a version: Python refuses to parse longer numbers."""
_SYSTEMS = ("any", "linux", "manylinux", "musllinux", "macosx")
_MACHINES = ("x86_64", "aarch64", "arm64", "universal2")


def resolve(
    uv: Uv,
    requirements: Sequence[str],
    *,
    header: Sequence[str] = (),
    python: str | Interpreter,
    cancel: Event | None = None,
    universal: bool = False,
    dependencies: bool = True,
    every_wheel: bool = False,
    excluded: Sequence[str] = (),
    deadline: float = 900.0,
) -> Lock:
    """Ask the indexes for the newest set of wheels that satisfies all requirements.

    Args:
        python: The interpreter to resolve for, or its version.
        universal: For every supported platform and all Pythons from `python` on, not just for this one.
        dependencies: Include dependencies.
        every_wheel: Include wheels for older systems of this kind.
        excluded: Distributions to leave out although something requires them.
        deadline: Maximum seconds.

    Raises:
        JobFailed: No such version, no wheels for this platform, or no index answered.
    """
    with tempfile.TemporaryDirectory(prefix="greenroom-lock-") as folder:
        wanted, found = Path(folder, "requirements.in"), Path(folder, "pylock.toml")
        wanted.write_text("\n".join(requirements) + "\n", encoding="utf-8")
        args = ["pip", "compile", str(wanted), "--format", "pylock.toml", "--output-file", str(found)]
        args += ["--only-binary", ":all:", "--no-annotate", "--no-header", "--quiet"]
        args += ["--universal"] if universal else []
        args += [] if dependencies else ["--no-deps"]
        if excluded:
            without = Path(folder, "excluded.txt")
            without.write_text("\n".join(excluded) + "\n", encoding="utf-8")
            args += ["--excludes", str(without)]
        args += ["--python", python.base] if isinstance(python, Interpreter) else ["--python-version", python]
        uv.run([*args, *uv.sources.uv_arguments()], cwd=Path(folder), cancel=cancel, deadline=deadline)
        table = tomllib.loads(found.read_text(encoding="utf-8"))
    one_wheel_for = None if every_wheel or isinstance(python, str) else python
    packages = _packages(table, uv.sources, universal=universal, one_wheel_for=one_wheel_for)
    return Lock(render(packages, header))


def for_version(
    uv: Uv, source: Environment, version: str, python: Interpreter, cancel: Event | None = None
) -> Lock:
    """A lock for a version the user named; `latest` is the newest that satisfies the declaration.

    Raises:
        JobFailed: As `resolve`.
    """
    requirements = list(source.requirements)
    if version != "latest":
        _see_that_it_is_taken(source, version)
        requirements.append(f"{source.distribution}=={version.strip()}")
    header = [f"{source.distribution} {version}, resolved on request from: {', '.join(requirements)}"]
    try:
        found = resolve(
            uv, requirements, header=header, python=python, cancel=cancel, excluded=source.excluded
        )
        return replace(found, resolved=True)
    except JobFailed as failed:
        if failed.failure.code != "no_such_version":
            raise
        raise _not_found(source, version.strip(), failed.failure) from failed


def _not_found(source: Environment, version: str, failure: Failure) -> JobFailed:
    """The same failure in terms of the request: uv found no set of packages, for whatever reason."""
    distribution, newest = source.distribution, version == "latest"
    wanted = distribution if newest else f"{distribution} {version}"
    wanted = source.requirements[0] if newest and len(source.requirements) == 1 else wanted
    told = " ".join(failure.detail.split())
    missing = f"no version of {distribution}=={version}" in told or f"{distribution} was not found" in told
    advice = "Ask for other versions, or use another Python." if newest else failure.advice
    message = f"{wanted} is not on the package index."
    if not missing and newest and f"Because only {distribution}" in told:
        last = re.search(rf"Because only {re.escape(distribution)}(?:<=|==)(\S+) is available", told)
        there = f"; the newest one is {last[1]}" if last is not None else ""
        message = f"No version on the package index satisfies {wanted}{there}."
    elif not missing:
        message = f"No set of packages makes {wanted} work here."
    return JobFailed.permanent(failure.code, message, advice=advice, detail=failure.detail)


def _see_that_it_is_taken(source: Environment, version: str) -> None:
    """Raise JobFailed if it is not a version, or the declaration excludes it."""
    from packaging.requirements import Requirement
    from packaging.version import InvalidVersion, Version

    asked = None
    if len(version) <= _LONGEST:
        with suppress(InvalidVersion):
            asked = Version(version)
    if asked is None:
        shown = version if len(version) <= _SHOWN else f"{version[:_SHOWN]}…"
        raise JobFailed.permanent(
            "no_such_version",
            f"{shown!r} is not a version.",
            advice="Give a version such as 1.2.3, or `latest`.",
        )
    for line in source.requirements:
        wanted = Requirement(line)
        if normalized(wanted.name) == normalized(source.distribution) and not wanted.specifier.contains(
            asked, prereleases=True
        ):
            raise JobFailed.permanent(
                "version_not_taken",
                f"{source.distribution} {version} does not work with this release of Greenroom, which needs "
                f"{source.distribution}{wanted.specifier}.",
                advice="Ask for one of these versions, or leave the version out to get the tested one.",
            )


def write_lock(backend: str, source: Environment, platform: Platform, variant: str = "") -> Path:
    """Resolve a backend's declaration and write the lock that ships, for all platforms or for this one.

    Raises:
        JobFailed: As `resolve`.
    """
    from platformdirs import user_cache_path

    sources = PackageSources.discover()
    if source.universal:
        # One complete index: local ones may lack other platforms' files.
        sources = replace(sources, extra_indexes=(), find_links=())
    sources = sources.with_indexes(source.indexes, f"the declaration of {backend}")
    if source.own_index:
        sources = sources.with_first(source.own_index, f"the declaration of {backend}")
    option = f" --variant {variant}" if variant else ""
    kind = f"{platform.system}-{platform.machine}-py{platform.python[0]}{platform.python[1]}"
    where = f"Python >= {_PYTHON} on Linux and macOS" if source.universal else kind
    header = [
        f"The packages of the backend {backend} ({source.distribution}), for {where}.",
        f"Made by `python -m greenroom.runner.installations.lock_file {backend}{option}`; do not edit.",
        f"Resolved from: {', '.join(source.requirements)}",
    ]
    header += [f"Without: {', '.join(source.excluded)}"] if source.excluded else []
    lock = resolve(
        Uv(user_cache_path("greenroom") / "uv", sources),
        source.requirements,
        header=[*header, ""],
        python=_PYTHON if source.universal else Interpreter.here(),
        universal=source.universal,
        every_wheel=True,
        excluded=source.excluded,
    )
    file = LOCKS / (f"{source.lock}.txt" if source.universal else f"{source.lock}-{kind}.txt")
    file.write_text(lock.text, encoding="utf-8")
    return file


def _packages(
    table: Mapping[str, Any],
    sources: PackageSources,
    *,
    universal: bool,
    one_wheel_for: Interpreter | None,
) -> list[LockedPackage]:
    packages = []
    for package in table.get("packages", []):
        wheels = [_file(wheel) for wheel in package.get("wheels", [])]
        if universal:
            wheels = [wheel for wheel in wheels if _supported(wheel.name)]
        # Every lock is for our oldest Python or newer; repeating that on each line would hide the
        # real markers.
        marker = re.sub(rf"^python_full_version >= '{_PYTHON}'(?: and )?", "", str(package.get("marker", "")))
        # A package without wheels for us is needed only where we do not run (Windows, Emscripten).
        if wheels:
            files = tuple(sorted(wheels, key=lambda wheel: wheel.name))
            name = normalized(package["name"])
            packages.append(LockedPackage(name, package["version"], marker.strip(), files))
    if one_wheel_for is not None:
        chosen = {file.project: file for file in files_for(one_wheel_for, packages)}
        packages = [
            replace(package, files=(chosen[package.name],)) for package in packages if package.name in chosen
        ]
    return _with_sizes(packages, sources)


def _file(wheel: Mapping[str, Any]) -> LockedFile:
    url = str(wheel.get("url") or wheel.get("path") or "")
    name = str(wheel.get("name") or unquote(Path(urlsplit(url).path).name))
    return LockedFile(name=name, sha256=wheel["hashes"]["sha256"], size=int(wheel.get("size", 0)), url=url)


def _supported(name: str) -> bool:
    """Whether CPython from `_PYTHON` on can use the wheel on Linux or macOS."""
    interpreters, abis, platforms = name.removesuffix(".whl").split("-")[-3:]
    oldest = int(_PYTHON.split(".")[1])
    if not any(_interpreter_fits(tag, abis, oldest) for tag in interpreters.split(".")):
        return False
    if abis.endswith("t"):
        return False
    return any(
        tag == "any" or (tag.startswith(_SYSTEMS) and tag.endswith(_MACHINES)) for tag in platforms.split(".")
    )


def _interpreter_fits(tag: str, abis: str, oldest: int) -> bool:
    if tag.startswith("py"):
        return tag == "py3" or tag.removeprefix("py3").isdigit()
    minor = tag.removeprefix("cp3")
    return minor.isdigit() and (int(minor) >= oldest or "abi3" in abis)


def _with_sizes(packages: list[LockedPackage], sources: PackageSources) -> list[LockedPackage]:
    """Ask each file's server for the size the index did not give."""
    from concurrent.futures import ThreadPoolExecutor

    web = Web(sources)

    def sized(file: LockedFile) -> LockedFile:
        if file.size:
            return replace(file, url="")
        if is_local(file.url):
            return replace(file, size=local_path(file.url).stat().st_size, url="")
        try:
            return replace(file, size=web.size(file.url), url="")
        except JobFailed:
            # Some mirrors support only GET; the size is then known when the file arrives.
            return replace(file, url="")

    with ThreadPoolExecutor(max_workers=8) as pool:
        return [replace(package, files=tuple(pool.map(sized, package.files))) for package in packages]
