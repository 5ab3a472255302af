"""What the installer is asked about versions that lie side by side, and what its hands report to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from greenroom.actors.facts import Failure, Installation, Plan
from greenroom.actors.kernel.core import Command, Effect
from greenroom.actors.limits import BackendName, Id, Ids, Many, Name, Reason, Version, Whole


class Activate(Command, frozen=True, kw_only=True):
    """Bring another installation that is here into use: `Ensured`. Nothing is fetched or built."""

    backend: BackendName
    version: Version = ""
    """Empty means the one that was in use before the current one."""


class VerifyBackend(Command, frozen=True, kw_only=True):
    """Read every file of a backend's installations: `Verified`. What is damaged is broken from then on."""

    REPEATABLE = True
    backend: BackendName


class Verified(Command, frozen=True, kw_only=True):
    """What was read."""

    backend: BackendName
    checked: Ids
    """Ids of the installations that were read."""
    damaged: Annotated[Mapping[Id, Annotated[tuple[Reason, ...], Many]], Many]
    """installation → each file that is not what was installed, as a sentence."""


class BackendVerified(Command, frozen=True, kw_only=True):
    """Report: a backend's installations were read, or could not be."""

    backend: BackendName
    checked: Ids = ()
    damaged: Annotated[Mapping[Id, Annotated[tuple[Reason, ...], Many]], Many] = {}
    failure: Failure | None = None


class VerifyInstallations(Effect, frozen=True, kw_only=True):
    """Read every file of these. Reports BackendVerified."""

    backend: str
    installations: tuple[str, ...]


class InstallCommitted(Command, frozen=True, kw_only=True):
    """Report: an attempt has built a whole installation."""

    job: Name
    installation: Installation


class InstallAttemptEnded(Command, frozen=True, kw_only=True):
    """Report: an attempt failed or was cancelled."""

    job: Name
    backend: BackendName
    failure: Failure
    reached: bool = True
    """Some server has answered; where none has there may be no network."""


class InstallationsSeen(Command, frozen=True, kw_only=True):
    """Report: what lies on disk for a backend."""

    backend: BackendName
    installations: Annotated[tuple[Installation, ...], Many]
    building: Annotated[tuple[tuple[Name, Whole], ...], Many] = ()
    """(job, attempt) of all that is being built meanwhile: what an installer that was rebuilt has begun."""
    unclear: Annotated[Mapping[Id, Reason], Many] = {}
    """Those of which it cannot be told now whether they are whole: they are taken for what they were."""


class InstallationsUnread(Command, frozen=True, kw_only=True):
    """Report: what lies on disk for a backend cannot be looked at now."""

    backend: BackendName
    reason: Reason
    """A clause."""


class InstallationGone(Command, frozen=True, kw_only=True):
    """Report: an installation's files are removed, or could not be."""

    backend: BackendName
    installation_id: Id
    freed: Whole = 0
    failure: Failure | None = None


class PlanMade(Command, frozen=True, kw_only=True):
    """Report: a plan, or why there is none."""

    backend: BackendName
    version: Version
    plan: Plan | None = None
    failure: Failure | None = None


class DropFetched(Command, frozen=True, kw_only=True):
    """Drop what was fetched for installations that did not come about: `FetchedDropped`."""

    REPEATABLE = True


class FetchedDropped(Command, frozen=True, kw_only=True):
    """What became of that; of the hands it is a report."""

    freed: Whole = 0
    """Bytes of the disk."""
    kept_for: Ids = ()
    """Backends that are being installed: until that ends all that was fetched stays."""
    failure: Failure | None = None


class DropUnneeded(Effect, frozen=True, kw_only=True):
    """Drop what no installation needs of what was fetched. Reports FetchedDropped."""
