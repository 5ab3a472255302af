"""The installer's hands: begins jobs on threads of their own and reports how they go.

Nothing here decides: whether to try again, and what is wanted, is the installer's. No method but `plan`
and `close` waits for anything, and each job ends with exactly one of `committed`, `failed`, `cancelled`.
"""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from threading import Event
from typing import Protocol

import msgspec

from greenroom.actors.values import Failure, Installation, Plan, Progress
from greenroom.runner.backends.base import Backend, Environment, Image, Platform
from greenroom.runner.backends.catalog import BACKENDS
from greenroom.runner.config import ExternalBackend, RegistrySettings
from greenroom.runner.errors import JobCancelled, JobFailed
from greenroom.runner.installations import external
from greenroom.runner.installations.disk import UNREADABLE, InstallationStore, no_exec
from greenroom.runner.installations.environment import Environments
from greenroom.runner.installations.image import Images
from greenroom.runner.installations.lock import normalized
from greenroom.runner.installations.record import Unclear
from greenroom.runner.installations.sources import PackageSources
from greenroom.runner.installations.uv import os_failure
from greenroom.runner.threads import Thread, start_thread

_log = logging.getLogger(__name__)

_CLOSE_SECONDS = 10.0
_REASON = 400


def source_of(backend: Backend, named: ExternalBackend | None = None) -> Environment | Image:
    """What a backend is installed from: as it declares, or out of what the user has named instead."""
    source = backend.source
    if named is None:
        return source
    if isinstance(source, Image):
        return source.out_of(named.image) if named.image else source
    return source if named.indexes is None else replace(source, indexes=named.indexes)


class BuilderListener(Protocol):
    """Who is told; called on the threads of the jobs, so it must be quick and safe to call from any."""

    def progress(self, progress: Progress) -> None:
        """A job is that far."""

    def committed(self, job_id: str, installation: Installation) -> None:
        """The installation is complete, verified and on the disk."""

    def failed(self, job_id: str, failure: Failure, *, reached: bool = True) -> None:
        """The attempt ended; nothing of it is left but what may be used again.

        Without `reached` no server has answered at all.
        """

    def cancelled(self, job_id: str) -> None:
        """The job was ended on request; nothing of it is left but what may be used again."""

    def seen(
        self,
        backend: str,
        installations: tuple[Installation, ...],
        building: tuple[tuple[str, int], ...],
        unclear: Mapping[str, str],
    ) -> None:
        """All installations of a backend, as they are on the disk now, and (job, attempt) of all jobs.

        `unclear` are those of which it cannot be told now whether they are whole, with the reason.
        """

    def unread(self, backend: str, reason: str) -> None:
        """What a backend has on the disk cannot be read now; `reason` is a clause."""

    def removed(self, backend: str, installation_id: str, freed_bytes: int) -> None:
        """An installation is gone, and so many bytes of the disk are free again."""

    def remove_failed(self, backend: str, installation_id: str, failure: Failure) -> None:
        """An installation could not be removed; it is not usable any more."""


@dataclass
class _Job:
    attempt: int
    cancel: Event = field(default_factory=Event)
    thread: Thread | None = None


class _Makers:
    """What builds each kind of installation, all in one data directory."""

    def __init__(
        self,
        home: Path,
        sources: PackageSources,
        platform: Platform,
        registries: Mapping[str, RegistrySettings],
        uv_binary: Path | None,
        user_home: Path | None,
    ) -> None:
        self.installed = InstallationStore(home)
        self.environments = Environments(
            home, sources, installed=self.installed, platform=platform, uv_binary=uv_binary
        )
        self.images = Images(
            home,
            sources,
            installed=self.installed,
            platform=platform,
            registries=registries,
            user_home=user_home,
        )


class Builder:
    """Builds, looks at and removes the installations of one data directory."""

    def __init__(
        self,
        home: Path,
        listener: BuilderListener,
        *,
        backends: Mapping[str, Backend] = BACKENDS,
        platform: Platform | None = None,
        sources: PackageSources | None = None,
        external: Mapping[str, ExternalBackend] | None = None,
        registries: Mapping[str, RegistrySettings] | None = None,
        uv_binary: Path | None = None,
        user_home: Path | None = None,
    ) -> None:
        """Touch nothing yet.

        Args:
            sources: Where packages come from; the user's pip and uv settings when not given.
            external: The user's own installations, by backend, and images to use instead of the vendors'.
            registries: Mirrors and insecure registries.
            uv_binary: A uv to use instead of the one we depend on.
            user_home: Where backends look for what is prebuilt; the user's when not given.
        """
        self._home = home
        self._listener = listener
        self._platform = platform or Platform.here()
        self._backends = {name: backend.on(self._platform) for name, backend in backends.items()}
        self._sources = sources
        self._external = external or {}
        self._registries = registries or {}
        self._uv_binary = uv_binary
        self._user_home = user_home
        self._guard = threading.Lock()
        self._jobs: dict[str, _Job] = {}
        self._made: _Makers | None = None
        self._closing = Event()
        self._told: set[tuple[str, str, str]] = set()
        """What could not be judged, said once."""

    def start(
        self, job_id: str, backend: str, *, version: str = "", attempt: int = 1, repair: bool = False
    ) -> None:
        """Begin an attempt; a job that runs already is left alone.

        Args:
            version: Empty for the one this release was tested with; `latest`, or a version.
            attempt: Counted by the caller; for the log.
            repair: Read everything that is cached before it is used again.
        """
        job = _Job(attempt)
        with self._guard:
            if job_id in self._jobs:
                return
            self._jobs[job_id] = job
            install = partial(self._install, job_id, job, backend, version, attempt, repair)
            job.thread = Thread(install, f"install-{backend}")
        try:
            job.thread.start()
        except BaseException:
            with self._guard:
                del self._jobs[job_id]
            raise

    def cancel(self, job_id: str) -> None:
        """End a job; it reports `cancelled` unless it was done already. Unknown jobs are passed over."""
        with self._guard:
            job = self._jobs.get(job_id)
        if job is not None:
            job.cancel.set()

    def look(self, backends: Iterable[str] | None = None) -> None:
        """Sweep what has no commit mark and report, for each backend, what is there: `seen`."""
        names = tuple(self._backends if backends is None else backends)
        self._aside("look-at-installations", lambda: self._look(names))

    def remove(self, backend: str, installation_id: str) -> None:
        """Remove an installation: `removed` or `remove_failed`. The user's own is not touched."""
        self._aside(f"remove-{backend}", lambda: self._remove(backend, installation_id))

    def plan(self, backend: str, version: str = "", cancel: Event | None = None) -> Plan:
        """What an installation would fetch.

        Blocks: some milliseconds for an environment of the version this release was tested with, which needs
        no network; as long as the index or the registry takes for any other, and for images.

        Raises:
            JobFailed: The backend cannot be installed here, or the version cannot be resolved.
        """
        source, makers, cancel = self._source(backend), self._makers_with_settings(), cancel or self._closing
        if isinstance(source, Image):
            return makers.images.plan(backend, source, version, cancel)
        return makers.environments.plan(backend, source, version, cancel)

    def verify(self, backend: str, installation_id: str, cancel: Event | None = None) -> list[str]:
        """Every file of an installation whose bytes have changed, by hash; blocks for about a second.

        Raises:
            JobFailed: There is no such installation.
        """
        named = Installation(id=installation_id, backend=backend, version="")
        return self._makers().installed.verify(named, cancel or self._closing)

    def drop_fetched(self) -> int:
        """Drop what was fetched for installations that did not come about, and all that was made of it.

        Nothing of it while a job goes on. Returns the bytes freed on the disk; blocks. Raises OSError.
        """
        with self._guard:
            if self._jobs:
                return 0
        makers = self._makers()
        return makers.environments.drop_fetched() + makers.images.drop_fetched()

    def prepare(self, installation: Installation) -> None:
        """See that all an engine needs outside of its installation is there; for just before it starts.

        Raises:
            JobFailed: It cannot be put there.
        """
        if installation.managed and isinstance(self._backends[installation.backend].source, Image):
            for file in self._makers().images.place(installation):
                _log.info("%s is there again for %s", file, installation.backend)

    def close(self) -> None:
        """Cancel every job and wait, for a bounded time, until their processes are gone."""
        with self._guard:
            jobs = list(self._jobs.values())
        for job in jobs:
            job.cancel.set()
        self._closing.set()
        with self._guard:
            makers = self._made
        if makers is not None:
            makers.environments.close()
        deadline = time.monotonic() + _CLOSE_SECONDS
        for job in jobs:
            if job.thread is not None and job.thread is not threading.current_thread():
                job.thread.join(max(0.0, deadline - time.monotonic()))

    def _install(
        self, job_id: str, job: _Job, backend: str, version: str, attempt: int, repair: bool
    ) -> None:
        _log.info("%s: attempt %d to install %s %s begins", job_id, attempt, backend, version or "(pinned)")
        tell = self._attempt(job_id, job, backend, version, repair)
        # The job is forgotten before its end is told: whoever hears of it may start it again at once.
        with self._guard:
            self._jobs.pop(job_id, None)
        tell()

    def _attempt(
        self, job_id: str, job: _Job, backend: str, version: str, repair: bool
    ) -> Callable[[], None]:
        """Do the work; returns how it ended, ready to be told."""
        try:
            found = self._build(job_id, job, backend, version, repair=repair)
        except JobCancelled:
            return partial(self._listener.cancelled, job_id)
        except Unclear as error:
            failure = JobFailed.transient("unreadable", f"{backend}: {error}.", advice=UNREADABLE).failure
            return partial(self._listener.failed, job_id, failure)
        except JobFailed as failed:
            return partial(self._listener.failed, job_id, failed.failure, reached=failed.reached)
        except OSError as error:
            failure = os_failure(error, f"{backend} could not be installed").failure
            return partial(self._listener.failed, job_id, failure)
        except Exception as error:  # noqa: BLE001 - a job without an end would be waited for for ever
            return partial(self._listener.failed, job_id, _fault(error, f"Installing {backend}"))
        return partial(self._listener.committed, job_id, found)

    def _build(self, job_id: str, job: _Job, backend: str, version: str, *, repair: bool) -> Installation:
        source, makers, tell = self._source(backend), self._makers_with_settings(), self._listener.progress
        if isinstance(source, Image):
            return makers.images.build(
                backend,
                source,
                job=job_id,
                version=version,
                repair=repair,
                cancel=job.cancel,
                progress=tell,
            )
        return makers.environments.build(
            backend, source, job=job_id, version=version, repair=repair, cancel=job.cancel, progress=tell
        )

    def _source(self, backend: str) -> Environment | Image:
        declared = self._backends.get(backend)
        if declared is None:
            raise JobFailed.permanent(
                "unknown_backend",
                f"There is no backend {backend!r}.",
                advice=f"Known ones: {', '.join(self._backends)}.",
            )
        if sentence := declared.verdict(self._platform):
            raise JobFailed.permanent("unsupported_platform", sentence)
        named = self._external.get(backend)
        return source_of(declared, named)

    def _look(self, names: tuple[str, ...]) -> None:
        makers = self._makers()
        # Taken first: what ends after this reports its end after this, and is known by then.
        with self._guard:
            building = tuple((job_id, job.attempt) for job_id, job in self._jobs.items())
        try:
            swept = makers.installed.sweep()
            if not building:
                makers.environments.sweep()
                makers.images.sweep()
            for folder in swept:
                _log.info("removed %s: its installation was never finished", folder)
        except OSError as error:
            # It has no commit mark, so nobody believes in it; the next look tries again.
            _log.warning("what an unfinished installation left could not be removed: %s", error)
        for name in names:
            try:
                found, unclear = self._there(makers.installed, name)
            except OSError as error:
                _log.warning("the installations of %s cannot be read: %s", name, error)
                self._listener.unread(name, error.strerror or str(error))
            except Exception as error:  # noqa: BLE001 - it must cost no other backend, nor what is there
                _log.exception("the installations of %s could not be looked at", name)
                self._listener.unread(name, f"Greenroom failed to check it ({error!r})"[:_REASON])
            else:
                for one, reason in unclear.items():
                    if (name, one, reason) not in self._told:
                        self._told.add((name, one, reason))
                        _log.warning(
                            "%s of %s could not be checked and keeps its state: %s", one, name, reason
                        )
                self._listener.seen(name, tuple(found), building, unclear)

    def _there(self, installed: InstallationStore, name: str) -> tuple[list[Installation], Mapping[str, str]]:
        named, declared = self._external.get(name), self._backends.get(name)
        if sentence := no_exec(self._home):
            raise OSError(errno.EACCES, sentence)
        judged, unclear = installed.judged(name)
        found = list(judged)
        if declared is not None and isinstance(declared.source, Environment):
            found = [_fitting(one, declared.source, installed) for one in found]
        if named is not None and declared is not None:
            if named.binary is not None:
                found.append(external.binary(declared, named.binary))
            elif named.python is not None:
                found.append(external.environment(declared, named.python))
        return found, unclear

    def _remove(self, backend: str, installation_id: str) -> None:
        try:
            freed = self._freed(backend, installation_id)
        except JobFailed as failed:
            self._listener.remove_failed(backend, installation_id, failed.failure)
        except Exception as error:  # noqa: BLE001 - an uninstallation without an end is waited for for ever
            self._listener.remove_failed(backend, installation_id, _fault(error, f"Removing {backend}"))
        else:
            self._listener.removed(backend, installation_id, freed)

    def _freed(self, backend: str, installation_id: str) -> int:
        if installation_id == external.EXTERNAL:
            raise JobFailed.permanent(
                "not_ours",
                f"The installation of {backend} is your own and is not touched.",
                advice="Take it out of the config to have Greenroom stop using it.",
            )
        makers, named = self._makers(), Installation(id=installation_id, backend=backend, version="")
        # By what it is, not by what is declared today: another release may have installed it otherwise.
        if makers.installed.is_image(named):
            return makers.images.remove(named)
        return makers.environments.remove(named)

    def _makers(self) -> _Makers:
        # Made on first use: loading what fetching needs costs a start.
        with self._guard:
            if self._made is None:
                sources = self._sources or PackageSources()
                self._made = _Makers(
                    self._home, sources, self._platform, self._registries, self._uv_binary, self._user_home
                )
            return self._made

    def _makers_with_settings(self) -> _Makers:
        """With the user's settings as they are now: whoever mends his pip.conf need not restart anything."""
        makers = self._makers()
        if self._sources is None:
            sources = PackageSources.discover()
            for problem in (*sources.unreadable, *sources.senseless):
                _log.warning("%s", problem)
            makers.environments.use(sources)
            makers.images.use(sources)
        return makers

    def _aside(self, name: str, work: Callable[[], None]) -> None:
        start_thread(work, name)


def _fitting(one: Installation, source: Environment, installed: InstallationStore) -> Installation:
    """Broken when it was made for other processors: a machine may gain a GPU, or lose its driver."""
    if one.broken:
        return one
    projects = {wheel.locked().project for wheel in installed.record(one).wheels}
    if not projects or normalized(source.distribution) in projects:
        return one
    return msgspec.structs.replace(
        one,
        broken=f"it was made for a machine with other processors; this one needs {source.distribution}",
    )


def _fault(error: Exception, what: str) -> Failure:
    _log.exception("%s failed by a fault of ours", what)
    return JobFailed.permanent(
        "fault",
        f"{what} failed by a fault of Greenroom's own.",
        advice="Please report it with the output of `greenroom bundle`.",
        detail=f"{type(error).__name__}: {error}",
    ).failure
