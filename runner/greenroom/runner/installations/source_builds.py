"""Installs programs compiled on this machine: fetch, unpack, compile, run once, commit.

Each attempt compiles below its own final folder and leaves only the program there. What was compiled is kept
in `cache/builds/<key>/`, where the key stands for the source and all that decides what comes out of it, so
that the same build is made once.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Event

import msgspec
import psutil

from greenroom.actors.progress import ProgressReport
from greenroom.actors.values import Installation, Plan, Progress
from greenroom.runner.backends.base import Platform
from greenroom.runner.backends.source_build import (
    BuildNeed,
    SourceBuild,
    Toolchain,
    jobs_for,
    key_of,
    lacking,
)
from greenroom.runner.engines.keeper_watch import cleaned
from greenroom.runner.engines.launchers import launcher
from greenroom.runner.errors import JobFailed
from greenroom.runner.installations.compiling import Compiling
from greenroom.runner.installations.compute_check import RESTORING, prove, restores
from greenroom.runner.installations.errors import machine_failed
from greenroom.runner.installations.installed import (
    ATTEMPT,
    BuildAttempt,
    InstallationStore,
    Maker,
    keep_reserve,
    need_exec,
    need_space,
    usage,
    write_attempt,
)
from greenroom.runner.installations.lock_file import LOCKS, FileStore, Lock, LockedFile, normalized
from greenroom.runner.installations.sources import PackageSources
from greenroom.runner.installations.toolchain import look
from greenroom.runner.installations.verification import (
    WITH_PROGRAM,
    InstallationRecord,
    Interpreter,
    Wheel,
    base_python,
    inventory,
    run_briefly,
    sha256,
    write_record,
)
from greenroom.runner.systems.packages import missing_library
from greenroom.runner.systems.processes import ProcessIdentity

_WORK = "work"
_SUM = "sha256"
_KEPT_SECONDS = 30 * 86400.0
"""How long a program that no installation has is kept after its last use."""
_PROBE_SECONDS = 120.0
_CMAKE = {
    "debian": "cmake ninja-build",
    "fedora": "cmake ninja-build",
    "arch": "cmake ninja",
    "alpine": "cmake samurai",
    "suse": "cmake ninja",
    "macos": "cmake ninja",
}


class SourceBuilds(Maker):
    """Compiles and removes the programs of one data directory; thread-safe."""

    def __init__(
        self,
        home: Path,
        sources: PackageSources,
        *,
        installed: InstallationStore | None = None,
        platform: Platform | None = None,
        free_memory: Callable[[], int] | None = None,
    ) -> None:
        """`free_memory` says how many bytes compilers may use."""
        store = FileStore(home / "cache" / "sources")
        super().__init__(installed or InstallationStore(home), store, sources, platform)
        self._cache = home / "cache" / "builds"
        self._scratch = home / "cache"
        self._free_memory = free_memory or _free_memory

    def plan(self, backend: str, build: SourceBuild, version: str = "", cancel: Event | None = None) -> Plan:
        """What a build would download; needs no network for the version this release ships.

        Raises:
            JobFailed: The machine has not what it takes, or there is no such version.
        """
        build = self._resolved(build, version)
        files = self._files(build, self._toolchain(build, cancel or Event()))
        return self._plan(backend, build, files)

    def build(
        self,
        backend: str,
        build: SourceBuild,
        *,
        job: str,
        variant: str = "",
        version: str = "",
        repair: bool = False,
        cancel: Event | None = None,
        progress: Callable[[Progress], None] | None = None,
    ) -> Installation:
        """Build one installation; blocks, for minutes to hours. Arguments and errors are those of
        `Environments.build`; what was compiled is kept, whether or not it runs here.
        """
        cancel = cancel or Event()
        need_exec(self.installed.home)
        report = ProgressReport(job, progress or (lambda _: None))
        report.phase("resolving", f"Looking for a compiler for {build.distribution}")
        build = self._resolved(build, version)
        newest = version == "latest" and not repair
        if newest and (here := self.installed.made_of(backend, build.version, variant)) is not None:
            return here
        toolchain = self._toolchain(build, cancel)
        files, key = self._files(build, toolchain), key_of(build, toolchain)
        name = f"{build.distribution} {build.version}"
        with self.store.using(files):
            if repair:
                report.phase("verifying", f"Verifying what is cached of {name}")
                self.store.check(files, cancel)
            with self._attempt(backend, build.version, key, job, variant) as folder:
                program = self._cached(key, build)
                if program is None:
                    self._fetch(build, files, report, cancel)
                    with self._work(folder) as work:
                        made = self._compile(work, folder, build, toolchain, files, report, cancel)
                        program = self._keep(key, build, made)
                place = folder / "bin" / build.target
                place.parent.mkdir()
                _link(program, place)
                report.phase("verifying", f"Starting {build.target} once")
                probe_program(place, name, build, cancel)
                no_restore = None
                if build.computes:
                    argv = (str(base_python()), "-I", str(launcher(build.computes, "compute")), str(place))
                    prove(argv, f"{backend} {variant}", on_device=bool(build.sees), cancel=cancel)
                    no_restore = restores(argv, cancel=cancel) if build.computes in RESTORING else None
                found = self._record(folder, backend, variant, build, toolchain, files, key)
                found = msgspec.structs.replace(found, no_restore=no_restore)
                (folder / ATTEMPT).unlink()
                write_record(folder, found)
        return found.installation()

    def sweep(self, older_than: float | None = None) -> None:
        """Also remove programs that no installation has, if last used before then; a month ago by default."""
        super().sweep(older_than)
        before = time.time() - _KEPT_SECONDS if older_than is None else older_than
        with suppress(FileNotFoundError):
            for entry in list(os.scandir(self._cache)):
                with suppress(FileNotFoundError):
                    linked = any(one.stat().st_nlink > 1 for one in os.scandir(entry.path))
                    if not linked and entry.stat().st_mtime < before:
                        shutil.rmtree(entry.path, ignore_errors=True)

    def _caches(self) -> list[Path]:
        return [self.store.root, self._cache]

    def _toolchain(self, build: SourceBuild, cancel: Event) -> Toolchain:
        with self._work(self._scratch) as folder:
            toolchain = look(build, folder, cancel)
        if not {"cmake", "ninja"} <= toolchain.programs.keys():
            try:
                _tools(build)
            except JobFailed:
                need = BuildNeed(f"cmake {'.'.join(map(str, build.cmake))} or later, or no ninja", _CMAKE)
                toolchain = replace(toolchain, lacking=(*toolchain.lacking, need))
        message, advice = lacking(toolchain)
        if message:
            message = f"{build.distribution} cannot be compiled here. {message}"
            raise machine_failed("permanent", "tools_missing", message, advice)
        return toolchain

    def _resolved(self, build: SourceBuild, version: str) -> SourceBuild:
        """The recipe for a version the user named, whose hash is the index's."""
        if version in ("", "pinned", build.version):
            return build
        from packaging.version import InvalidVersion, Version

        from greenroom.runner.installations.verified_download import Finder

        sources = self._sources.understood()
        versions: dict[Version, str] = {}
        start, end = f"{build.distribution.replace('-', '_')}-", ".tar.gz"
        for link in Finder(sources).links(normalized(build.distribution)):
            if link.name.startswith(start) and link.name.endswith(end) and link.sha256:
                with suppress(InvalidVersion):
                    versions[Version(link.name[len(start) : -len(end)])] = link.sha256
        with suppress(InvalidVersion):
            chosen = max(versions, default=None) if version == "latest" else Version(version)
            if chosen is not None and chosen in versions:
                return replace(build, version=str(chosen), sha256=versions[chosen], size=0)
        raise JobFailed.permanent(
            "no_such_version",
            f"{build.distribution} {version} is not on the package index.",
            advice=f"Leave the version out to get {build.version}, which this release was tested with.",
        )

    def _files(self, build: SourceBuild, toolchain: Toolchain) -> tuple[LockedFile, ...]:
        """The distribution, then the wheels of the tools that the machine has not."""
        tools = (
            [file for file in _tools(build) if file.project not in toolchain.programs]
            if not ({"cmake", "ninja"} <= toolchain.programs.keys())
            else []
        )
        return (LockedFile(build.file, build.sha256, build.size), *tools)

    def _plan(self, backend: str, build: SourceBuild, files: tuple[LockedFile, ...]) -> Plan:
        tools = (f"{file.project}=={file.version}" for file in files[1:])
        packages = [f"{build.distribution}=={build.version}", *tools]
        return self._plan_for(backend, build.version, packages, files)

    def _fetch(
        self, build: SourceBuild, files: tuple[LockedFile, ...], report: ProgressReport, cancel: Event
    ) -> None:
        from greenroom.runner.installations.verified_download import Fetcher

        missing = self.store.missing(files)
        need_space(self.installed.room, build.disk_bytes + sum(file.size for file in missing))
        if missing:
            self._sources.understood()
        name = f"Downloading {build.distribution} {build.version}"
        fetcher = Fetcher(self.store, self._sources, room=partial(keep_reserve, self.installed.room))
        fetcher.fetch(files, cancel=cancel, on_bytes=lambda done, total: report.bytes(name, done, total))

    def _compile(
        self,
        work: Path,
        attempt: Path,
        build: SourceBuild,
        toolchain: Toolchain,
        files: tuple[LockedFile, ...],
        report: ProgressReport,
        cancel: Event,
    ) -> Path:
        def started(pid: int) -> None:
            if (who := ProcessIdentity.of(pid)) is not None:
                builder = BuildAttempt(job=report.job, pid=who.pid, started=who.started, boot=who.boot)
                write_attempt(attempt, builder)

        def percent(value: int) -> None:
            if value != report.last.percent:
                report.phase("compiling", f"Compiling {build.distribution} {build.version}", value)

        compiling = Compiling(work, build, toolchain, attempt=attempt, cancel=cancel, on_start=started)
        report.phase("unpacking", f"Unpacking {build.distribution} {build.version}")
        distribution, *wheels = (self.store.path(file) for file in files)
        compiling.unpack(distribution, wheels)
        report.phase("compiling", f"Configuring {build.distribution} {build.version}", 0)
        compiling.configure()
        jobs = jobs_for(build, _cores(), self._free_memory())
        percent(0)
        return compiling.compile(jobs, percent)

    @contextmanager
    def _work(self, folder: Path) -> Iterator[Path]:
        """A folder for everything that is only needed while compiling."""
        work = folder / (_WORK if folder != self._scratch else f"look-{os.getpid()}-{time.monotonic_ns()}")
        work.mkdir(parents=True)
        try:
            yield work
        finally:
            shutil.rmtree(work, ignore_errors=True)

    def _cached(self, key: str, build: SourceBuild) -> Path | None:
        """The program of an earlier build, if it is still byte for byte what was compiled."""
        folder = self._cache / key
        program = folder / build.target
        try:
            whole = sha256(program) == (folder / _SUM).read_text(encoding="ascii")
        except (FileNotFoundError, NotADirectoryError, UnicodeDecodeError):
            return None
        if not whole:
            shutil.rmtree(folder, ignore_errors=True)
            return None
        os.utime(folder)
        return program

    def _keep(self, key: str, build: SourceBuild, made: Path) -> Path:
        folder = self._cache / key
        draft = self._cache / f"{key}.{os.getpid()}"
        shutil.rmtree(draft, ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)
        draft.mkdir(parents=True)
        shutil.copyfile(made, draft / build.target)
        (draft / build.target).chmod(0o755)
        (draft / _SUM).write_text(sha256(draft / build.target), encoding="ascii")
        draft.rename(folder)
        return folder / build.target

    def _record(
        self,
        folder: Path,
        backend: str,
        variant: str,
        build: SourceBuild,
        toolchain: Toolchain,
        files: tuple[LockedFile, ...],
        key: str,
    ) -> InstallationRecord:
        sizes, links = inventory(folder)
        sizes.pop(ATTEMPT, None)
        options = [f"{name}={value}" for name, value in build.entries if value != "OFF"]
        compiled = f" ({', '.join(options)})" if options else ""
        return InstallationRecord(
            schema=WITH_PROGRAM,
            id=folder.name,
            backend=backend,
            variant=variant,
            version=build.version,
            digest=key,
            built_at=time.time(),
            size=usage([folder]),
            python=Interpreter.here(),
            wheels=tuple(Wheel(name=f.name, sha256=f.sha256, size=f.size) for f in files),
            probed=(),
            files=sizes,
            links=links,
            sums={name: sha256(folder / name) for name in sizes},
            program=f"bin/{build.target}",
            built_with=f"{toolchain.described()}{compiled}",
        )


def probe_program(program: Path, name: str, build: SourceBuild, cancel: Event) -> None:
    """Run a compiled program: it must say its version, and see a device if it was compiled for one.

    Raises:
        JobFailed: It does not run here, or sees none.
        JobCancelled: `cancel` was set.
    """
    for option in ("--version", "--list-devices"):
        outcome = run_briefly(
            [str(program), option], env=cleaned({}), seconds=_PROBE_SECONDS, cancel=cancel, both=True
        )
        if outcome.code != 0:
            last = outcome.output.strip().splitlines()[-1:] or [outcome.ending]
            why, advice = missing_library(outcome.output) or (
                last[0][:200],
                "What was compiled is kept: once that is repaired, install again.",
            )
            raise machine_failed(
                "transient" if outcome.passing else "permanent",
                "probe_failed",
                f"{name} was compiled but does not start here: {why}.",
                advice,
                outcome.output,
            )
    if build.sees and not re.search(rf"^\s*{re.escape(build.sees)}\d+:", outcome.output, re.MULTILINE):
        raise machine_failed(
            "permanent",
            "no_device",
            f"{name} was compiled for {build.sees} but finds no such device here.",
            "See whether its driver works: greenroom devices. What was compiled is kept: then install again.",
            outcome.output,
        )


def _tools(build: SourceBuild) -> tuple[LockedFile, ...]:
    """The wheels of cmake and ninja for this machine.

    Raises:
        JobFailed: There are none.
    """
    return Lock((LOCKS / f"{build.lock}.txt").read_text(encoding="utf-8")).files()


def _link(program: Path, place: Path) -> None:
    try:
        os.link(program, place)
    except OSError:
        # The file system has no links.
        shutil.copyfile(program, place)
        place.chmod(0o755)


def _free_memory() -> int:
    return int(psutil.virtual_memory().available)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
