"""What is stored. Tags and fields are the journal's format: a change needs a new SCHEMA and an upcaster.

Streams: `install/<backend>` (installer), `runner/<backend>`, `library`, `scheduler`, `daemon`.
Times are wall-clock seconds, sizes bytes.
"""

from __future__ import annotations

from greenroom.actors.facts import (
    Caller,
    EngineExit,
    EngineSpec,
    Failure,
    Installation,
    Mode,
    Model,
    WantedBy,
)
from greenroom.actors.kernel.core import Event

# installer


class InstallRequested(Event, frozen=True, kw_only=True):
    """Somebody wants a backend that is not there; the first attempt begins.

    Of a job that is under way already it says that somebody wants it for a stronger reason.
    """

    TAG = "install_requested"
    job: str
    backend: str
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


# runner


class EngineStartRequested(Event, frozen=True, kw_only=True):
    """The intent to start an engine; recovery settles it by looking, never by repeating."""

    TAG = "engine_start_requested"
    spec: EngineSpec


class EngineSpawned(Event, frozen=True, kw_only=True):
    """Its process runs."""

    TAG = "engine_spawned"
    engine_id: str
    pid: int
    started: float
    endpoint: str


class EngineReady(Event, frozen=True, kw_only=True):
    """It has proved that it can answer."""

    TAG = "engine_ready"
    engine_id: str
    seconds: float = 0.0
    """From the request to start it."""


class EngineStopRequested(Event, frozen=True, kw_only=True):
    """It was asked to end."""

    TAG = "engine_stop_requested"
    URGENT = True
    engine_id: str
    reason: str
    fault: bool = False
    """True when its runner gives it up, False when it is not wanted any more."""
    failure: Failure | None = None
    """Why it is given up, with kind, code and blame."""


class EngineExited(Event, frozen=True, kw_only=True):
    """Its process has ended."""

    TAG = "engine_exited"
    URGENT = True
    engine_id: str
    exit: EngineExit


class EngineAdopted(Event, frozen=True, kw_only=True):
    """It outlived the daemon that started it and is ours again."""

    TAG = "engine_adopted"
    engine_id: str
    pid: int
    started: float
    endpoint: str
    ready: bool = True
    """Whether it answered when it was looked at; the journal's claim counts for nothing."""


class EngineLost(Event, frozen=True, kw_only=True):
    """The journal says it runs, or shall; nothing on this machine does, and it never will again."""

    TAG = "engine_lost"
    URGENT = True
    engine_id: str
    reason: str


# scheduler


class BackendChosen(Event, frozen=True, kw_only=True):
    """Which backend serves a model, and why not another."""

    TAG = "backend_chosen"
    model_id: str
    model_ref: str
    mode: Mode
    backend: str
    installation_id: str
    reasons: tuple[str, ...] = ()


class LoadAdmitted(Event, frozen=True, kw_only=True):
    """A load has its place in memory; its engine will be started."""

    TAG = "load_admitted"
    spec: EngineSpec
    promised: int
    """Bytes promised to all engines, this one included."""
    budget: int
    device_promised: int = 0
    """The same two of its device's memory, if it has one."""
    device_budget: int = 0
    refused_before: int = 0
    """Requests for it that were refused since the last time it was loaded."""
    caller: Caller = Caller()
    """Whose request it was that wanted it."""


class LoadRefused(Event, frozen=True, kw_only=True):
    """Requests for a model are refused; stored when the reason first appears or changes."""

    TAG = "load_refused"
    model_id: str
    model_ref: str
    mode: Mode
    code: str
    message: str
    numbers: dict[str, float] = {}  # noqa: RUF012 - msgspec copies it for every instance
    count: int = 1
    advice: str = ""
    """What else the client was told to do."""
    caller: Caller = Caller()
    """Whose request it was."""


class LoadFailed(Event, frozen=True, kw_only=True):
    """An engine that should run does not."""

    TAG = "load_failed"
    URGENT = True
    engine_id: str
    model_id: str
    model_ref: str
    backend: str
    installation_id: str
    failure: Failure
    was_ready: bool = False
    footprint: int = 0
    """Bytes to reckon with the next time, by measurement; 0 when it was not measured well enough."""
    device_footprint: int = 0
    """The same of its device's memory."""


class EvictionDecided(Event, frozen=True, kw_only=True):
    """An engine shall end; its place is free once it is gone."""

    TAG = "eviction_decided"
    URGENT = True
    engine_id: str
    model_id: str
    model_ref: str
    backend: str
    reason: str
    """`idle`, `room`, `unload`, `retiring`, `reconfigured`, `removed`, `shutdown`."""
    in_favour_of: str = ""
    """The model that needs the room."""
    idle_seconds: float = 0.0
    memory: int = 0
    """Bytes it was reckoned to hold."""
    needed: int = 0
    free: int = 0
    device: str = ""
    """Whose memory these three are about; empty for the machine's."""
    footprint: int = 0
    """Bytes to reckon with the next time, by measurement; 0 when it was not measured well enough."""
    device_footprint: int = 0
    """The same of its device's memory."""
    installation_id: str = ""
    """Where it ran; empty when it never was ready."""

    @property
    def is_urgent(self) -> bool:
        """Not for another load: that could not be recorded, so room would be made in vain."""
        return self.reason != "room"


class BreakerOpened(Event, frozen=True, kw_only=True):
    """A model keeps dying on an installation; it is left alone for a while."""

    TAG = "breaker_opened"
    model_id: str
    model_ref: str
    backend: str
    installation_id: str
    failures: int
    until: float
    reason: str


class BreakerClosed(Event, frozen=True, kw_only=True):
    """It may be tried again without restraint."""

    TAG = "breaker_closed"
    model_id: str
    backend: str
    installation_id: str
    reason: str


class ModelQuarantined(Event, frozen=True, kw_only=True):
    """A model dies on an installation and has run on another of the same backend: that one serves it."""

    TAG = "model_quarantined"
    model_id: str
    model_ref: str
    backend: str
    installation_id: str
    """Where it dies."""
    version: str
    back_to: str
    """The installation it goes back to."""
    back_to_version: str
    failures: int
    reason: str
    """The last failure, as a sentence."""


class QuarantineLifted(Event, frozen=True, kw_only=True):
    """The model may be tried on that installation again, as if it had never failed there."""

    TAG = "quarantine_lifted"
    model_id: str
    model_ref: str
    backend: str
    installation_id: str
    reason: str


class KeepAliveWished(Event, frozen=True, kw_only=True):
    """A request wished that a model stays for ever, or no longer does; other wishes are not stored."""

    TAG = "keep_alive_wished"
    engine_id: str
    model_id: str
    model_ref: str
    keep_alive: float
    """Seconds; negative means for ever."""


class ConfigChanged(Event, frozen=True, kw_only=True):
    """How a model is loaded from now on."""

    TAG = "config_changed"
    model_id: str
    model_ref: str
    mode: Mode
    context_size: int | None = None
    flags: tuple[str, ...] | None = None
    keep_alive: float | None = None
    """Seconds; negative means for ever."""
    slots: int | None = None
    """Requests at once; 0 lets the ledger decide."""
    prompt_cache: int | None = None
    """Bytes; negative lets the ledger decide."""
    reset: tuple[str, ...] = ()
    """Names of those that are as if they had never been set, unless this event sets them."""
    caller: Caller = Caller()
    """Who asked."""


# library


class PullRequested(Event, frozen=True, kw_only=True):
    """Somebody wants a model that is not here; of a pull under way, for a stronger reason than before."""

    TAG = "pull_requested"
    job: str
    reference: str
    wanted_by: WantedBy = "explicit"
    force: bool = False
    """Also when it cannot fit on the disk or run on this machine."""
    caller: Caller = Caller()
    """Who asked."""


class PullAttemptFailed(Event, frozen=True, kw_only=True):
    """An attempt failed for a reason that may pass; what has arrived is kept."""

    TAG = "pull_attempt_failed"
    job: str
    attempt: int
    failure: Failure
    retry_at: float
    streak: int = 0
    """Attempts in a row that have brought nothing, this one included; 0 when it has."""
    reached: bool = True
    """Whether the source has answered in any attempt so far."""


class ModelCommitted(Event, frozen=True, kw_only=True):
    """A model lies in the store, whole and verified."""

    TAG = "model_committed"
    job: str
    model: Model
    seconds: float = 0.0
    fresh: bool = True
    """False when a pull found that it was here already."""


class PullFailed(Event, frozen=True, kw_only=True):
    """The pull has ended without a model."""

    TAG = "pull_failed"
    job: str
    failure: Failure


class PullCancelled(Event, frozen=True, kw_only=True):
    """The pull was ended on purpose."""

    TAG = "pull_cancelled"
    URGENT = True
    job: str
    reason: str


class ModelPushed(Event, frozen=True, kw_only=True):
    """A model is published under this reference."""

    TAG = "model_pushed"
    model_id: str
    reference: str
    sent: int = 0
    """Bytes; the registry had the others."""
    seconds: float = 0.0


class PushFailed(Event, frozen=True, kw_only=True):
    """A model could not be published."""

    TAG = "push_failed"
    model_id: str
    reference: str
    failure: Failure


class ModelTagged(Event, frozen=True, kw_only=True):
    """A model's tags are now these."""

    TAG = "model_tagged"
    model_id: str
    tags: tuple[str, ...]


class ModelRemoved(Event, frozen=True, kw_only=True):
    """A model is no longer in the store."""

    TAG = "model_removed"
    URGENT = True
    model_id: str
    reason: str
    freed: int = 0


# idempotency


class CommandKeyed(Event, frozen=True, kw_only=True):
    """A command with an Idempotency-Key is carried out."""

    TAG = "command_keyed"
    key: str
    """SHA-256 of the key."""
    command: str
    """SHA-256 of method, path and body."""
    name: str
    """Method and path."""


class CommandAnswered(Event, frozen=True, kw_only=True):
    """What whoever sends it again is answered."""

    TAG = "command_answered"
    key: str
    status: int
    content_type: str = ""
    body: str = ""
    location: str = ""


# daemon


class DaemonStarted(Event, frozen=True, kw_only=True):
    """A daemon has opened this journal."""

    TAG = "daemon_started"
    pid: int
    version: str
    platform: str
    boot_id: str = ""
    address: str = ""
    life: str = ""
    """A name of its own: in a container each daemon has the same pid."""


class DaemonStopped(Event, frozen=True, kw_only=True):
    """It has stopped in order. Without this before the next start, it was killed."""

    TAG = "daemon_stopped"
    URGENT = True
    pid: int
    reason: str
