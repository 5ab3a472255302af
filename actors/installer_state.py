"""What the journal says of installations: the installer's durable state and how events make it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from greenroom.actors import events as ev
from greenroom.actors.facts import Failure, Installation, WantedBy
from greenroom.actors.kernel.core import Stored


class JobState(msgspec.Struct, frozen=True, kw_only=True):
    """The one job of a backend."""

    id: str
    version: str
    wanted_by: WantedBy
    requested_at: float
    cause: str
    attempt: int = 1
    retry_at: float = 0.0
    """0 while an attempt is under way."""
    failure: Failure | None = None


class BackendInstallState(msgspec.Struct, frozen=True, kw_only=True):
    """What the journal says of one backend."""

    installations: Mapping[str, Installation] = msgspec.field(default_factory=dict)
    current: str = ""
    retiring: frozenset[str] = frozenset()
    job: JobState | None = None
    failure: Failure | None = None
    wanted: bool | None = None
    """None until somebody has said so; False once the user has uninstalled it."""
    jobs: int = 0

    @property
    def usable(self) -> Installation | None:
        """The whole installation new engines start from."""
        installation = self.installations.get(self.current)
        if installation is None or installation.broken or installation.id in self.retiring:
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


def apply(state: InstallerState, stored: Stored[Any]) -> InstallerState:
    """Fold one event."""
    event = stored.event
    old = state.of(event.backend)
    return InstallerState(
        backends={**state.backends, event.backend: _apply_to_backend(old, stored)},
        version=state.version + 1,
    )


def _apply_to_backend(old: BackendInstallState, stored: Stored[Any]) -> BackendInstallState:
    change = msgspec.structs.replace
    match stored.event:
        case ev.InstallRequested() as e:
            job = JobState(
                id=e.job,
                version=e.version,
                wanted_by=e.wanted_by,
                requested_at=stored.at,
                cause=stored.id,
            )
            return change(old, job=job, failure=None, wanted=True, jobs=old.jobs + 1)
        case ev.InstallAttemptFailed() as e if old.job is not None:
            job = change(old.job, attempt=e.attempt + 1, retry_at=e.retry_at, failure=e.failure)
            return change(old, job=job)
        case ev.InstallationCommitted() as e:
            kept = {**old.installations, e.installation.id: e.installation}
            return change(old, installations=kept, current=e.installation.id, job=None, failure=None)
        case ev.InstallFailed() as e:
            return change(old, job=None, failure=e.failure)
        case ev.InstallCancelled() as e:
            return change(old, job=None, failure=None, wanted=False if e.unwanted else old.wanted)
        case ev.InstallationFound() as e:
            kept = {**old.installations, e.installation.id: e.installation}
            current = old.current if old.usable is not None else e.installation.id
            known = True if old.wanted is None else old.wanted
            return change(old, installations=kept, current=current, wanted=known)
        case ev.InstallationMissing() as e:
            return _apply_without(old, e.installation_id)
        case ev.InstallationBroken() as e if e.installation_id in old.installations:
            broken = change(old.installations[e.installation_id], broken=e.reason)
            return change(old, installations={**old.installations, e.installation_id: broken})
        case ev.InstallationActivated() as e:
            return change(old, current=e.installation_id)
        case ev.InstallationRetiring() as e:
            current = "" if old.current == e.installation_id else old.current
            wanted = False if e.unwanted else old.wanted
            return change(old, retiring=old.retiring | {e.installation_id}, current=current, wanted=wanted)
        case ev.InstallationRemoved() as e:
            return _apply_without(old, e.installation_id)
        case _:
            return old


def _apply_without(old: BackendInstallState, installation_id: str) -> BackendInstallState:
    return msgspec.structs.replace(
        old,
        installations={k: v for k, v in old.installations.items() if k != installation_id},
        current="" if old.current == installation_id else old.current,
        retiring=old.retiring - {installation_id},
    )
