"""What the installer is asked and told, what it answers, and what the builder reports beside events."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from greenroom.actors.kernel.core import Address, Command, R_co
from greenroom.actors.limits import BackendName, Id, Ids, Line, Many, Name, Reason, Version, Whole
from greenroom.actors.scheduler.messages import SchedulerCommand
from greenroom.actors.values import Caller, Cancelled, Fact, Failure, Installation, Plan, WantedBy

INSTALLER = Address("installer")


class InstallerCommand(Command[R_co], frozen=True, kw_only=True):
    """What the installer is asked or told."""

    ACTOR = INSTALLER


class Ensured(Fact, frozen=True, kw_only=True):
    """The backend is installed."""

    installation: Installation
    fresh: bool
    """False when it was installed already."""


class Activate(InstallerCommand[Ensured], frozen=True, kw_only=True):
    """Bring another installation that is here into use: `Ensured`. Nothing is fetched or built."""

    backend: BackendName
    variant: Version = ""
    version: Version = ""
    """Empty means the one that was in use before the current one."""


class Verified(Fact, frozen=True, kw_only=True):
    """What was read."""

    backend: BackendName
    checked: Ids
    """Ids of the installations that were read."""
    damaged: Annotated[Mapping[Id, Annotated[tuple[Reason, ...], Many]], Many]
    """installation → each file that is not what was installed, as a sentence."""


class VerifyBackend(InstallerCommand[Verified], frozen=True, kw_only=True):
    """Read every file of a backend's installations: `Verified`. What is damaged is broken from then on."""

    REPEATABLE = True
    backend: BackendName


class InstallationsSeen(InstallerCommand[None], frozen=True, kw_only=True):
    """Report: what lies on disk for a backend."""

    backend: BackendName
    installations: Annotated[tuple[Installation, ...], Many]
    building: Annotated[tuple[tuple[Name, Whole], ...], Many] = ()
    """(job, attempt) of all that is being built meanwhile: what an installer that was rebuilt has begun."""
    unclear: Annotated[Mapping[Id, Reason], Many] = {}
    """Those of which it cannot be told now whether they are whole: they are taken for what they were."""


class FetchedDropped(Fact, frozen=True, kw_only=True):
    """What that has freed."""

    freed: Whole = 0
    """Bytes of the disk."""
    kept_for: Ids = ()
    """Backends that are being installed: until that ends all that was fetched stays."""


class DropFetched(InstallerCommand[FetchedDropped], frozen=True, kw_only=True):
    """Drop what was fetched for installations that did not come about: `FetchedDropped`."""

    REPEATABLE = True


BackendState = Literal[
    "absent", "installing", "waiting_to_retry", "installed", "broken", "failed", "retiring"
]


class BackendStatus(Fact, frozen=True, kw_only=True):
    """One backend as the installer sees it."""

    name: str
    state: BackendState
    current: Installation | None = None
    """The whole installation new engines start from."""
    installations: tuple[Installation, ...] = ()
    """All that are on disk, broken and retiring ones too."""
    retiring: tuple[str, ...] = ()
    """Ids of installations nothing may use any more."""
    job: str = ""
    queue: tuple[str, ...] = ()
    """Jobs of other versions that wait for it."""
    attempt: int = 0
    retry_at: float = 0.0
    forced: bool = False
    """Engines on what retires end without waiting for those inside."""
    failure: Failure | None = None
    """Why the last job or the current installation failed."""
    wanted: bool = False


class InstallationList(SchedulerCommand[None], frozen=True, kw_only=True):
    """Installer → scheduler: all backends."""

    backends: Annotated[tuple[BackendStatus, ...], Many]
    version: Whole
    heard: Annotated[Mapping[Id, Id], Many] = {}
    """backend → token of the last `Ensure` that was decided on: what became of it is in this list."""


class Ensure(InstallerCommand[Ensured], frozen=True, kw_only=True):
    """Have a backend installed. The reply comes when it is, or when the job has ended: `Ensured`."""

    REPEATABLE = True
    backend: BackendName
    variant: Version = ""
    version: Version = ""
    """Empty means the pinned one."""
    wanted_by: WantedBy = "explicit"
    repair: bool = False
    """Build anew even when the installation looks whole."""
    token: Id = ""
    """For those who do not wait for the reply: comes back in the installer's list once this is decided."""
    caller: Caller = Caller()
    """Who asks."""
    waiter: Id = ""
    """Who waits, by a name nobody else has; without one it is wanted until the job ends, or until `leave`."""


class Uninstalled(Fact, frozen=True, kw_only=True):
    """It is gone."""

    freed: int
    """Bytes, measured."""
    was_installed: bool


class Uninstall(InstallerCommand[Uninstalled], frozen=True, kw_only=True):
    """Remove a backend, or a version of it, once its engines have drained: `Uninstalled`."""

    REPEATABLE = True
    backend: BackendName
    variant: Version = ""
    version: Version = ""
    """Empty means all that is installed and on its way."""
    force: bool = False
    """Do not wait for those inside its engines."""


class CancelInstall(InstallerCommand[Cancelled], frozen=True, kw_only=True):
    """End an installation: `Cancelled`. `leave` ends it only if nobody else waits for it."""

    backend: BackendName
    variant: Version = ""
    version: Version = ""
    """What was asked for; empty means whichever is under way."""
    job: Id = ""
    """This one and no other."""
    reason: Line = "requested by the user"
    leave: bool = False
    waiter: Id = ""
    """Who leaves: see `Ensure.waiter`."""


class LeaveInstall(InstallerCommand[None], frozen=True, kw_only=True):
    """A waiter has gone without a word: nothing ends for it, but he is not waited for either."""

    backend: BackendName
    variant: Version = ""
    version: Version = ""
    waiter: Id


class PendingInstallRequests(InstallerCommand[None], frozen=True, kw_only=True):
    """Scheduler → installer: all backends whose installation requests wait for at this moment."""

    backends: Annotated[frozenset[BackendName], Many] = frozenset()


class PlanInstall(InstallerCommand[Plan], frozen=True, kw_only=True):
    """What would an installation fetch? `Plan`."""

    REPEATABLE = True
    backend: BackendName
    variant: Version = ""
    version: Version = ""
