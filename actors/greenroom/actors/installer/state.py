"""What the journal says of installations, how events make it, and what the installer sees beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec.structs import replace

from greenroom.actors.installer.events import (
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
)
from greenroom.actors.installer.messages import Ensure
from greenroom.actors.kernel.core import Stored
from greenroom.actors.values import Failure, Installation, WantedBy
from greenroom.actors.waiters import Waiters


class JobState(msgspec.Struct, frozen=True, kw_only=True):
    """The one job of a backend."""

    id: str
    variant: str = ""
    version: str
    wanted_by: WantedBy
    requested_at: float
    cause: str
    attempt: int = 1
    retry_at: float = 0.0
    """When this attempt may begin; 0 once it has begun, and for the first one, which begins at once."""
    failure: Failure | None = None
    reached: bool = False
    """Some server has answered in an attempt."""


class BackendInstallState(msgspec.Struct, frozen=True, kw_only=True):
    """What the journal says of one backend."""

    installations: Mapping[str, Installation] = msgspec.field(default_factory=dict)
    current: str = ""
    past: tuple[str, ...] = ()
    """Installations that were current before and are still here, the last one last: the way back."""
    retiring: frozenset[str] = frozenset()
    job: JobState | None = None
    queue: tuple[JobState, ...] = ()
    """Jobs of other versions, begun one after the other."""
    failure: Failure | None = None
    wanted: bool | None = None
    """None until somebody has said so; False once the user has uninstalled it."""
    jobs: int = 0
    unread: str = ""
    """Why what is on the disk could not be looked at; a clause."""

    @property
    def theirs(self) -> Installation | None:
        """The user's own installation, named in the config: where there is one, we make none."""
        return next((one for one in self.installations.values() if not one.managed), None)

    @property
    def jobs_open(self) -> tuple[JobState, ...]:
        """The job under way and those that wait for it."""
        return (self.job, *self.queue) if self.job is not None else ()

    @property
    def whole(self) -> tuple[Installation, ...]:
        """Installations that could be current."""
        return tuple(
            one for one in self.installations.values() if not one.broken and one.id not in self.retiring
        )

    @property
    def usable(self) -> Installation | None:
        """The whole installation new engines start from."""
        installation = self.installations.get(self.current)
        if self.unread or installation is None or installation.broken or installation.id in self.retiring:
            return None
        return installation


class InstallerState(msgspec.Struct, frozen=True, kw_only=True):
    """All backends, and how many events made it so."""

    backends: Mapping[str, BackendInstallState] = msgspec.field(default_factory=dict)
    version: int = 0

    def of(self, backend: str) -> BackendInstallState:
        """A backend's state, also when nothing was ever stored of it."""
        return self.backends.get(backend) or _NOTHING


_NOTHING = BackendInstallState()


class InstallerVolatile(msgspec.Struct, frozen=True, kw_only=True):
    """What this life knows and the journal does not. All of it is bounded by the number of backends."""

    looked: frozenset[str] = frozenset()
    """Backends whose disk has been looked at."""
    unread: frozenset[str] = frozenset()
    """Backends whose disk could not be looked at in this life, so far."""
    unclear: Mapping[str, frozenset[str]] = msgspec.field(default_factory=dict)
    """backend → installations that could not be judged when the others were."""
    looking_since: float = 0.0
    """Monotonic second of the last wish to look."""
    pending: Mapping[str, Ensure] = msgspec.field(default_factory=dict)
    """`ensure_key` → what is asked until the backend's disk has been looked at."""
    building: frozenset[tuple[str, int]] = frozenset()
    """(job, attempt) begun in this life."""
    reported: frozenset[str] = frozenset()
    """Installations whose coming or going was reported before their backend's disk was looked at."""
    due: Mapping[str, float] = msgspec.field(default_factory=dict)
    """job/attempt → monotonic second of the next attempt; immune to a wall clock that jumps."""
    waiting: Waiters = msgspec.field(default_factory=dict)
    """By `ensure_key`."""
    awaited: frozenset[str] = frozenset()
    """Backends that requests wait for, as the scheduler last told."""
    heard: Mapping[str, str] = msgspec.field(default_factory=dict)
    """backend → token of the last wish decided on."""
    defaulted: frozenset[str] = frozenset()
    """Default backends whose installation was begun, or seen not to be needed, in this life."""
    in_use: Mapping[str, frozenset[str]] = msgspec.field(default_factory=dict)
    """backend → installations its engines run from; absent until its runner has told."""
    acted_on: Mapping[str, int] = msgspec.field(default_factory=dict)
    """backend → version of our list that the scheduler had acted on when that runner last told."""
    called: Mapping[str, tuple[str, int, float]] = msgspec.field(default_factory=dict)
    """backend → token of our own request for the list, our version then, and when."""
    retired: Mapping[str, tuple[int, float]] = msgspec.field(default_factory=dict)
    """backend/installation → our version and the monotonic second when it was first seen to retire."""
    removing: Mapping[str, float] = msgspec.field(default_factory=dict)
    """backend/installation → monotonic second at which its removal began."""
    freed: Mapping[str, int] = msgspec.field(default_factory=dict)
    """backend → bytes freed by the uninstallation under way."""
    forced: frozenset[str] = frozenset()
    """Backends whose engines shall end without waiting for those inside."""
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
        case InstallRequested() as e if any(one.id == e.job for one in old.jobs_open):
            jobs = [replace(one, wanted_by=e.wanted_by) if one.id == e.job else one for one in old.jobs_open]
            return replace(old, job=jobs[0], queue=tuple(jobs[1:]), wanted=True)
        case InstallRequested() as e:
            job = JobState(
                id=e.job,
                variant=e.variant,
                version=e.version,
                wanted_by=e.wanted_by,
                requested_at=stored.at,
                cause=stored.id,
            )
            first, *others = (*old.jobs_open, job)
            return replace(old, job=first, queue=tuple(others), failure=None, wanted=True, jobs=old.jobs + 1)
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
            return _apply_end(replace(old, failure=e.failure), e.job)
        case InstallCancelled() as e:
            wanted = False if e.unwanted else old.wanted
            return _apply_end(replace(old, failure=None, wanted=wanted), e.job)
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
            return replace(old, retiring=retiring, current=current, past=past, wanted=wanted)
        case InstallationRemoved() as e:
            return _apply_without(old, e.installation_id)
        case _:
            return old


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
    """A job has ended: the next one is under way."""
    left = [one for one in old.jobs_open if one.id != job]
    if len(left) == len(old.jobs_open):
        # Journals of before there was a queue ended whichever job there was.
        left = left[1:]
    return replace(old, job=left[0] if left else None, queue=tuple(left[1:]))
