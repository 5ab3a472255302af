"""Events of the installer, in `install/<backend>`. Changing a field needs a new SCHEMA and an upcaster."""

from __future__ import annotations

from greenroom.actors.kernel.core import Event
from greenroom.actors.values import Caller, DeclaredEnvironment, Failure, Installation, WantedBy
from greenroom.actors.variants import RankedVariant


class EnvironmentDeclared(Event, frozen=True, kw_only=True):
    """A program asked for this environment for the first time."""

    TAG = "environment_declared"
    backend: str
    """The environment's name, in the place of a backend's."""
    declared: DeclaredEnvironment


class InstallRequested(Event, frozen=True, kw_only=True):
    """A backend that is not installed was requested; the first attempt begins.

    Repeated for a job already under way, it records a stronger reason.
    """

    TAG = "install_requested"
    job: str
    backend: str
    variant: str = ""
    version: str
    wanted_by: WantedBy
    caller: Caller = Caller()
    best: bool = False
    """The variant was left to the order: if it does not work here, the next one is tried."""


class InstallAttemptFailed(Event, frozen=True, kw_only=True):
    """An attempt failed and will be retried at `retry_at`."""

    TAG = "install_attempt_failed"
    PROBLEM = True
    job: str
    backend: str
    attempt: int
    failure: Failure
    retry_at: float
    reached: bool = True
    """Whether any server has answered in this attempt or an earlier one."""


class InstallAttemptBegun(Event, frozen=True, kw_only=True):
    """The wait is over and another attempt begins: if the daemon ends from now on, this attempt counts."""

    TAG = "install_attempt_begun"
    job: str
    backend: str
    attempt: int


class InstallationCommitted(Event, frozen=True, kw_only=True):
    """An installation is complete, verified and current."""

    TAG = "installation_committed"
    job: str
    backend: str
    installation: Installation
    seconds: float = 0.0


class InstallNotNeeded(Event, frozen=True, kw_only=True):
    """The job ended without building anything: the newest version was already installed."""

    TAG = "install_not_needed"
    job: str
    backend: str
    installation_id: str
    variant: str = ""
    version: str


class InstallFailed(Event, frozen=True, kw_only=True):
    """The job failed for good. The next request may try again."""

    TAG = "install_failed"
    PROBLEM = True
    job: str
    backend: str
    failure: Failure


class InstallCancelled(Event, frozen=True, kw_only=True):
    """The job was cancelled before it finished."""

    TAG = "install_cancelled"
    URGENT = True
    job: str
    backend: str
    reason: str
    unwanted: bool = False
    """True if the user no longer wants the backend."""


class InstallationFound(Event, frozen=True, kw_only=True):
    """A committed installation on disk was unknown to the journal, or is whole again."""

    TAG = "installation_found"
    backend: str
    installation: Installation


class InstallationMissing(Event, frozen=True, kw_only=True):
    """An installation known to the journal is no longer on disk."""

    TAG = "installation_missing"
    PROBLEM = True
    backend: str
    installation_id: str
    reason: str


class InstallationsUnread(Event, frozen=True, kw_only=True):
    """A backend's installations could not be inspected: none is used, and nothing is concluded."""

    TAG = "installations_unread"
    PROBLEM = True
    backend: str
    reason: str


class InstallationsReadAgain(Event, frozen=True, kw_only=True):
    """A backend's installations can be inspected again."""

    TAG = "installations_read_again"
    backend: str


class InstallationBroken(Event, frozen=True, kw_only=True):
    """An installation on disk is not as it was committed."""

    TAG = "installation_broken"
    PROBLEM = True
    backend: str
    installation_id: str
    reason: str


class InstallationActivated(Event, frozen=True, kw_only=True):
    """New engines start from this installation."""

    TAG = "installation_activated"
    backend: str
    installation_id: str
    reason: str = ""
    """Why it was chosen, as the end of a sentence."""


class VariantsRanked(Event, frozen=True, kw_only=True):
    """The machine's devices, or what is known of them, have changed: this is the new order of variants."""

    TAG = "variants_ranked"
    backend: str
    devices: tuple[str, ...] = ()
    """What was found, for people."""
    variants: tuple[RankedVariant, ...]


class InstallationRetiring(Event, frozen=True, kw_only=True):
    """An installation will be removed once no engine uses it; no new engine starts from it."""

    TAG = "installation_retiring"
    backend: str
    installation_id: str
    reason: str
    unwanted: bool = False
    """True if the user uninstalled the backend: it stays uninstalled until requested again."""
    by_user: bool = False
    """The user uninstalled it: its variant is not offered again."""

    @property
    def is_urgent(self) -> bool:
        """Uninstalling on a full disk makes the room that others wait for."""
        return self.unwanted


class InstallationRemoved(Event, frozen=True, kw_only=True):
    """An installation is no longer on disk, as was intended."""

    TAG = "installation_removed"
    URGENT = True
    backend: str
    installation_id: str
    freed: int = 0
