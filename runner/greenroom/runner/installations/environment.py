"""Builds Python environments: plan, fetch, unpack, probe, commit.

Each attempt builds in its own final folder, which is never moved and does not count as an installation until
`installation.json` is written into it, last. So an attempt may be killed at any moment.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from threading import Event

import msgspec

from greenroom.actors.progress import ProgressReport
from greenroom.actors.values import Installation, Plan, Progress
from greenroom.runner.backends.base import Environment, Platform
from greenroom.runner.engines.launchers import launcher
from greenroom.runner.errors import JobCancelled, JobFailed
from greenroom.runner.installations.archive import kept_lock
from greenroom.runner.installations.compute_check import RESTORING, prove, restores
from greenroom.runner.installations.installed import (
    ATTEMPT,
    LOCK,
    BuildAttempt,
    InstallationStore,
    Maker,
    is_ample,
    keep_reserve,
    need_exec,
    need_space,
    usage,
    write_attempt,
)
from greenroom.runner.installations.lock_file import (
    FileStore,
    Lock,
    LockedFile,
    shipped,
    unpacked,
    unpacked_wheel,
)
from greenroom.runner.installations.sources import PackageSources
from greenroom.runner.installations.uv import Uv
from greenroom.runner.installations.verification import (
    ENVIRONMENT,
    InstallationRecord,
    Interpreter,
    Wheel,
    flush,
    interpreter,
    inventory,
    own_sums,
    probe,
    write_record,
)
from greenroom.runner.systems.processes import ProcessIdentity
from greenroom.runner.threads import Beside, start_thread, stop_if

Contents = tuple[dict[str, int], dict[str, str], dict[str, str]]
"""Sizes of files, targets of links, and the sums of files that no `RECORD` lists."""

_BATCH_BYTES = 8 * 10**6
"""Minimum bytes for a run of uv while files still arrive; the rest is unpacked in one run at the end."""
_TICK = 0.1
_SECONDS = 1800.0


class Environments(Maker):
    """Builds and removes the environments of one data directory; thread-safe."""

    def __init__(
        self,
        home: Path,
        sources: PackageSources,
        *,
        installed: InstallationStore | None = None,
        platform: Platform | None = None,
        uv_binary: Path | None = None,
    ) -> None:
        store = FileStore(home / "cache" / "wheels")
        super().__init__(installed or InstallationStore(home), store, sources, platform)
        self._cache = home / "cache" / "uv"
        # Wheels come from the wheel store, so this one needs no package source, and a misconfigured one
        # cannot break it.
        self._unpacker = Uv(self._cache, PackageSources(), uv_binary)
        self._uv_binary = uv_binary
        self._closing = Event()

    def lock(
        self,
        source: Environment,
        version: str = "",
        cancel: Event | None = None,
        python: Interpreter | None = None,
    ) -> Lock:
        """The shipped lock, or one resolved for a version the user named (which needs an index).

        Raises:
            JobFailed: There is none for this platform, or the version cannot be resolved.
        """
        python = python or self._python(source, cancel)
        if source.given_lock:
            from greenroom.runner.installations.given_lock import files_of

            return files_of(self._resolver(source), source.given_lock, python, cancel)
        if version in ("", "pinned"):
            try:
                return shipped(source, self._platform)
            except JobFailed:
                if not source.tested:
                    raise
                version = source.tested
        kept = self._kept(source, version) if version != "latest" else None
        with suppress(JobFailed):
            lock = shipped(source, self._platform)
            if lock.version_of(source.distribution) == version:
                # Another release may have exported the same version with other packages: the cached ones win.
                return kept if kept is not None and self._is_nearer(kept, lock) else lock
        if kept is not None:
            return kept
        from greenroom.runner.installations.resolution import for_version

        return for_version(self._resolver(source), source, version, python, cancel)

    def plan(self, backend: str, source: Environment, version: str = "", cancel: Event | None = None) -> Plan:
        """What an installation would download; needs no network for the version this release ships.

        Raises:
            JobFailed: As `lock`.
        """
        python = self._python(source, cancel)
        lock = self.lock(source, version, cancel, python)
        return self._plan(backend, source, lock, _files(lock, python))

    def build(
        self,
        backend: str,
        source: Environment,
        *,
        job: str,
        variant: str = "",
        version: str = "",
        repair: bool = False,
        digest: str = "",
        cancel: Event | None = None,
        progress: Callable[[Progress], None] | None = None,
    ) -> Installation:
        """Build one installation; blocks. For `latest`, returns the one there is if it is made of exactly the
        packages that are the newest now, for the same Python.

        Args:
            variant: Of which build `source` is; empty for the usual one.
            version: Empty for the one this release was tested with; `latest`, or a version.
            repair: An installation of this backend is broken: verify cached files before use, since hard
                links spread damage to all environments and the cache.
            digest: Of the lock that was resolved for this variant and version before. Another one is refused,
                unless it ships with this release.
            cancel: Stops the build and removes what it built; downloads are kept for the next attempt.
            progress: Receives about ten reports a second while something moves.

        Raises:
            JobFailed: What went wrong; only downloads are kept.
            JobCancelled: `cancel` was set.
        """
        cancel = cancel or Event()
        need_exec(self.installed.home)
        report = ProgressReport(job, progress or (lambda _: None))
        if version not in ("", "pinned"):
            report.phase("resolving", f"Resolving {source.distribution} {version}")
        python = self._python(source, cancel)
        lock = self.lock(source, version, cancel, python)
        if digest not in ("", lock.digest) and lock.resolved:
            raise _other_packages(source, lock)
        files = _files(lock, python)
        plan = self._plan(backend, source, lock, files)
        newest = version == "latest" and not repair
        if newest and (here := self._made_of(backend, plan.version, variant, files, python)) is not None:
            return here
        name = f"{source.distribution} {plan.version}"
        with self.store.using(files):
            if repair:
                report.phase("verifying", f"Verifying what is cached of {name}")
                self.store.check(files, cancel)
                self._unpacker.run(["cache", "clean", *(file.project for file in files)], cancel=cancel)
            report.bytes(f"Downloading {name}", sum(self.store.arrived(f) for f in files), plan.total_bytes)
            self._need_all(source, lock, files, plan, cancel)
            with (
                self._explained(files),
                self._attempt(backend, plan.version, lock.digest, job, variant) as folder,
            ):
                self._fill(folder, source, lock, files, python, cancel, report)
                report.phase("verifying", f"Testing whether {source.distribution} starts")
                # Before the first import, which writes byte code through temporary files.
                sizes, links = inventory(folder)
                sizes.pop(ATTEMPT, None)
                sums = Beside(partial(own_sums, folder, list(sizes)), f"sums-{job}")
                # Most of what the commit waits for reaches the disk meanwhile.
                flushed = Beside(partial(flush, folder), f"flush-{job}")
                probe(folder, source.distribution, source.probe, cancel)
                no_restore = (
                    self._tried(folder, backend, source, variant, cancel) if source.computes else None
                )
                flushed.result(cancel=cancel)
                contents = (sizes, links, sums.result(cancel=cancel))
                stop_if(cancel)  # the last moment at which cancelling leaves nothing: the commit comes next
                found = self._record(folder, backend, variant, source, lock, files, contents, python)
                found = msgspec.structs.replace(found, no_restore=no_restore)
                (folder / ATTEMPT).unlink()
                write_record(folder, found)
        return found.installation()

    def close(self) -> None:
        self._closing.set()

    def _tried(
        self, folder: Path, backend: str, source: Environment, variant: str, cancel: Event
    ) -> str | None:
        """Have it compute; returns why its engines cannot go on with what others have saved, as a record has
        it.
        """
        argv = (str(interpreter(folder)), "-I", str(launcher(source.computes, "compute")))
        name = " ".join(filter(None, (backend, variant)))
        prove(argv, name, on_device=source.on_device, cancel=cancel)
        return restores(argv, cancel=cancel) if source.computes in RESTORING else None

    def _caches(self) -> list[Path]:
        return [self.store.root, self._cache]

    def _forget(self, projects: Iterable[str]) -> None:
        """Clear uv's cache of projects that no installation has any more."""
        records = self.installed.records(all_of_them=True)
        still = {wheel.locked().project for record in records for wheel in record.wheels}
        if gone := sorted(set(projects) - still):
            self._unpacker.run(["cache", "clean", *gone], deadline=180.0, cancel=self._closing)

    def _kept(self, source: Environment, version: str) -> Lock | None:
        """The lock of a version imported from an archive."""
        try:
            kept = kept_lock(self.installed.home, source.kept_as, version)
            return Lock(kept.read_text(encoding="utf-8"), resolved=True)
        except (FileNotFoundError, JobFailed):
            return None

    def _is_nearer(self, kept: Lock, other: Lock) -> bool:
        """Whether `kept` needs no download and `other` does."""
        try:
            return not self.store.missing(kept.files()) and bool(self.store.missing(other.files()))
        except JobFailed:
            return False

    def _sources_of(self, source: Environment) -> PackageSources:
        origin = f"the declaration of {source.distribution}"
        if source.only_indexes:
            return self._sources.with_only(source.only_indexes, origin)
        sources = self._sources.with_indexes(source.indexes, origin)
        return sources.with_first(source.own_index, origin) if source.own_index else sources

    def _resolver(self, source: Environment) -> Uv:
        return Uv(self._cache, self._sources_of(source).understood(), self._uv_binary)

    def _python(self, source: Environment, cancel: Event | None) -> Interpreter:
        """Raises JobFailed if it is not on this machine."""
        if not source.python:
            return Interpreter.here()
        from greenroom.runner.installations.pythons import find

        return find(self._unpacker, source.python, cancel)

    def _plan(self, backend: str, source: Environment, lock: Lock, files: Sequence[LockedFile]) -> Plan:
        packages = (f"{file.project}=={file.version}" for file in files)
        return self._plan_for(backend, _version(source, lock), packages, files)

    def _fill(
        self,
        folder: Path,
        source: Environment,
        lock: Lock,
        files: Sequence[LockedFile],
        python: Interpreter,
        cancel: Event,
        report: ProgressReport,
    ) -> None:
        """Fetch and unpack at the same time."""
        # Imported here: a daemon with nothing to install never needs it.
        from greenroom.runner.installations.verified_download import AnyOf, Fetcher

        (folder / LOCK).write_text(lock.text, encoding="utf-8")
        linked = self._is_linked(lock)

        def before(batch: list[LockedFile]) -> None:
            if not linked:
                sizes = (unpacked_wheel(self.store.path(file), file.size) for file in batch)
                need_space(self.installed.room, sum(sizes))

        name = f"{source.distribution} {_version(source, lock)}"
        unpacking = _Unpacking(self._unpacker, self.store, folder, Path(python.base), report.job, before)
        sources = self._sources_of(source)
        try:
            if self.store.missing(files):
                sources.understood()
            Fetcher(self.store, sources, room=partial(keep_reserve, self.installed.room)).fetch(
                sorted(files, key=_unpacking_last),
                cancel=AnyOf(cancel, unpacking),
                on_bytes=lambda done, total: report.bytes(f"Downloading {name}", done, total),
                on_file=unpacking.add,
            )
            report.phase("unpacking", f"Unpacking {len(files)} package{'s' if len(files) > 1 else ''}")
            unpacking.finish(cancel)
        except JobCancelled:
            if unpacking.is_set() and not cancel.is_set():
                unpacking.finish(cancel)  # fetching was stopped only because unpacking failed
            raise
        finally:
            unpacking.stop()

    def _record(
        self,
        folder: Path,
        backend: str,
        variant: str,
        source: Environment,
        lock: Lock,
        files: Sequence[LockedFile],
        contents: Contents,
        python: Interpreter,
    ) -> InstallationRecord:
        sizes, links, sums = contents
        return InstallationRecord(
            id=folder.name,
            backend=backend,
            variant=variant,
            version=_version(source, lock),
            digest=lock.digest,
            built_at=time.time(),
            size=usage([folder]),
            python=python,
            wheels=tuple(Wheel(name=f.name, sha256=f.sha256, size=f.size) for f in files),
            probed=source.probe,
            files=sizes,
            links=links,
            sums=sums,
        )

    def _made_of(
        self, backend: str, version: str, variant: str, files: Sequence[LockedFile], python: Interpreter
    ) -> Installation | None:
        """An intact installation of these very files. Its lock may say the same in other words."""
        wanted = {(file.name, file.sha256) for file in files}

        def is_same(record: InstallationRecord) -> bool:
            made = {(wheel.name, wheel.sha256) for wheel in record.wheels}
            return made == wanted and record.python.tag == python.tag

        return self.installed.made_of(backend, version, variant, is_same)

    def _is_linked(self, lock: Lock) -> bool:
        """Whether an installation of the same lock exists: unpacking then only creates hard links."""
        return any(record.digest == lock.digest for record in self.installed.records())

    def _need_all(
        self, source: Environment, lock: Lock, files: Sequence[LockedFile], plan: Plan, cancel: Event
    ) -> None:
        """Check that everything fits on the disk; in doubt, ask the index how large it is."""
        room = self.installed.room
        if is_ample(room, plan.download_bytes, plan.total_bytes):
            return
        if self._is_linked(lock):
            need_space(room, plan.download_bytes)
            return
        # If the packed size does not fit, there is no need to ask.
        need_space(room, plan.download_bytes + (plan.total_bytes if plan.download_bytes else 0))
        from greenroom.runner.installations.verified_download import Finder, PackageOrigin

        origin = PackageOrigin(Finder(self._sources_of(source)))

        def here(file: LockedFile) -> Path | None:
            return self.store.path(file) if self.store.has(file) else origin.local(file)

        need_space(room, plan.download_bytes + unpacked(files, here, origin.tail, cancel))

    @contextmanager
    def _explained(self, files: Sequence[LockedFile]) -> Iterator[None]:
        """If other programs fill the disk meanwhile, fail with the space needed and left."""
        try:
            yield
        except JobFailed as failed:
            if failed.failure.code == "no_space":
                needed = sum(2 * file.size - self.store.arrived(file) for file in files)
                try:
                    need_space(self.installed.room, needed)
                except JobFailed as told:
                    detailed = msgspec.structs.replace(told.failure, detail=failed.failure.detail)
                    raise JobFailed(detailed) from failed.__cause__
            raise


def _files(lock: Lock, python: Interpreter) -> tuple[LockedFile, ...]:
    """Raises JobFailed if a package has none for this Python."""
    if python.tag == sys.implementation.cache_tag:
        return lock.files()
    from greenroom.runner.installations.pythons import files_for

    return files_for(python, lock.packages)


def _version(source: Environment, lock: Lock) -> str:
    """That of its distribution; a lock without it is known by its digest."""
    try:
        return lock.version_of(source.distribution)
    except KeyError:
        return lock.digest[:12]


def _other_packages(source: Environment, lock: Lock) -> JobFailed:
    version = lock.version_of(source.distribution)
    return JobFailed.permanent(
        "hash_mismatch",
        f"{source.distribution} {version} ({source.build}) on the package index is not what was installed "
        "before under this version.",
        advice="If its publisher has replaced it and you trust that, uninstall the variant and install it "
        "again; else ask for another version.",
    )


class _Unpacking:
    """Builds one environment: files are added as they arrive, a thread passes them to uv.

    uv makes the environment's files hard links to what it unpacked into its cache (clones on macOS), so a
    second environment of the same packages costs no space and a tenth of the time.
    """

    def __init__(
        self,
        uv: Uv,
        wheels: FileStore,
        folder: Path,
        python: Path,
        job: str,
        before: Callable[[list[LockedFile]], None],
    ) -> None:
        """`python` is the interpreter below the environment. `before` is called with each batch before it is
        unpacked and may raise `JobFailed`; `job` is for `attempt.json`.
        """
        self._uv = uv
        self._wheels = wheels
        self._folder = folder
        self._python = python
        self._job = job
        self._before = before
        self._stop = Event()
        self._change = threading.Condition()
        self._waiting: list[LockedFile] = []
        self._complete = False
        self._failure: BaseException | None = None
        self._thread = start_thread(self._work, f"unpack-{job}")

    def add(self, file: LockedFile) -> None:
        with self._change:
            self._waiting.append(file)
            self._change.notify()

    def is_set(self) -> bool:
        """True once unpacking has failed, and further fetching is pointless."""
        return self._failure is not None

    def finish(self, cancel: Event) -> None:
        """Wait until everything added is unpacked.

        Raises:
            JobFailed: What uv could not do.
            JobCancelled: `cancel` was set.
        """
        with self._change:
            self._complete = True
            self._change.notify()
        while self._thread.is_alive():
            self._thread.join(_TICK)
            if cancel.is_set():
                self._stop.set()
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """End uv, and wait until nothing writes into the folder any more."""
        self._stop.set()
        with self._change:
            self._change.notify()
        self._thread.join()

    def _work(self) -> None:
        try:
            self._make_environment()
            while batch := self._next_batch():
                self._before(batch)
                self._install(batch)
        except BaseException as error:  # noqa: BLE001 - carried to the thread that waits in `finish`
            self._failure = error

    def _next_batch(self) -> list[LockedFile]:
        """The next files to unpack; empty when all are."""
        with self._change:
            while not self._complete and sum(file.size for file in self._waiting) < _BATCH_BYTES:
                stop_if(self._stop)
                self._change.wait()
            batch, self._waiting = self._waiting, []
        return batch

    def _make_environment(self) -> None:
        args = ["venv", str(self._folder / ENVIRONMENT), "--python", str(self._python)]
        args += ["--no-project", "--offline", "--quiet"]
        self._uv.run(args, cancel=self._stop, on_start=self._started, deadline=120.0)

    def _install(self, batch: list[LockedFile]) -> None:
        wanted = self._folder / "requirements.txt"
        lines = [
            f"{file.project} @ {self._wheels.path(file).absolute().as_uri()} --hash=sha256:{file.sha256}"
            for file in batch
        ]
        wanted.write_text("\n".join(lines) + "\n", encoding="utf-8")
        python = self._folder / ENVIRONMENT / "bin" / "python"
        args = ["pip", "install", "--python", str(python), "-r", str(wanted), "--no-deps", "--require-hashes"]
        args += ["--only-binary", ":all:", "--no-index", "--offline", "--quiet"]
        try:
            self._uv.run(args, cancel=self._stop, on_start=self._started, deadline=_SECONDS)
        except JobFailed as failed:
            # All were whole when fetched. If the disk has damaged one since, that is the reason, however uv
            # puts it, and the next attempt fetches it again.
            if bad := self._wheels.check(batch, self._stop):
                raise JobFailed.transient(
                    "cache_damaged",
                    f"The cached file {bad[0].name} was damaged on the disk and has been removed.",
                    advice="The next attempt fetches it again.",
                    detail=failed.failure.detail,
                ) from failed
            raise
        wanted.unlink()

    def _started(self, pid: int) -> None:
        who = ProcessIdentity.of(pid)
        if who is not None:
            attempt = BuildAttempt(job=self._job, pid=who.pid, started=who.started, boot=who.boot)
            write_attempt(self._folder, attempt)


def _unpacking_last(file: LockedFile) -> tuple[bool, int, str]:
    """Sort key: slow to unpack first, so that the last arrivals are unpacked at once.

    The number of files takes the time. Pure Python wheels have many for their size, so they come first; then
    by size.
    """
    return not file.name.endswith("-none-any.whl"), -file.size, file.name
