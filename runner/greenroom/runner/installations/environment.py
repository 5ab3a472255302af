"""Builds Python environments: plan, fetch, unpack, probe, commit.

Each attempt builds in a final folder of its own that is never moved, and nothing believes in the folder
before `installation.json` is written into it, last. So an attempt may be killed at any moment.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from threading import Event

import msgspec

from greenroom.actors.values import Installation, Plan, Progress
from greenroom.runner.backends.base import Environment, Platform
from greenroom.runner.errors import JobCancelled, JobFailed
from greenroom.runner.installations import record as records
from greenroom.runner.installations.archive import kept_lock
from greenroom.runner.installations.bounded import Beside
from greenroom.runner.installations.disk import (
    ATTEMPT,
    LOCK,
    InstallationStore,
    blocks,
    discard,
    folder_of,
    freed,
    kept_if_unclear,
    need_exec,
    usage,
)
from greenroom.runner.installations.lock import Lock, LockedFile, shipped
from greenroom.runner.installations.progress import ProgressReport
from greenroom.runner.installations.record import Interpreter, Record, Unclear, Wheel
from greenroom.runner.installations.sources import PackageSources
from greenroom.runner.installations.space import (
    is_ample,
    keep_reserve,
    need_space,
    unpacked,
    unpacked_wheel,
)
from greenroom.runner.installations.unpacking import Unpacking
from greenroom.runner.installations.uv import Uv, os_failure
from greenroom.runner.installations.verification import inventory, own_sums, probe
from greenroom.runner.installations.wheels import WheelStore

Contents = tuple[dict[str, int], dict[str, str], dict[str, str]]
"""Sizes of files, targets of links, sums of those files that no `RECORD` speaks for."""

_FETCHED_STAYS = 7 * 86400.0
"""Seconds for which files of an installation that did not come about are kept."""


class Environments:
    """Builds and removes the environments of one data directory; safe to use from several threads."""

    def __init__(
        self,
        home: Path,
        sources: PackageSources,
        *,
        installed: InstallationStore | None = None,
        platform: Platform | None = None,
        uv_binary: Path | None = None,
    ) -> None:
        """`installed` is shared with whoever else builds in this data directory."""
        self.installed = installed or InstallationStore(home)
        self.wheels = WheelStore(home / "cache" / "wheels")
        self._cache = home / "cache" / "uv"
        self._sources = sources
        self._platform = platform or Platform.here()
        # What is unpacked lies in the wheel store already: this one needs no source, and none that is set
        # up wrongly can disturb it.
        self._unpacker = Uv(self._cache, PackageSources(), uv_binary)
        self._uv_binary = uv_binary
        self._closing = Event()

    def use(self, sources: PackageSources) -> None:
        """From now on packages come from there."""
        self._sources = sources

    def lock(self, source: Environment, version: str = "", cancel: Event | None = None) -> Lock:
        """The shipped lock, or one resolved for a version asked for by hand (which needs an index).

        Raises:
            JobFailed: There is none for this platform, or the version cannot be resolved.
        """
        if version in ("", "pinned"):
            return shipped(source, self._platform)
        kept = self._kept(source, version) if version != "latest" else None
        with suppress(JobFailed):
            lock = shipped(source, self._platform)
            if lock.version_of(source.distribution) == version:
                # Another release may have brought the same version with other packages: what is here counts.
                return kept if kept is not None and self._is_nearer(kept, lock) else lock
        if kept is not None:
            return kept
        from greenroom.runner.installations.resolution import for_version

        uv = Uv(self._cache, self._sources_of(source).understood(), self._uv_binary)
        return for_version(uv, source, version, records.base_python(), cancel)

    def plan(self, backend: str, source: Environment, version: str = "", cancel: Event | None = None) -> Plan:
        """What an installation would fetch; without a network for the version this release ships.

        Raises:
            JobFailed: As `lock`.
        """
        lock = self.lock(source, version, cancel)
        return self._plan(backend, source, lock, lock.files())

    def build(
        self,
        backend: str,
        source: Environment,
        *,
        job: str,
        version: str = "",
        repair: bool = False,
        cancel: Event | None = None,
        progress: Callable[[Progress], None] | None = None,
    ) -> Installation:
        """Build one installation; blocks. The newest version is not built again where it is here.

        Args:
            version: Empty for the one this release was tested with; `latest`, or a version.
            repair: Something of this backend was found broken: trust nothing that is cached without
                reading it, since damage in one environment shows in all and in the cache (hard links).
            cancel: Ends it, and removes what it has built; what was fetched stays for the next attempt.
            progress: Gets about ten reports a second while something moves.

        Raises:
            JobFailed: What went wrong; nothing is left but what was fetched.
            JobCancelled: `cancel` was set.
        """
        cancel = cancel or Event()
        need_exec(self.installed.home)
        report = ProgressReport(job, progress)
        if version not in ("", "pinned"):
            report.phase("resolving", f"Resolving {source.distribution} {version}")
        lock = self.lock(source, version, cancel)
        files = lock.files()
        plan = self._plan(backend, source, lock, files)
        newest = version == "latest" and not repair
        if newest and (here := self.installed.whole(backend, plan.version)) is not None:
            return here
        name = f"{source.distribution} {plan.version}"
        with self.wheels.using(files):
            if repair:
                report.phase("verifying", f"Verifying what is cached of {name}")
                self.wheels.check(files, cancel)
                self._unpacker.run(["cache", "clean", *(file.project for file in files)], cancel=cancel)
            report.bytes(f"Downloading {name}", sum(self.wheels.arrived(f) for f in files), plan.total_bytes)
            self._need_all(source, lock, files, plan, cancel)
            folder = self.installed.new_folder(backend, plan.version, lock.digest, job)
            try:
                self._fill(folder, source, lock, files, cancel, report)
                report.phase("verifying", f"Starting {source.distribution} once")
                # Before the first import, which writes byte code by way of files that vanish again.
                sizes, links = inventory(folder)
                sizes.pop(ATTEMPT, None)
                sums = Beside(partial(own_sums, folder, list(sizes)), f"sums-{job}")
                # Most of what the commit waits for reaches the disk meanwhile.
                flushed = Beside(partial(records.flush, folder), f"flush-{job}")
                self._probe(folder, source, cancel)
                flushed.result(cancel=cancel)
                contents = (sizes, links, sums.result(cancel=cancel))
                _unless(cancel)
                found = self._record(folder, backend, source, lock, files, contents)
                (folder / ATTEMPT).unlink()
                records.write(folder, found)
            except OSError as error:
                discard(folder)
                raise self._with_numbers(
                    os_failure(error, "The installation could not be written"), files
                ) from error
            except JobFailed as failed:
                discard(folder)
                raise self._with_numbers(failed, files) from failed.__cause__
            except BaseException:
                discard(folder)
                raise
            finally:
                self.installed.settled(folder)
        return found.installation()

    def remove(self, installation: Installation) -> int:
        """Remove an installation, and what of the cache nothing else needs; returns the bytes freed.

        Measured: the sizes of all files that have no name left, hard links counted once.

        Raises:
            JobFailed: Its files cannot be removed.
        """
        folder = folder_of(self.installed.home, installation)
        before = blocks([folder, self.wheels.root, self._cache])
        gone = {wheel.sha256: wheel.locked() for wheel in self._wheels_of(folder)}
        try:
            discard(folder)
        except OSError as error:
            raise os_failure(error, f"{installation.backend} could not be removed") from error
        with kept_if_unclear():
            self._forget(self.wheels.release(gone.values(), self._needed()))
        return freed(before, blocks([folder, self.wheels.root, self._cache]))

    def sweep(self, older_than: float | None = None) -> None:
        """Remove what was fetched for attempts that came to nothing; not while one goes on.

        It stays a while, unless `older_than` (wall time) says otherwise: the next attempt goes on with it.
        """
        before = time.time() - _FETCHED_STAYS if older_than is None else older_than
        with kept_if_unclear():
            self._forget(self.wheels.sweep(self._needed(), before))

    def drop_fetched(self) -> int:
        """Remove all of it now; returns the bytes freed."""
        places = [self.wheels.root, self._cache]
        before = blocks(places)
        self.sweep(math.inf)
        return freed(before, blocks(places))

    def close(self) -> None:
        """End what is being tidied up."""
        self._closing.set()

    def _needed(self) -> set[str]:
        """Sums of all files that some installation was made from."""
        records = self.installed.records(all_of_them=True)
        return {wheel.sha256 for record in records for wheel in record.wheels}

    def _forget(self, names: Iterable[str]) -> None:
        """Have the cache drop what was unpacked of projects that no installation has any more."""
        records = self.installed.records(all_of_them=True)
        still = {wheel.locked().project for record in records for wheel in record.wheels}
        if gone := sorted(set(names) - still):
            self._unpacker.run(["cache", "clean", *gone], deadline=180.0, cancel=self._closing)

    def _kept(self, source: Environment, version: str) -> Lock | None:
        """Of a version that was brought here in an archive; what cannot be a file's name was not."""
        try:
            kept = kept_lock(self.installed.home, source.distribution, version)
            return Lock(kept.read_text(encoding="utf-8"))
        except (FileNotFoundError, JobFailed):
            return None

    def _is_nearer(self, kept: Lock, other: Lock) -> bool:
        """Whether nothing must be fetched for the one, and something for the other."""
        try:
            return not self.wheels.missing(kept.files()) and bool(self.wheels.missing(other.files()))
        except JobFailed:
            return False

    def _sources_of(self, source: Environment) -> PackageSources:
        return self._sources.with_indexes(source.indexes, f"the declaration of {source.distribution}")

    def _plan(self, backend: str, source: Environment, lock: Lock, files: Sequence[LockedFile]) -> Plan:
        return Plan(
            backend=backend,
            version=lock.version_of(source.distribution),
            packages=tuple(f"{file.project}=={file.version}" for file in files),
            download_bytes=sum(file.size - self.wheels.arrived(file) for file in files),
            total_bytes=sum(file.size for file in files),
        )

    def _fill(
        self,
        folder: Path,
        source: Environment,
        lock: Lock,
        files: Sequence[LockedFile],
        cancel: Event,
        report: ProgressReport,
    ) -> None:
        """Fetch and unpack, both at once."""
        # Loaded when something is installed: a daemon whose backends are there never needs it.
        from greenroom.runner.installations.fetch import AnyOf, Fetcher

        (folder / LOCK).write_text(lock.text, encoding="utf-8")
        linked = self._is_linked(lock)

        def before(batch: list[LockedFile]) -> None:
            if not linked:
                need_space(self.installed.home, self._unpacked_size(batch))

        name = f"{source.distribution} {lock.version_of(source.distribution)}"
        unpacking = Unpacking(self._unpacker, self.wheels, folder, report.job, before)
        sources = self._sources_of(source)
        try:
            if self.wheels.missing(files):
                sources.understood()
            Fetcher(self.wheels, sources, room=partial(keep_reserve, self.installed.home)).fetch(
                sorted(files, key=_unpacking_last),
                cancel=AnyOf(cancel, unpacking),
                on_bytes=lambda done, total: report.bytes(f"Downloading {name}", done, total),
                on_file=unpacking.add,
            )
            report.phase("unpacking", f"Unpacking {len(files)} package{'s' if len(files) > 1 else ''}")
            unpacking.finish(cancel)
        except JobCancelled:
            if unpacking.is_set() and not cancel.is_set():
                unpacking.finish(cancel)  # fetching was only ended because this failed
            raise
        finally:
            unpacking.stop()

    def _probe(self, folder: Path, source: Environment, cancel: Event) -> None:
        probe(folder, source.distribution, source.probe, cancel)

    def _record(
        self,
        folder: Path,
        backend: str,
        source: Environment,
        lock: Lock,
        files: Sequence[LockedFile],
        contents: Contents,
    ) -> Record:
        sizes, links, sums = contents
        return Record(
            id=folder.name,
            backend=backend,
            version=lock.version_of(source.distribution),
            digest=lock.digest,
            built_at=time.time(),
            size=usage([folder]),
            python=Interpreter.here(),
            wheels=tuple(Wheel(name=f.name, sha256=f.sha256, size=f.size) for f in files),
            probed=source.probe,
            files=sizes,
            links=links,
            sums=sums,
        )

    def _wheels_of(self, folder: Path) -> tuple[Wheel, ...]:
        try:
            found = records.read(folder)
        except (ValueError, Unclear):
            found = None
        return found.wheels if found is not None else ()

    def _unpacked_size(self, files: Sequence[LockedFile]) -> int:
        return sum(unpacked_wheel(self.wheels.path(file), file.size) for file in files)

    def _is_linked(self, lock: Lock) -> bool:
        """With a whole installation of the same lock here, unpacking only makes hard links."""
        return any(record.digest == lock.digest for record in self.installed.records())

    def _need_all(
        self, source: Environment, lock: Lock, files: Sequence[LockedFile], plan: Plan, cancel: Event
    ) -> None:
        """See that there is room for all of it; where that is in doubt, the index is asked how much it is."""
        home = self.installed.home
        if is_ample(home, plan.download_bytes, plan.total_bytes):
            return
        if self._is_linked(lock):
            need_space(home, plan.download_bytes)
            return
        # What cannot be unpacked beside what is fetched needs no asking.
        need_space(home, plan.download_bytes + (plan.total_bytes if plan.download_bytes else 0))
        from greenroom.runner.installations.fetch import PackageOrigin

        origin = PackageOrigin(self._sources_of(source))

        def here(file: LockedFile) -> Path | None:
            return self.wheels.path(file) if self.wheels.has(file) else origin.local(file)

        need_space(home, plan.download_bytes + unpacked(files, here, origin.tail, cancel))

    def _with_numbers(self, failed: JobFailed, files: Sequence[LockedFile]) -> JobFailed:
        """The same; of a disk that others have filled meanwhile, with what is needed and what is there."""
        if failed.failure.code == "no_space":
            try:
                need_space(
                    self.installed.home, sum(2 * file.size - self.wheels.arrived(file) for file in files)
                )
            except JobFailed as told:
                return JobFailed(msgspec.structs.replace(told.failure, detail=failed.failure.detail))
        return failed


def _unpacking_last(file: LockedFile) -> tuple[bool, int, str]:
    """Sorts what takes long to unpack to the front: what arrives last is then unpacked at once.

    It is the number of files that takes time. Wheels of nothing but Python have many for their bytes: they
    come first, and within both sorts the largest.
    """
    return not file.name.endswith("-none-any.whl"), -file.size, file.name


def _unless(cancel: Event) -> None:
    """The last moment at which cancelling leaves nothing: next comes the commit."""
    if cancel.is_set():
        raise JobCancelled
