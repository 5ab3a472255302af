"""Locks: the files an environment is made of, to the byte, without their source. And where they are kept.

A lock is a requirements file with hashes, which uv and pip can read. It names no index: the user's own are
used. Comment lines that begin with `# file` add the name and size of each wheel, so that the whole plan is
known without a network, before anything is fetched:

    mlx==0.32.4 ; sys_platform == 'linux' \\
        --hash=sha256:6267be…
    # file sha256:6267be… 781644 mlx-0.32.4-cp311-cp311-manylinux_2_35_x86_64.whl

`python -m greenroom.runner.installations.lock_file mlx` regenerates a backend's lock; where it is not one for
all platforms, the one for machines like this.

What is fetched is kept in a store:

<store>/<sha256>/<file name>      a whole file: a wheel or an image layer
<store>/<sha256>.part             what has arrived so far
"""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import re
import shutil
import struct
import sys
import threading
import zipfile
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

from greenroom.runner.backends.base import Backend, Environment, Image, Platform
from greenroom.runner.backends.source_build import SourceBuild
from greenroom.runner.errors import JobFailed
from greenroom.runner.setting_values import ExternalBackend
from greenroom.runner.threads import Beside, TookTooLong, stop_if

if TYPE_CHECKING:
    from packaging.tags import Tag

LOCKS = Path(__file__).parent / "locks"
BUILD_TOOLS = Environment(
    distribution="cmake", lock="build-tools", probe=(), requirements=("cmake>=3.28", "ninja>=1.11")
)
"""For builds from source on machines without them."""

_REQUIREMENT = re.compile(
    r"^(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)==(?P<version>[^\s;]+)(?:\s*;\s*(?P<marker>.+))?$"
)
_FILE = re.compile(r"^# file sha256:(?P<sha256>[0-9a-f]{64}) (?P<size>\d+) (?P<name>\S+\.whl)$")
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")
_CHUNK = 1 << 20


@dataclass(frozen=True)
class LockedFile:
    name: str
    sha256: str
    size: int
    """Bytes; 0 if the index gave none."""
    url: str = ""
    """Where a resolution found it; empty in a lock, which names no index."""

    @property
    def project(self) -> str:
        """The distribution's name as indexes spell it."""
        return normalized(self.name.split("-", 1)[0])

    @property
    def version(self) -> str:
        return self.name.split("-", 2)[1]


@dataclass(frozen=True)
class LockedPackage:
    """One distribution, its environment marker, and all wheels it may be installed from."""

    name: str
    version: str
    marker: str
    files: tuple[LockedFile, ...]

    def wanted(self, environment: Mapping[str, str] | None = None) -> bool:
        """Whether the marker holds, by default for this interpreter."""
        if not self.marker:
            return True
        from packaging.markers import Marker

        return Marker(self.marker).evaluate(dict(environment) if environment is not None else None)


@dataclass(frozen=True)
class Lock:
    text: str
    resolved: bool = False
    """It did not ship with this release."""

    @cached_property
    def digest(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()

    @cached_property
    def packages(self) -> tuple[LockedPackage, ...]:
        return tuple(_parse(self.text))

    def version_of(self, distribution: str) -> str:
        """The locked version of a distribution.

        Raises:
            KeyError: The lock has no such distribution.
        """
        wanted = normalized(distribution)
        for package in self.packages:
            if normalized(package.name) == wanted and package.wanted():
                return package.version
        raise KeyError(distribution)

    def files(
        self, tags: Sequence[Tag] | None = None, environment: Mapping[str, str] | None = None
    ) -> tuple[LockedFile, ...]:
        return chosen_files(self.packages, tags, environment)


def chosen_files(
    packages: Sequence[LockedPackage],
    tags: Sequence[Tag] | None = None,
    environment: Mapping[str, str] | None = None,
) -> tuple[LockedFile, ...]:
    """The best wheel of each wanted package, as installers choose.

    Args:
        tags: Of the interpreter to install for, best first; this interpreter's when not given.
        environment: Its marker variables.

    Raises:
        JobFailed: A wanted package has no wheel for this platform and Python.
    """
    from packaging.tags import sys_tags
    from packaging.utils import parse_wheel_filename

    rank = {tag: place for place, tag in enumerate(tags if tags is not None else sys_tags())}
    chosen = []
    for package in packages:
        if not package.wanted(environment):
            continue
        ranked = [
            (min(places), file)
            for file in package.files
            if (places := [rank[tag] for tag in parse_wheel_filename(file.name)[3] if tag in rank])
        ]
        if not ranked:
            own = f"{sys.version_info.major}.{sys.version_info.minor}"
            python = environment.get("python_version", own) if environment else own
            raise JobFailed.permanent(
                "unsupported_platform",
                f"{package.name} {package.version} has no wheel for this platform and Python {python}.",
                advice="Use another backend, or run Greenroom with another Python.",
            )
        chosen.append(min(ranked, key=lambda entry: (entry[0], entry[1].name))[1])
    return tuple(chosen)


def normalized(name: str) -> str:
    """PEP 503."""
    return re.sub(r"[-_.]+", "-", name).lower()


def shipped(source: Environment, platform: Platform) -> Lock:
    """The lock this release ships for a backend on this platform.

    One file for all platforms where it resolves, else one per platform and Python. A backend of another
    distribution brings its own: its declaration then gives the stem as an absolute path.

    Raises:
        JobFailed: There is none.
    """
    major, minor = platform.python
    exact = f"{source.lock}-{platform.system}-{platform.machine}-py{major}{minor}.txt"
    for name in (exact, f"{source.lock}.txt"):
        try:
            return Lock((LOCKS / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            continue
    raise JobFailed.permanent(
        "no_lock",
        f"This release of Greenroom has no tested set of packages of {source.distribution} for "
        f"{platform.system} on {platform.machine} with Python {major}.{minor}.",
        advice="Ask for a version (`--version latest` resolves one), or use another Python.",
    )


def shipped_version(source: Environment, platform: Platform) -> str:
    """The version the shipped lock installs; empty where there is none. Parses no more of it than that."""
    try:
        text = shipped(source, platform).text
    except JobFailed:
        return ""
    wanted = normalized(source.distribution)
    for match in re.finditer(r"^([A-Za-z0-9][\w.-]*)==([^\s;\\]+)", text, re.MULTILINE):
        if normalized(match[1]) == wanted:
            return match[2]
    return ""


def source_of(
    backend: Backend, platform: Platform, named: ExternalBackend | None = None, variant: str = ""
) -> Environment | Image | SourceBuild:
    """What a variant is installed from: as it is declared, or out of what the user has named instead.

    Raises:
        KeyError: There is no such variant.
    """
    if variant in backend.builds:
        return backend.builds[variant]
    source = backend.source
    if variant:
        own = {one.name: one.source for one in backend.variants if one.runs_on(platform)}[variant]
        if own is not None:
            source = replace(own, build=variant, tested=_tested(own, source, platform))
    if named is None:
        return source
    if isinstance(source, Image):
        return source.out_of(named.image) if named.image else source
    if named.indexes is None:
        return source
    if source.own_index:
        return replace(source, own_index=next(iter(named.indexes), ""), indexes=named.indexes[1:])
    return replace(source, indexes=named.indexes)


def _tested(own: Environment, usual: Environment | Image, platform: Platform) -> str:
    """The version of a variant that this release was tested with, if it is the usual one's."""
    same = isinstance(usual, Environment) and usual.distribution == own.distribution
    return shipped_version(usual, platform) if same and isinstance(usual, Environment) else ""


def render(packages: Sequence[LockedPackage], header: Sequence[str]) -> str:
    lines = [f"# {line}".rstrip() for line in header]
    for package in packages:
        marker = f" ; {package.marker}" if package.marker else ""
        lines.append(f"{package.name}=={package.version}{marker} \\")
        hashes = [f"    --hash=sha256:{file.sha256}" for file in package.files]
        lines += [f"{line} \\" for line in hashes[:-1]] + hashes[-1:]
        lines += [f"# file sha256:{file.sha256} {file.size} {file.name}" for file in package.files]
    return "\n".join(lines) + "\n"


def _parse(text: str) -> Iterator[LockedPackage]:
    sizes = {m["sha256"]: m for line in text.splitlines() if (m := _FILE.match(line))}
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _REQUIREMENT.match(_HASH.sub("", line).strip())
        if match is None:
            raise ValueError(f"not a locked requirement: {line.strip()[:120]}")
        files = tuple(
            LockedFile(name=sizes[sha]["name"], sha256=sha, size=int(sizes[sha]["size"]))
            for sha in _HASH.findall(line)
            if sha in sizes
        )
        yield LockedPackage(match["name"], match["version"], (match["marker"] or "").strip(), files)


# where they are kept


class FileStore:
    """The downloads of one data directory: whole ones by hash, and partial ones."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._guard = threading.Lock()
        self._busy: dict[str, threading.Lock] = {}
        self._wanted: list[frozenset[str]] = []
        """The files of running builds."""

    def path(self, file: LockedFile) -> Path:
        return self.root / file.sha256 / file.name

    def part(self, file: LockedFile) -> Path:
        return self.root / f"{file.sha256}.part"

    def has(self, file: LockedFile) -> bool:
        """Judged by its size."""
        try:
            size = self.path(file).stat().st_size
        except OSError:
            return False
        return size == file.size or not file.size

    def arrived(self, file: LockedFile) -> int:
        """Bytes of the file that need not be fetched any more."""
        if self.has(file):
            return file.size
        try:
            return min(self.part(file).stat().st_size, file.size)
        except OSError:
            return 0

    def missing(self, files: Iterable[LockedFile]) -> list[LockedFile]:
        return [file for file in files if not self.has(file)]

    def check(self, files: Iterable[LockedFile], cancel: Event | None = None) -> list[LockedFile]:
        """Read every stored file and drop the damaged ones; returns these."""
        dropped = []
        for file in files:
            stop_if(cancel)
            if self.has(file) and file_sha256(self.path(file)).hexdigest() != file.sha256:
                self.drop(file)
                dropped.append(file)
        return dropped

    @contextmanager
    def using(self, files: Sequence[LockedFile]) -> Iterator[None]:
        """Meanwhile `release` and `sweep` keep these files."""
        mine = frozenset(file.sha256 for file in files)
        with self._guard:
            self._wanted.append(mine)
        try:
            yield
        finally:
            with self._guard:
                self._wanted.remove(mine)

    def release(self, files: Iterable[LockedFile], needed: Container[str]) -> list[str]:
        """Drop the files that neither `needed` nor a running build names; returns their projects."""
        with self._guard:
            gone = [file for file in files if file.sha256 not in needed and not self._in_use(file.sha256)]
            for file in gone:
                self.drop(file)
        return [file.project for file in gone]

    def drop(self, file: LockedFile) -> None:
        shutil.rmtree(self.root / file.sha256, ignore_errors=True)
        self.part(file).unlink(missing_ok=True)

    def sweep(self, needed: Container[str], older_than: float) -> list[str]:
        """Remove files last modified before a wall time, except those in `needed` or in use.

        Returns the projects of the whole ones.
        """
        projects: list[str] = []
        with self._guard, suppress(FileNotFoundError):
            for entry in list(os.scandir(self.root)):
                sha256 = entry.name.removesuffix(".part")
                with suppress(FileNotFoundError):
                    if (
                        sha256 in needed
                        or self._in_use(sha256)
                        or entry.stat(follow_symlinks=False).st_mtime >= older_than
                    ):
                        continue
                    if entry.is_dir():
                        projects += [LockedFile(one, sha256, 0).project for one in os.listdir(entry.path)]
                        shutil.rmtree(entry.path, ignore_errors=True)
                    else:
                        Path(entry.path).unlink(missing_ok=True)
        return projects

    def _in_use(self, sha256: str) -> bool:
        return any(sha256 in files for files in self._wanted)

    def only_one(self, file: LockedFile) -> threading.Lock:
        """Held while fetching the file: two backends may share one."""
        with self._guard:
            return self._busy.setdefault(file.sha256, threading.Lock())


def file_sha256(path: Path) -> hashlib._Hash:
    """The running SHA-256 over all of a file, for continuing."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest


# how large they become

_ASK_SECONDS = 30.0
_TAIL = 64 * 1024
_TAIL_MOST = 16 * 2**20
_END = struct.Struct("<4s8xII2x")
"""A zip's last record: its mark, and size and offset of the directory."""

Tail = Callable[[LockedFile, int], bytes | None]
"""Returns the last bytes of a remote file; None if its server does not support that."""


def unpacked(
    files: Sequence[LockedFile], here: Callable[[LockedFile], Path | None], tail: Tail, cancel: Event
) -> int:
    """Bytes that wheels unpack to; for unreadable ones, their own size.

    Args:
        here: The path of an already fetched file.
        tail: Asks the server; called on several threads.
        cancel: Stops asking, with JobCancelled.
    """
    asked = [(file, Beside(lambda file=file: _unpacked(file, here, tail), "wheel-size")) for file in files]  # type: ignore[misc]
    total = 0
    for file, ask in asked:
        try:
            total += max(file.size, ask.result(cancel=cancel, seconds=_ASK_SECONDS))
        except (TookTooLong, JobFailed):
            total += file.size
    return total


def _unpacked(file: LockedFile, here: Callable[[LockedFile], Path | None], tail: Tail) -> int:
    if (path := here(file)) is not None:
        return unpacked_wheel(path, file.size)
    size = _TAIL
    for _ in range(2):
        end = tail(file, size)
        if end is None:
            return file.size
        place = end.rfind(b"PK\5\6")
        if place < 0 or place + _END.size > len(end):
            return file.size
        directory = _END.unpack_from(end, place)[1]
        if directory <= place:
            return unpacked_wheel(io.BytesIO(end), file.size)
        size = directory + _TAIL
        if size > _TAIL_MOST:
            break
    return file.size


def unpacked_wheel(wheel: Path | io.BytesIO, otherwise: int) -> int:
    """Unpacked bytes according to a wheel's directory."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            return sum(member.file_size for member in archive.infolist())
    except (zipfile.BadZipFile, ValueError):
        return otherwise  # uv will report what is wrong with it


def main(argv: Sequence[str] | None = None) -> int:
    """Regenerate the locks of the named backends for this machine, from the user's own package sources."""
    from greenroom.runner.backends.discovery import BACKENDS
    from greenroom.runner.installations.resolution import write_lock

    parser = argparse.ArgumentParser(prog=f"python -m {__spec__.name}")
    parser.add_argument("backend", nargs="+", choices=[*BACKENDS, BUILD_TOOLS.lock])
    parser.add_argument("--variant", default="", help="for this variant, from its own index")
    parser.add_argument("--own-sources", action="store_true", help="without the indexes of the declaration")
    args = parser.parse_args(argv)
    here = Platform.here()
    for name in args.backend:
        source = BUILD_TOOLS if name == BUILD_TOOLS.lock else BACKENDS[name].source
        if args.variant:
            declared = BACKENDS.get(name)
            builds = {one.name: one.source or source for one in declared.variants} if declared else {}
            if args.variant not in builds:
                parser.error(f"{name} has no variant {args.variant}; it has {', '.join(builds) or 'none'}.")
            source = builds[args.variant]
        if not isinstance(source, Environment):
            parser.error(f"{name} is installed from an image and needs no lock.")
        source = replace(source, indexes=()) if args.own_sources else source
        sys.stdout.write(f"{write_lock(name, source, here, args.variant)}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
