"""Carries out the installer's effects on threads of their own: builds, inspects and removes installations.

It decides nothing: whether to try again, and what is wanted, is up to the installer. Each build ends with one
of `InstallationCommitted`, `InstallAttemptFailed` and `InstallCancelled`, and nothing of it is left after
the last two but what may be used again. No method waits for anything but those that say so.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Event

import msgspec

from greenroom.actors.installer.effects import (
    BuildInstallation,
    CancelBuild,
    DropUnneeded,
    InspectInstallations,
    PlanInstallation,
    PublishInstallProgress,
    RemoveInstallation,
    VerifyInstallations,
)
from greenroom.actors.installer.events import (
    InstallationCommitted,
    InstallationRemoved,
    InstallAttemptFailed,
    InstallCancelled,
)
from greenroom.actors.installer.messages import INSTALLER, FetchedDropped, Verified
from greenroom.actors.kernel.core import Effect
from greenroom.actors.progress import ProgressBoard, install_job
from greenroom.actors.reports import EffectEnded, Happened, TellActor
from greenroom.actors.values import Failure, Installation, Plan, Progress
from greenroom.runner.backends.base import Backend, Environment, Image, Platform
from greenroom.runner.backends.source_build import SourceBuild
from greenroom.runner.errors import JobCancelled, JobFailed, not_begun
from greenroom.runner.installations import external
from greenroom.runner.installations.environment import Environments
from greenroom.runner.installations.errors import os_failure
from greenroom.runner.installations.image import Images
from greenroom.runner.installations.inspection import Inspection
from greenroom.runner.installations.installed import UNREADABLE, InstallationStore, folder_of
from greenroom.runner.installations.lock_file import source_of
from greenroom.runner.installations.source_builds import SourceBuilds
from greenroom.runner.installations.sources import PackageSources
from greenroom.runner.installations.verification import Unclear
from greenroom.runner.setting_values import ExternalBackend, RegistrySettings
from greenroom.runner.systems.disk_room import DiskRoom, MakeRoom, spare_nothing
from greenroom.runner.threads import Thread, start_thread

_log = logging.getLogger(__name__)

_CLOSE_SECONDS = 10.0
_REASON = 400
_NOT_THERE = ("not_installed", "broken")
_NO_PACKAGE = ("unsupported_platform", "no_lock")


_Awaited = RemoveInstallation | PlanInstallation | VerifyInstallations | DropUnneeded
"""Effects that a caller waits for."""
_DOING: dict[type[Effect], str] = {
    RemoveInstallation: "Removing an installation",
    PlanInstallation: "Planning an installation",
    VerifyInstallations: "Verifying installations",
    DropUnneeded: "Pruning",
}


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
        free_memory: Callable[[], int] | None,
        room: DiskRoom,
    ) -> None:
        self.installed = InstallationStore(home, room)
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
        self.builds = SourceBuilds(
            home, sources, installed=self.installed, platform=platform, free_memory=free_memory
        )
        self.all: tuple[Environments, Images, SourceBuilds] = (self.environments, self.images, self.builds)


class Builder:
    """Builds, looks at and removes the installations of one data directory."""

    def __init__(
        self,
        home: Path,
        tell: TellActor,
        board: ProgressBoard,
        *,
        backends: Mapping[str, Backend] | None = None,
        environments: Mapping[str, Environment] | None = None,
        platform: Platform | None = None,
        sources: PackageSources | None = None,
        external: Mapping[str, ExternalBackend] | None = None,
        registries: Mapping[str, RegistrySettings] | None = None,
        uv_binary: Path | None = None,
        user_home: Path | None = None,
        free_memory: Callable[[], int] | None = None,
        make_room: MakeRoom = spare_nothing,
    ) -> None:
        """Touch nothing yet.

        Args:
            backends: By name; all that are known when not given.
            environments: What is installed like a backend and is none, by name; it may change at any time.
            sources: Where packages come from; the user's pip and uv settings when not given.
            external: The user's own installations, by backend, and images to use instead of the vendors'.
            registries: Mirrors and insecure registries.
            uv_binary: A uv to use instead of the one we depend on.
            user_home: Where backends look for what is prebuilt; the user's when not given.
            free_memory: Bytes that compilers may use; what the system has available when not given.
            make_room: Drops what can be spared where an installation would not fit otherwise.
        """
        self._home = home
        self._tell = tell
        self._board = board
        self._platform = platform or Platform.here()
        if backends is None:
            # Programs that install other things need none of them.
            from greenroom.runner.backends.discovery import BACKENDS

            backends = BACKENDS
        self._backends = {name: backend.on(self._platform) for name, backend in backends.items()}
        self._environments = environments if environments is not None else {}
        self._sources = sources
        self._external = external or {}
        self._registries = registries or {}
        self._uv_binary = uv_binary
        self._user_home = user_home
        self._free_memory = free_memory
        self.room = DiskRoom(home, make_room)
        self._guard = threading.Lock()
        self._jobs: dict[str, _Job] = {}
        self._no_restore: dict[tuple[str, str], str | None] = {}
        self._made: _Makers | None = None
        self._closing = Event()
        self._inspection = Inspection(home, tell, self._backends, self._external)

    def perform(self, effect: Effect, cause: str) -> None:
        """Begin one effect. Raises where no report would say that it could not be begun."""
        try:
            self._begin(effect, cause)
        except Exception as error:
            if isinstance(effect, BuildInstallation):
                self._tell(INSTALLER, Happened(event=_failed(effect, not_begun(error))))
            elif isinstance(effect, _Awaited):
                self._tell(INSTALLER, EffectEnded(effect=effect, failure=not_begun(error)))
            else:
                raise
            _log.exception("%s (caused by %s) could not be started", type(effect).__name__, cause)

    def _begin(self, effect: Effect, cause: str) -> None:
        match effect:
            case BuildInstallation():
                self._board.clear(install_job(effect.backend))
                self.start(effect)
            case CancelBuild(job=job):
                self.cancel(job)
            case PublishInstallProgress(backend=backend, phase=""):
                self._board.clear(install_job(backend))
            case PublishInstallProgress(backend=backend, phase=phase, message=message):
                self._board.publish(Progress(job=install_job(backend), phase=phase, message=message))
            case InspectInstallations(backends=backends):
                self.look(backends)
            case RemoveInstallation() | PlanInstallation() | VerifyInstallations() | DropUnneeded():
                self._aside(type(effect).__name__, partial(self._finish, effect))
            case _:
                raise TypeError(f"the builder does not perform {type(effect).__name__} ({cause})")

    def _finish(self, effect: _Awaited) -> None:
        try:
            match effect:
                case RemoveInstallation(backend=backend, installation_id=one):
                    freed = self._freed(backend, one)
                    removed = InstallationRemoved(backend=backend, installation_id=one, freed=freed)
                    ended = EffectEnded(effect=effect, event=removed)
                case PlanInstallation():
                    plan = self.plan(effect.backend, effect.version, effect.variant)
                    ended = EffectEnded(effect=effect, answer=plan)
                case VerifyInstallations(backend=backend, installations=ids):
                    read = {one: self._complaints(backend, one) for one in ids}
                    damaged = {one: complaints for one, complaints in read.items() if complaints}
                    verified = Verified(backend=backend, checked=ids, damaged=damaged)
                    ended = EffectEnded(effect=effect, answer=verified)
                case DropUnneeded():
                    ended = EffectEnded(effect=effect, answer=FetchedDropped(freed=self.drop_fetched()))
        except JobFailed as failed:
            ended = EffectEnded(effect=effect, failure=failed.failure)
        except Exception as error:  # noqa: BLE001 - the caller must get an answer
            ended = EffectEnded(effect=effect, failure=_fault(error, _DOING[type(effect)]))
        self._tell(INSTALLER, ended)

    def start(self, build: BuildInstallation) -> None:
        """Begin an attempt; a job that runs already is left alone."""
        job = _Job(build.attempt)
        with self._guard:
            if build.job in self._jobs:
                return
            self._jobs[build.job] = job
            job.thread = Thread(partial(self._install, build, job), f"install-{build.backend}")
        try:
            job.thread.start()
        except BaseException:
            with self._guard:
                del self._jobs[build.job]
            raise

    def cancel(self, job_id: str) -> None:
        """End a job; it reports `InstallCancelled` unless it was done already. Unknown jobs are ignored."""
        with self._guard:
            job = self._jobs.get(job_id)
        if job is not None:
            job.cancel.set()

    def look(self, backends: Iterable[str] | None = None) -> None:
        """Sweep what has no commit mark and report for each backend what is there: `InstallationsSeen`."""
        names = tuple(self._backends if backends is None else backends)
        self._aside("look-at-installations", lambda: self._look(names))

    def plan(self, backend: str, version: str = "", variant: str = "", cancel: Event | None = None) -> Plan:
        """What an installation would fetch.

        Blocks: some milliseconds for an environment of the version this release was tested with, which needs
        no network; as long as the index or the registry takes for any other, and for images.

        Raises:
            JobFailed: The backend cannot be installed here, or the version cannot be resolved.
        """
        source, makers = self._source(backend, variant), self._makers_with_settings()
        cancel = cancel or self._closing
        if isinstance(source, SourceBuild):
            plan = makers.builds.plan(backend, source, version, cancel)
        elif isinstance(source, Image):
            plan = makers.images.plan(backend, source, version, cancel)
        else:
            plan = makers.environments.plan(backend, source, version, cancel)
        return msgspec.structs.replace(plan, variant=variant)

    def verify(self, backend: str, installation_id: str, cancel: Event | None = None) -> list[str]:
        """Every file of an installation whose bytes have changed, by hash; blocks for about a second. Of the
        user's own: why it cannot be used.

        Raises:
            JobFailed: There is no such installation.
        """
        if installation_id == external.EXTERNAL:
            theirs = self._inspection.theirs(backend)
            return [theirs.broken] if theirs is not None and theirs.broken else []
        named = Installation(id=installation_id, backend=backend, version="")
        return self._makers().installed.verify(named, cancel or self._closing)

    def _complaints(self, backend: str, installation_id: str) -> tuple[str, ...]:
        try:
            return tuple(self.verify(backend, installation_id))
        except JobFailed as failed:
            if failed.failure.code in _NOT_THERE:
                return (failed.failure.message.rstrip("."),)
            raise

    def drop_fetched(self) -> int:
        """Drop the downloads of installations that were never finished, and what was unpacked from them.

        Nothing of it while a job goes on. Returns the bytes freed on the disk; blocks. Raises OSError.
        """
        with self._guard:
            if self._jobs:
                return 0
        makers = self._makers()
        return sum(maker.drop_fetched() for maker in makers.all)

    def prepare(self, installation: Installation) -> None:
        """Restore the files that an engine needs outside its installation, just before it starts.

        Raises:
            JobFailed: A file cannot be written.
        """
        if installation.managed and isinstance(self._backends[installation.backend].source, Image):
            for file in self._makers().images.place(installation):
                _log.info("%s was restored for %s", file, installation.backend)

    def program(self, installation: Installation) -> Path | None:
        """The program compiled for an installation; None if its Python runs the engine.

        Raises:
            JobFailed: The installation is gone.
        """
        if not installation.built_with:
            return None
        return folder_of(self._home, installation) / self._makers().installed.record(installation).program

    def no_restore(self, installation: Installation | None) -> str | None:
        """Why its engines cannot go on with what others have read and saved; empty if they can, None if that
        was never tried, or there is none. Reads the disk the first time.
        """
        if installation is None or not installation.managed:
            return None
        key = (installation.backend, installation.id)
        if key not in self._no_restore:
            try:
                self._no_restore[key] = self._makers().installed.record(installation).no_restore
            except JobFailed:
                return None
        return self._no_restore[key]

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

    def _install(self, build: BuildInstallation, job: _Job) -> None:
        _log.info(
            "%s: attempt %d to install %s %s begins",
            build.job,
            build.attempt,
            build.backend,
            build.version or "(pinned)",
        )
        event = self._attempt(build, job)
        # The job is forgotten before its end is reported: it may be started again at once.
        with self._guard:
            self._jobs.pop(build.job, None)
        self._board.clear(install_job(build.backend))
        self._tell(INSTALLER, Happened(event=event))

    def _attempt(
        self, build: BuildInstallation, job: _Job
    ) -> InstallationCommitted | InstallAttemptFailed | InstallCancelled:
        name, reached = build.backend, True
        try:
            made = self._build(build, job.cancel)
            return InstallationCommitted(job=build.job, backend=name, installation=made)
        except JobCancelled:
            return InstallCancelled(job=build.job, backend=name, reason="cancelled")
        except Unclear as error:
            failure = JobFailed.transient("unreadable", f"{name}: {error}.", advice=UNREADABLE).failure
        except JobFailed as failed:
            failure, reached = self._or_compiled(build, failed.failure), failed.reached
        except OSError as error:
            failure = os_failure(error, f"{name} could not be installed").failure
        except Exception as error:  # noqa: BLE001 - clients would wait forever for a job without an end
            failure = _fault(error, f"Installing {name}")
        return _failed(build, failure, reached=reached)

    def _or_compiled(self, build: BuildInstallation, failure: Failure) -> Failure:
        """Where no package is for this platform, one can be compiled here."""
        declared = self._backends.get(build.backend)
        if failure.code not in _NO_PACKAGE or declared is None or build.variant in declared.builds:
            return failure
        if not declared.builds or declared.verdict(self._platform):
            return failure
        advice = f"Compile it on this machine: greenroom install-runner --backend {build.backend} --build"
        return msgspec.structs.replace(failure, advice=advice)

    def _build(self, build: BuildInstallation, cancel: Event) -> Installation:
        source, makers = self._source(build.backend, build.variant), self._makers_with_settings()
        key = install_job(build.backend)

        def progress(progress: Progress) -> None:
            # Under the backend's key: clients know the backend, not the job.
            self._board.publish(msgspec.structs.replace(progress, job=key))

        make: Callable[..., Installation]
        if isinstance(source, SourceBuild):
            make = partial(makers.builds.build, build.backend, source)
        elif isinstance(source, Image):
            make = partial(makers.images.build, build.backend, source)
        else:
            make = partial(makers.environments.build, build.backend, source)
        return make(
            job=build.job,
            variant=build.variant,
            version=build.version,
            repair=build.repair,
            cancel=cancel,
            progress=progress,
            **({"digest": build.digest} if isinstance(source, Environment) else {}),
        )

    def _source(self, backend: str, variant: str) -> Environment | Image | SourceBuild:
        if (own := self._environments.get(backend)) is not None:
            return own
        declared = self._backends.get(backend)
        if declared is None:
            raise JobFailed.permanent(
                "unknown_backend",
                f"There is no backend {backend!r}.",
                advice=f"Known ones: {', '.join(self._backends)}.",
            )
        if sentence := declared.verdict(self._platform):
            raise JobFailed.permanent("unsupported_platform", sentence)
        try:
            return source_of(declared, self._platform, self._external.get(backend), variant)
        except KeyError:
            raise JobFailed.permanent(
                "no_such_variant", f"{backend} has no variant {variant!r} here."
            ) from None

    def _look(self, names: tuple[str, ...]) -> None:
        makers = self._makers()
        # Taken first: a job that ends later also reports its end later.
        with self._guard:
            building = tuple((job_id, job.attempt) for job_id, job in self._jobs.items())
        try:
            swept = makers.installed.sweep()
            if not building:
                for maker in makers.all:
                    maker.sweep()
            for folder in swept:
                _log.info("removed %s: its installation was never finished", folder)
        except OSError as error:
            # It has no commit mark, so it counts for nothing; the next look tries again.
            _log.warning("what an unfinished installation left could not be removed: %s", error)
        self._inspection.report(makers.installed, names, building)

    def _freed(self, backend: str, installation_id: str) -> int:
        if installation_id == external.EXTERNAL:
            raise JobFailed.permanent(
                "not_ours",
                f"The installation of {backend} is your own and is not touched.",
                advice="Take it out of the config to have Greenroom stop using it.",
            )
        makers, named = self._makers(), Installation(id=installation_id, backend=backend, version="")
        # By what it is, not by what is declared today: another release may have installed it otherwise.
        kind = makers.installed.kind(named)
        maker = {"image": makers.images, "program": makers.builds}.get(kind, makers.environments)
        return maker.remove(named)

    def _makers(self) -> _Makers:
        # Made on first use: loading what fetching needs costs a start.
        with self._guard:
            if self._made is None:
                sources = self._sources or PackageSources()
                self._made = _Makers(
                    self._home,
                    sources,
                    self._platform,
                    self._registries,
                    self._uv_binary,
                    self._user_home,
                    self._free_memory,
                    self.room,
                )
            return self._made

    def _makers_with_settings(self) -> _Makers:
        """With the user's settings as they are now: a corrected pip.conf needs no restart."""
        makers = self._makers()
        if self._sources is None:
            sources = PackageSources.discover()
            for problem in (*sources.unreadable, *sources.senseless):
                _log.warning("%s", problem)
            for maker in makers.all:
                maker.use(sources)
        return makers

    def _aside(self, name: str, work: Callable[[], None]) -> None:
        start_thread(work, name)


def _failed(build: BuildInstallation, failure: Failure, *, reached: bool = True) -> InstallAttemptFailed:
    """An attempt has failed; when the next one begins, if any, is the installer's to say."""
    return InstallAttemptFailed(
        job=build.job,
        backend=build.backend,
        attempt=build.attempt,
        failure=failure,
        retry_at=0.0,
        reached=reached,
    )


def _fault(error: Exception, what: str) -> Failure:
    _log.exception("%s failed because of a bug", what)
    return JobFailed.permanent(
        "fault",
        f"{what} failed because of a bug in Greenroom.",
        advice="Please report it with the output of `greenroom bundle`.",
        detail=f"{type(error).__name__}: {error}",
    ).failure
