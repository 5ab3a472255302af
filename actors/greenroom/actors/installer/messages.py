"""Commands of the installer, their replies, and the builder's reports that are not events."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from greenroom.actors.kernel.core import Address, Command, R_co
from greenroom.actors.limits import BackendName, Id, Ids, Line, Many, Name, Reason, Version, Whole
from greenroom.actors.scheduler.messages import SchedulerCommand
from greenroom.actors.values import (
    Caller,
    Cancelled,
    DeclaredEnvironment,
    Fact,
    Failure,
    Installation,
    Plan,
    WantedBy,
)
from greenroom.actors.variants import RankedVariant

INSTALLER = Address("installer")


class InstallerCommand(Command[R_co], frozen=True, kw_only=True):
    ACTOR = INSTALLER


class Ensured(Fact, frozen=True, kw_only=True):
    """The reply to `Ensure`: what is installed."""

    installation: Installation
    fresh: bool
    """False if it was already installed."""


class Activate(InstallerCommand[Ensured], frozen=True, kw_only=True):
    """Make another existing installation current: `Ensured`. Nothing is fetched or built."""

    backend: BackendName
    variant: Version = ""
    version: Version = ""
    """Empty means the one that was current before."""


class Verified(Fact, frozen=True, kw_only=True):
    backend: BackendName
    checked: Ids
    """Ids of the verified installations."""
    damaged: Annotated[Mapping[Id, Annotated[tuple[Reason, ...], Many]], Many]
    """installation → a sentence for each file that is not as installed."""


class VerifyBackend(InstallerCommand[Verified], frozen=True, kw_only=True):
    """Verify every file of a backend's installations: `Verified`. Damaged ones become broken."""

    REPEATABLE = True
    backend: BackendName


class InstallationsSeen(InstallerCommand[None], frozen=True, kw_only=True):
    """Report: a backend's installations on disk."""

    backend: BackendName
    installations: Annotated[tuple[Installation, ...], Many]
    building: Annotated[tuple[tuple[Name, Whole], ...], Many] = ()
    """(job, attempt) of builds in progress, which a rebuilt installer does not know about."""
    unclear: Annotated[Mapping[Id, Reason], Many] = {}
    """installation → why it cannot be verified now; its recorded state stands."""


class FetchedDropped(Fact, frozen=True, kw_only=True):
    freed: Whole = 0
    """Bytes on disk."""
    kept_for: Ids = ()
    """Backends being installed: nothing is dropped until they are done."""


class DropFetched(InstallerCommand[FetchedDropped], frozen=True, kw_only=True):
    """Delete downloads of installations that were never completed: `FetchedDropped`."""

    REPEATABLE = True


BackendState = Literal[
    "absent", "installing", "waiting_to_retry", "installed", "broken", "failed", "retiring"
]


class BackendStatus(Fact, frozen=True, kw_only=True):
    name: str
    state: BackendState
    current: Installation | None = None
    """The installation that new engines start from."""
    installations: tuple[Installation, ...] = ()
    """All on disk, including broken and retiring ones."""
    retiring: tuple[str, ...] = ()
    """Ids of installations that may no longer be used."""
    job: str = ""
    queue: tuple[str, ...] = ()
    """Jobs for other versions that wait for `job`."""
    attempt: int = 0
    retry_at: float = 0.0
    forced: bool = False
    """Engines on retiring installations are ended without waiting for their requests."""
    failure: Failure | None = None
    """Why the last job or the current installation failed."""
    wanted: bool = False
    variants: tuple[RankedVariant, ...] = ()
    """The order of its variants on this machine; empty while that is unknown."""
    tried: Mapping[str, Failure] = {}
    """variant → why it does not work here, though it should."""
    offered: str = ""
    """A variant that is better than what is installed."""


class InstallationList(SchedulerCommand[None], frozen=True, kw_only=True):
    """Installer → scheduler: all backends."""

    backends: Annotated[tuple[BackendStatus, ...], Many]
    version: Whole
    heard: Annotated[Mapping[Id, Id], Many] = {}
    """backend → token of the last `Ensure` decided on: this list shows its outcome."""


class Ensure(InstallerCommand[Ensured], frozen=True, kw_only=True):
    """Have a backend installed. The reply comes when it is, or when the job fails: `Ensured`."""

    REPEATABLE = True
    backend: BackendName
    variant: Version = ""
    """Empty means any that is installed, else the usual one; `best` leaves it to the order of variants."""
    version: Version = ""
    """Empty means the pinned one."""
    wanted_by: WantedBy = "explicit"
    repair: bool = False
    """Rebuild even if the installation looks whole."""
    token: Id = ""
    """For senders that do not wait for the reply: comes back in the installer's list once this is decided."""
    caller: Caller = Caller()
    waiter: Id = ""
    """A unique name of the client that waits; without one it counts until the job ends, or until `leave`."""


class EnsureEnvironment(Ensure, frozen=True, kw_only=True):
    """The same for an environment of a program's own: `Ensured`. `backend` is its name."""

    declared: DeclaredEnvironment


class AwaitInspected(InstallerCommand[None], frozen=True, kw_only=True):
    """Answered once it is known of every environment whether it is whole, or that its disk cannot be read."""

    REPEATABLE = True


class RankVariants(InstallerCommand[None], frozen=True, kw_only=True):
    """Report: a look at the machine's devices, and the order of a backend's variants that follows from it."""

    backend: BackendName
    devices: Annotated[tuple[Line, ...], Many] = ()
    variants: Annotated[tuple[RankedVariant, ...], Many]


class Uninstalled(Fact, frozen=True, kw_only=True):
    """The reply to `Uninstall`."""

    freed: int
    """Bytes, measured."""
    was_installed: bool


class Uninstall(InstallerCommand[Uninstalled], frozen=True, kw_only=True):
    """Remove a backend, or a version of it, once its engines have drained: `Uninstalled`."""

    REPEATABLE = True
    backend: BackendName
    variant: Version = ""
    version: Version = ""
    """Empty means all that are installed or being built."""
    force: bool = False
    """Do not wait for requests inside its engines."""


class CancelInstall(InstallerCommand[Cancelled], frozen=True, kw_only=True):
    """Cancel a job: `Cancelled`. With `leave`, only if no one else waits for it."""

    backend: BackendName
    variant: Version = ""
    version: Version = ""
    """As requested; empty means the job under way."""
    job: Id = ""
    """Only this job."""
    reason: Line = "requested by the user"
    leave: bool = False
    waiter: Id = ""
    """See `Ensure.waiter`."""


class LeaveInstall(InstallerCommand[None], frozen=True, kw_only=True):
    """A client that waited has disconnected: the job goes on, but no longer for that client."""

    backend: BackendName
    variant: Version = ""
    version: Version = ""
    waiter: Id


class PendingInstallRequests(InstallerCommand[None], frozen=True, kw_only=True):
    """Scheduler → installer: the backends that queued requests wait for."""

    backends: Annotated[frozenset[BackendName], Many] = frozenset()


class PlanInstall(InstallerCommand[Plan], frozen=True, kw_only=True):
    """Determine what an installation would fetch: `Plan`."""

    REPEATABLE = True
    backend: BackendName
    variant: Version = ""
    version: Version = ""
