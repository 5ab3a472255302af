"""What the installer stores, in `install/<backend>`. A changed field needs a new SCHEMA and an upcaster."""

from __future__ import annotations

from greenroom.actors.kernel.core import Event
from greenroom.actors.values import Caller, Failure, Installation, WantedBy


class InstallRequested(Event, frozen=True, kw_only=True):
    """Somebody wants a backend that is not there; the first attempt begins.

    Of a job that is under way already it says that somebody wants it for a stronger reason.
    """

    TAG = "install_requested"
    job: str
    backend: str
    variant: str = ""
    version: str
    wanted_by: WantedBy
    caller: Caller = Caller()
    """Who asked."""


class InstallAttemptFailed(Event, frozen=True, kw_only=True):
    """An attempt failed for a reason that may pass; the next one begins at `retry_at`."""

    TAG = "install_attempt_failed"
    job: str
    backend: str
    attempt: int
    failure: Failure
    retry_at: float
    reached: bool = True
    """Some server has answered in this attempt or one before."""


class InstallAttemptBegun(Event, frozen=True, kw_only=True):
    """The wait is over and another attempt begins: a daemon that ends from here on has cost an attempt."""

    TAG = "install_attempt_begun"
    job: str
    backend: str
    attempt: int


class InstallationCommitted(Event, frozen=True, kw_only=True):
    """An installation is complete, verified and in use from now on."""

    TAG = "installation_committed"
    job: str
    backend: str
    installation: Installation
    seconds: float = 0.0


class InstallNotNeeded(Event, frozen=True, kw_only=True):
    """The job has ended without building anything: the newest version is here already."""

    TAG = "install_not_needed"
    job: str
    backend: str
    installation_id: str
    variant: str = ""
    version: str


class InstallFailed(Event, frozen=True, kw_only=True):
    """The job has ended without an installation. The next request may try again."""

    TAG = "install_failed"
    job: str
    backend: str
    failure: Failure


class InstallCancelled(Event, frozen=True, kw_only=True):
    """The job was ended on purpose."""

    TAG = "install_cancelled"
    URGENT = True
    job: str
    backend: str
    reason: str
    unwanted: bool = False
    """True when the user does not want the backend any more."""


class InstallationFound(Event, frozen=True, kw_only=True):
    """A committed installation is on disk that the journal did not know, or that is whole again."""

    TAG = "installation_found"
    backend: str
    installation: Installation


class InstallationMissing(Event, frozen=True, kw_only=True):
    """An installation the journal knows is not on disk any more."""

    TAG = "installation_missing"
    backend: str
    installation_id: str
    reason: str


class InstallationsUnread(Event, frozen=True, kw_only=True):
    """What a backend has on the disk could not be looked at: nothing is concluded of it, and none is used."""

    TAG = "installations_unread"
    backend: str
    reason: str


class InstallationsReadAgain(Event, frozen=True, kw_only=True):
    """What a backend has on the disk can be looked at again."""

    TAG = "installations_read_again"
    backend: str


class InstallationBroken(Event, frozen=True, kw_only=True):
    """An installation is on disk, but not as it was committed."""

    TAG = "installation_broken"
    backend: str
    installation_id: str
    reason: str


class InstallationActivated(Event, frozen=True, kw_only=True):
    """This installation is the one new engines start from."""

    TAG = "installation_activated"
    backend: str
    installation_id: str
    reason: str = ""
    """What it was chosen for, as the end of a sentence."""


class InstallationRetiring(Event, frozen=True, kw_only=True):
    """It will be removed once no engine uses it; nothing new starts on it."""

    TAG = "installation_retiring"
    backend: str
    installation_id: str
    reason: str
    unwanted: bool = False
    """True when the user uninstalled the backend: it stays so until he asks for it again."""

    @property
    def is_urgent(self) -> bool:
        """Whoever uninstalls on a full disk makes the very room that others wait for."""
        return self.unwanted


class InstallationRemoved(Event, frozen=True, kw_only=True):
    """Its files are gone."""

    TAG = "installation_removed"
    URGENT = True
    backend: str
    installation_id: str
    freed: int = 0
