"""The installer's durable state, how events make it, and its volatile state: the clients that wait."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from greenroom.actors.installer.events import (
    EnvironmentDeclared,
    InstallationActivated,
    InstallationBroken,
    InstallationCommitted,
    InstallationFound,
    InstallationMissing,
    InstallationRemoved,
    InstallationRetiring,
    InstallationsReadAgain,
    InstallationsUnread,
    InstallAttemptBegun,
    InstallAttemptFailed,
    InstallCancelled,
    InstallFailed,
    InstallNotNeeded,
    InstallRequested,
    VariantsRanked,
)
from greenroom.actors.installer.messages import Ensure
from greenroom.actors.kernel.core import Stored
from greenroom.actors.values import DeclaredEnvironment, Failure, Installation, WantedBy
from greenroom.actors.variants import BEST, USUAL, RankedVariant
from greenroom.actors.waiters import Waiters, joined


class JobState(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    variant: str = ""
    version: str
    wanted_by: WantedBy
    requested_at: float
    cause: str
    attempt: int = 1
    retry_at: float = 0.0
    """When this attempt may begin; 0 once it has begun, and for the first one."""
    failure: Failure | None = None
    reached: bool = False
    """Whether any server has answered in an attempt."""
    best: bool = False
    """See `InstallRequested.best`."""


CHANCES = 3
"""How often a variant is tried on the same devices without being asked for: a driver that comes and goes must
not have it installed each time."""
_TRIES_REMEMBERED = 32


class Tries(msgspec.Struct, frozen=True, kw_only=True):
    """How often a variant could not be installed on the same devices."""

    variant: str
    devices: tuple[str, ...]
    count: int
    failure: Failure
    """The last one."""


class BackendInstallState(msgspec.Struct, frozen=True, kw_only=True):
    installations: Mapping[str, Installation] = msgspec.field(default_factory=dict)
    current: str = ""
    past: tuple[str, ...] = ()
    """Earlier current installations that still exist, oldest first: for a rollback."""
    retiring: frozenset[str] = frozenset()
    job: JobState | None = None
    queue: tuple[JobState, ...] = ()
    """Jobs for other versions, begun one after another."""
    failure: Failure | None = None
    wanted: bool | None = None
    """None until it is requested; False once the user has uninstalled it."""
    jobs: int = 0
    unread: str = ""
    """Why the disk could not be inspected, as a clause."""
    ranked: tuple[RankedVariant, ...] = ()
    """Its variants, the one to use first."""
    devices: tuple[str, ...] = ()
    """The devices that this order is for."""
    tried: Mapping[str, Failure] = msgspec.field(default_factory=dict)
    """variant → why it could not be installed on these devices."""
    tries: tuple[Tries, ...] = ()
    """For each variant and its devices, also those that are not there now; the last ones only."""
    declined: frozenset[str] = frozenset()
    """Variants that the user has uninstalled: they are not offered."""
    declared: DeclaredEnvironment | None = None
    """Of a program's own environment; None for a backend."""

    @property
    def theirs(self) -> Installation | None:
        """The user's own installation, named in the config; Greenroom then makes none."""
        return next((one for one in self.installations.values() if not one.managed), None)

    @property
    def jobs_open(self) -> tuple[JobState, ...]:
        """The job under way, then the queue."""
        return (self.job, *self.queue) if self.job is not None else ()

    @property
    def whole(self) -> tuple[Installation, ...]:
        """Installations that could be current."""
        return tuple(
            one for one in self.installations.values() if not one.broken and one.id not in self.retiring
        )

    @property
    def usable(self) -> Installation | None:
        """The installation that new engines start from; None if the current one cannot be used."""
        installation = self.installations.get(self.current)
        if self.unread or installation is None or installation.broken or installation.id in self.retiring:
            return None
        return installation


class InstallerState(msgspec.Struct, frozen=True, kw_only=True):
    backends: Mapping[str, BackendInstallState] = msgspec.field(default_factory=dict)
    version: int = 0

    def of(self, backend: str) -> BackendInstallState:
        return self.backends.get(backend) or _NOTHING


_NOTHING = BackendInstallState()


class InstallerVolatile(msgspec.Struct, frozen=True, kw_only=True):
    """Bounded by the number of backends."""

    looked: frozenset[str] = frozenset()
    """Backends whose disk has been inspected in this life."""
    unread: frozenset[str] = frozenset()
    """Backends whose disk could not be inspected so far in this life."""
    unclear: Mapping[str, frozenset[str]] = msgspec.field(default_factory=dict)
    """backend → installations that could not be verified with the others."""
    looking_since: float = 0.0
    """Monotonic second at which an inspection was last requested."""
    pending: Mapping[str, Ensure] = msgspec.field(default_factory=dict)
    """`ensure_key` → request that waits until the backend's disk has been inspected."""
    building: frozenset[tuple[str, int]] = frozenset()
    """(job, attempt) begun in this life."""
    reported: frozenset[str] = frozenset()
    """Installations committed or removed before their backend's disk was inspected."""
    due: Mapping[str, float] = msgspec.field(default_factory=dict)
    """job/attempt → monotonic second at which it is due, so that jumps of the wall clock do not matter."""
    waiting: Waiters = msgspec.field(default_factory=dict)
    """By `ensure_key`."""
    awaited: frozenset[str] = frozenset()
    """Backends that queued requests wait for, by the scheduler's last report."""
    heard: Mapping[str, str] = msgspec.field(default_factory=dict)
    """backend → token of the last `Ensure` decided on."""
    defaulted: frozenset[str] = frozenset()
    """Default backends whose installation has begun, or was not needed, in this life."""
    configured: frozenset[str] = frozenset()
    """Backends for which the configured variant has been made current, or was, in this life."""
    in_use: Mapping[str, frozenset[str]] = msgspec.field(default_factory=dict)
    """backend → installations that its engines run from; absent until its runner has sent its list."""
    acted_on: Mapping[str, int] = msgspec.field(default_factory=dict)
    """backend → version of our list that the scheduler had acted on before that runner's last list."""
    called: Mapping[str, tuple[str, int, float]] = msgspec.field(default_factory=dict)
    """backend → token of our own request for its list, our version and the time at that moment."""
    retired: Mapping[str, tuple[int, float]] = msgspec.field(default_factory=dict)
    """backend/installation → our version and the monotonic second at which its retirement was noticed."""
    removing: Mapping[str, float] = msgspec.field(default_factory=dict)
    """backend/installation → monotonic second at which its removal began."""
    freed: Mapping[str, int] = msgspec.field(default_factory=dict)
    """backend → bytes freed by the uninstallation under way."""
    forced: frozenset[str] = frozenset()
    """Backends whose engines are to end without waiting for their requests."""
    told: int = -1
    told_at: float = 0.0


def apply(state: InstallerState, stored: Stored[Any]) -> InstallerState:
    event = stored.event
    old = state.of(event.backend)
    return InstallerState(
        backends={**state.backends, event.backend: _apply_to_backend(old, stored)}, version=state.version + 1
    )


def _apply_to_backend(old: BackendInstallState, stored: Stored[Any]) -> BackendInstallState:
    match stored.event:
        case EnvironmentDeclared() as e:
            return replace(old, declared=e.declared)
        case InstallRequested() as e if any(one.id == e.job for one in old.jobs_open):
            jobs = [
                replace(one, wanted_by=e.wanted_by, best=one.best or e.best) if one.id == e.job else one
                for one in old.jobs_open
            ]
            return replace(old, job=jobs[0], queue=tuple(jobs[1:]), wanted=True)
        case InstallRequested() as e:
            job = JobState(
                id=e.job,
                variant=e.variant,
                version=e.version,
                wanted_by=e.wanted_by,
                requested_at=stored.at,
                cause=stored.id,
                best=e.best,
            )
            first, *others = (*old.jobs_open, job)
            # A user who asks for it knows what has changed.
            forgotten = {e.variant} if e.wanted_by in ("explicit", "repair") else set()
            return replace(
                old,
                job=first,
                queue=tuple(others),
                failure=None,
                wanted=True,
                jobs=old.jobs + 1,
                tried={name: why for name, why in old.tried.items() if name != e.variant},
                tries=tuple(one for one in old.tries if one.variant not in forgotten),
                declined=old.declined - {e.variant},
            )
        case InstallAttemptFailed() as e if old.job is not None:
            job = replace(
                old.job, attempt=e.attempt + 1, retry_at=e.retry_at, failure=e.failure, reached=e.reached
            )
            return replace(old, job=job if old.job.id == e.job else old.job)
        case InstallAttemptBegun() as e if old.job is not None and old.job.id == e.job:
            return replace(old, job=replace(old.job, attempt=e.attempt, retry_at=0.0))
        case InstallationCommitted() as e:
            kept = {**old.installations, e.installation.id: e.installation}
            new = _apply_current(replace(old, installations=kept, failure=None), e.installation.id)
            return _apply_end(new, e.job)
        case InstallNotNeeded() as e:
            return _apply_end(replace(old, failure=None), e.job)
        case InstallFailed() as e:
            variant = next((one.variant for one in old.jobs_open if one.id == e.job), "")
            new = _apply_failed(old, variant, e.failure) if variant else old
            return _apply_end(replace(new, failure=e.failure), e.job)
        case VariantsRanked() as e:
            tried = {
                one.variant: one.failure
                for one in old.tries
                if one.devices == e.devices and one.count >= CHANCES
            }
            return replace(old, ranked=e.variants, devices=e.devices, tried=tried)
        case InstallCancelled() as e:
            wanted = False if e.unwanted else old.wanted
            declined = old.declined | {
                one.variant for one in old.jobs_open if one.id == e.job and one.variant
            }
            return _apply_end(replace(old, failure=None, wanted=wanted, declined=declined), e.job)
        case InstallationFound() as e:
            kept = {**old.installations, e.installation.id: e.installation}
            current = old.current if old.usable is not None else e.installation.id
            known = True if old.wanted is None else old.wanted
            return replace(_apply_current(old, current), installations=kept, wanted=known)
        case InstallationMissing() as e:
            return _apply_without(old, e.installation_id)
        case InstallationBroken() as e if e.installation_id in old.installations:
            broken = replace(old.installations[e.installation_id], broken=e.reason)
            return replace(old, installations={**old.installations, e.installation_id: broken})
        case InstallationsUnread() as e:
            return replace(old, unread=e.reason)
        case InstallationsReadAgain():
            return replace(old, unread="")
        case InstallationActivated() as e:
            return _apply_current(old, e.installation_id)
        case InstallationRetiring() as e:
            current = "" if old.current == e.installation_id else old.current
            wanted = False if e.unwanted else old.wanted
            past = tuple(one for one in old.past if one != e.installation_id)
            retiring = old.retiring | {e.installation_id}
            gone = {e.installation_id} & old.installations.keys() if e.by_user else set()
            declined = old.declined | {old.installations[one].variant for one in gone}
            return replace(
                old, retiring=retiring, current=current, past=past, wanted=wanted, declined=declined
            )
        case InstallationRemoved() as e:
            return _apply_without(old, e.installation_id)
        case _:
            return old


def _apply_failed(old: BackendInstallState, variant: str, failure: Failure) -> BackendInstallState:
    rest = [one for one in old.tries if (one.variant, one.devices) != (variant, old.devices)]
    before = sum(one.count for one in old.tries if (one.variant, one.devices) == (variant, old.devices))
    tries = Tries(variant=variant, devices=old.devices, count=before + 1, failure=failure)
    tried = {**old.tried, variant: failure}
    return replace(old, tried=tried, tries=(*rest[-_TRIES_REMEMBERED + 1 :], tries))


def _apply_without(old: BackendInstallState, installation_id: str) -> BackendInstallState:
    return replace(
        old,
        installations={k: v for k, v in old.installations.items() if k != installation_id},
        current="" if old.current == installation_id else old.current,
        past=tuple(one for one in old.past if one != installation_id),
        retiring=old.retiring - {installation_id},
    )


def _apply_current(old: BackendInstallState, installation_id: str) -> BackendInstallState:
    past = old.past
    if old.current and old.current != installation_id:
        past = (*(one for one in past if one not in (old.current, installation_id)), old.current)
    return replace(old, current=installation_id, past=past)


def _apply_end(old: BackendInstallState, job: str) -> BackendInstallState:
    """The job has ended, and the next in the queue begins."""
    left = [one for one in old.jobs_open if one.id != job]
    if len(left) == len(old.jobs_open):
        # Older journals, from before there was a queue, ended the only job.
        left = left[1:]
    return replace(old, job=left[0] if left else None, queue=tuple(left[1:]))


# clients that wait for installations


def ensure_key(backend: str, version: str = "", variant: str = "") -> str:
    # A version without a variant is any variant's: requests for it join those for the usual one.
    build = version if not variant or (version and variant == USUAL) else f"{variant}/{version}"
    return f"install/{backend}@{build}" if build else f"install/{backend}"


def uninstall_key(backend: str) -> str:
    return f"uninstall/{backend}"


def waits(volatile: InstallerVolatile, key: str, ask: Ensure) -> InstallerVolatile:
    """Count the waiter; not for the scheduler, which reports by itself which requests wait."""
    if ask.token:
        return volatile
    return replace(volatile, waiting=joined(volatile.waiting, key, ask.waiter))


def job_for(jobs: Sequence[JobState], version: str, variant: str = "") -> JobState | None:
    """The job that a request joins; without a version, the one under way."""
    if not (version or variant):
        return jobs[0] if jobs else None
    fitting = (one for one in jobs if one.version == version)
    if variant == BEST:
        return next((one for one in fitting if one.best), None)
    return next((one for one in fitting if variant in ("", one.variant or USUAL)), None)


def keys_of(jobs: Sequence[JobState], job: JobState) -> tuple[str, ...]:
    """The keys that the end of this job answers.

    Requests without a version wait for the first job, whatever its version.
    """
    backend = job.id.rpartition(".")[0]
    keys = [ensure_key(backend, job.version, job.variant or USUAL)]
    keys += [ensure_key(backend, job.version)] if job.version else []
    return tuple(dict.fromkeys((*keys, *lasting_keys(jobs, job))))


def lasting_keys(jobs: Sequence[JobState], job: JobState) -> tuple[str, ...]:
    """Those of requests that will also have another variant than the job's."""
    backend = job.id.rpartition(".")[0]
    left_open = (ensure_key(backend, job.version, BEST),) if job.best else ()
    return (*left_open, ensure_key(backend)) if job == jobs[0] else left_open


def fits(one: Installation, version: str, variant: str) -> bool:
    """Whether it is what a request names; what the request leaves out may be any."""
    return variant in ("", one.variant or USUAL) and version in ("", one.version)


def whole_of(backend: BackendInstallState, version: str, variant: str = "") -> Installation | None:
    """The latest whole installation of a version; if no variant is named, rather of the one in use."""
    named = [one for one in backend.whole if fits(one, version, variant)]
    used = backend.usable.variant if backend.usable is not None else ""
    return max(named, key=lambda one: (one.variant == used, one.built_at), default=None)


def heard(volatile: InstallerVolatile, ask: Ensure) -> InstallerVolatile:
    """Note in the next list that this request was decided on, for a sender that awaits no reply."""
    if not ask.token:
        return volatile
    return replace(volatile, heard={**volatile.heard, ask.backend: ask.token}, told=-1)


def stronger(first: Ensure | None, ask: Ensure) -> Ensure:
    """One request that stands for two for the same version."""
    if first is None:
        return ask
    typed = "explicit" in (first.wanted_by, ask.wanted_by)
    return replace(
        first,
        wanted_by="explicit" if typed else first.wanted_by,
        repair=first.repair or ask.repair,
        token=ask.token or first.token,
    )
