"""Commands and replies: what the actors, the front door and hosts say to each other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from greenroom.actors.facts import (
    Engine,
    EngineExit,
    EngineSpec,
    Failure,
    Installation,
    InstallPolicy,
    Measured,
    Mode,
    Model,
    ModelFormat,
    Plan,
    Progress,
    WantedBy,
)
from greenroom.actors.kernel.core import Address, Command
from greenroom.actors.library_messages import (
    CancelPull,
    CancelPush,
    LeavePull,
    ModelGone,
    ModelNoted,
    ModelRepackaged,
    ModelsSeen,
    NoteDamage,
    NoteModel,
    Prune,
    Pruned,
    Pull,
    PullAttemptEnded,
    PullCommitted,
    Pulled,
    Push,
    Pushed,
    PushEnded,
    Release,
    Released,
    Removed,
    RemoveModel,
    RepackageModel,
    StoreSwept,
    Tagged,
    TagModel,
    TagsWritten,
)

INSTALLER = Address("installer")
SCHEDULER = Address("scheduler")
LIBRARY = Address("library")
DAEMON = Address("daemon")


def runner_address(backend: str) -> Address:
    """Where the runner of a backend is."""
    return Address(f"runner/{backend}")


class Reply(Command, frozen=True, kw_only=True):
    """An answer."""


# what is told upwards: whole lists, never deltas


class BackendFacts(Reply, frozen=True, kw_only=True):
    """What the actors need to know of a backend's declaration."""

    name: str
    deferred: bool
    formats: tuple[ModelFormat, ...]
    modes: tuple[Mode, ...]
    preference: int
    install_preference: int
    verdict: str = ""
    """Why this platform cannot run it; empty when it can."""
    overhead: int = 0
    """Bytes an engine needs beyond weights and key/value cache."""
    device: bool = False
    """Its engines compute on a graphics device with memory of its own, where there is one."""
    version: str = ""
    """What is installed when no version is named, where known."""
    download_bytes: int = 0
    """What installing it would fetch, where known."""


BackendState = Literal[
    "absent", "installing", "waiting_to_retry", "installed", "broken", "failed", "retiring"
]


class BackendStatus(Reply, frozen=True, kw_only=True):
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


class InstallationList(Command, frozen=True, kw_only=True):
    """Installer → scheduler: all backends."""

    backends: tuple[BackendStatus, ...]
    version: int
    heard: Mapping[str, str] = {}
    """backend → token of the last `Ensure` that was decided on: what became of it is in this list."""


class EngineList(Command, frozen=True, kw_only=True):
    """Runner → scheduler and installer: all its engines, and the last that are gone."""

    backend: str
    engines: tuple[Engine, ...]
    barred: tuple[str, ...] = ()
    """Engines that never will start, even if their start is still on its way."""
    version: int
    installations: int = -1
    """Version of the installer's list that the scheduler had acted on when it last called the roll."""
    token: str = ""
    """Of the last roll call that named one: whatever was sent before that call is in this list."""
    measured: Mapping[str, Measured] = {}
    """engine → memory, as far as it could be measured."""


class ModelList(Command, frozen=True, kw_only=True):
    """Library → scheduler: all models."""

    models: tuple[Model, ...]
    version: int


class RollCall(Command, frozen=True, kw_only=True):
    """Scheduler → owners, in a new life: tell me your list again."""

    installations: int = -1
    """Version of the installer's list that the sender has acted on. Whatever it starts afterwards runs on
    nothing that is retiring there, and what it started before has reached the runner before this."""
    token: str = ""
    """Comes back in the list that answers this call."""


# installer


class Ensure(Command, frozen=True, kw_only=True):
    """Have a backend installed. The reply comes when it is, or when the job has ended: `Ensured`."""

    backend: str
    version: str = ""
    """Empty means the pinned one."""
    wanted_by: WantedBy = "explicit"
    repair: bool = False
    """Build anew even when the installation looks whole."""
    token: str = ""
    """For those who do not wait for the reply: comes back in the installer's list once this is decided."""
    waiter: str = ""
    """Who waits, by a name nobody else has; without one it is wanted until the job ends, or until `leave`."""


class Ensured(Reply, frozen=True, kw_only=True):
    """The backend is installed."""

    installation: Installation
    fresh: bool
    """False when it was installed already."""


class Uninstall(Command, frozen=True, kw_only=True):
    """Remove a backend, or a version of it, once its engines have drained: `Uninstalled`."""

    backend: str
    version: str = ""
    """Empty means all that is installed and on its way."""
    force: bool = False
    """Do not wait for those inside its engines."""


class Uninstalled(Reply, frozen=True, kw_only=True):
    """It is gone."""

    freed: int
    """Bytes, measured."""
    was_installed: bool


class CancelInstall(Command, frozen=True, kw_only=True):
    """End an installation: `Cancelled`. `leave` ends it only if nobody else waits for it."""

    backend: str
    version: str = ""
    """What was asked for; empty means whichever is under way."""
    job: str = ""
    """This one and no other."""
    reason: str = "cancelled by the user"
    leave: bool = False
    waiter: str = ""
    """Who leaves: see `Ensure.waiter`."""


class LeaveInstall(Command, frozen=True, kw_only=True):
    """A waiter has gone without a word: nothing ends for it, but he is not waited for either."""

    backend: str
    version: str = ""
    waiter: str


class InstallsAwaited(Command, frozen=True, kw_only=True):
    """Scheduler → installer: all backends whose installation requests wait for at this moment."""

    backends: frozenset[str] = frozenset()


class Cancelled(Reply, frozen=True, kw_only=True):
    """Whether there was something to end."""

    ended: bool


class PlanInstall(Command, frozen=True, kw_only=True):
    """What would an installation fetch? `Plan`."""

    backend: str
    version: str = ""


class InstallCommitted(Command, frozen=True, kw_only=True):
    """Report: an attempt has built a whole installation."""

    job: str
    installation: Installation


class InstallAttemptEnded(Command, frozen=True, kw_only=True):
    """Report: an attempt failed or was cancelled."""

    job: str
    backend: str
    failure: Failure
    reached: bool = True
    """Some server has answered; where none has there may be no network."""


class InstallationsSeen(Command, frozen=True, kw_only=True):
    """Report: what lies on disk for a backend."""

    backend: str
    installations: tuple[Installation, ...]
    building: tuple[tuple[str, int], ...] = ()
    """(job, attempt) of all that is being built meanwhile: what an installer that was rebuilt has begun."""


class InstallationGone(Command, frozen=True, kw_only=True):
    """Report: an installation's files are removed, or could not be."""

    backend: str
    installation_id: str
    freed: int = 0
    failure: Failure | None = None


class PlanMade(Command, frozen=True, kw_only=True):
    """Report: a plan, or why there is none."""

    backend: str
    version: str
    plan: Plan | None = None
    failure: Failure | None = None


# runner


class StartEngine(Command, frozen=True, kw_only=True):
    """Scheduler → runner. The same id twice is harmless."""

    spec: EngineSpec


class StopEngine(Command, frozen=True, kw_only=True):
    """Scheduler → runner. Harmless for an engine that is gone."""

    engine_id: str
    reason: str


class BarEngine(Command, frozen=True, kw_only=True):
    """Scheduler → runner. An engine that is not known shall never start; one that is known is left alone.

    Either way the runner's list says which it was.
    """

    engine_id: str


class SpawnedEngine(Command, frozen=True, kw_only=True):
    """Report: its process runs."""

    engine_id: str
    pid: int
    started: float
    endpoint: str


class EngineIsReady(Command, frozen=True, kw_only=True):
    """Report: it has proved that it can answer."""

    engine_id: str


class EngineEnded(Command, frozen=True, kw_only=True):
    """Report: its process has ended, or never began."""

    engine_id: str
    exit: EngineExit


class AdoptedEngine(Command, frozen=True, kw_only=True):
    """Report: it outlived the last daemon."""

    engine_id: str
    pid: int
    started: float
    endpoint: str
    ready: bool


class LostEngine(Command, frozen=True, kw_only=True):
    """Report: there is no such process."""

    engine_id: str
    reason: str


class EngineMoved(Command, frozen=True, kw_only=True):
    """Report: it is loading and getting on."""

    engine_id: str


class EngineStalled(Command, frozen=True, kw_only=True):
    """Report: it is ready and does nothing for those inside; it shall be ended."""

    engine_id: str
    reason: str


class EnginesMeasured(Command, frozen=True, kw_only=True):
    """Report: the memory of engines. Never stored."""

    measured: Mapping[str, Measured]


# scheduler


class Serve(Command, frozen=True, kw_only=True):
    """Find an engine for a request whose model is known: `Granted`, with a place in its gate."""

    request_id: str
    """Chosen by the caller, so that it can abandon a request whose grant it has not seen."""
    model_id: str
    model_ref: str
    mode: Mode = "completion"
    backend: str = ""
    """Binding: no other serves it."""
    policy: InstallPolicy | None = None
    """Overrides the configured one."""
    keep_alive: float | None = None
    """Seconds the model stays after its last request; negative means for ever."""
    caller: str = ""
    """Whom fairness counts: a key or an address."""


class Granted(Reply, frozen=True, kw_only=True):
    """A place in an engine's gate under the request's id. Whoever has it must leave."""

    engine_id: str
    backend: str
    endpoint: str


class AwaitReady(Command, frozen=True, kw_only=True):
    """Has everybody told what he owns? `Ready`, once the scheduler has heard all owners in this life."""


class Ready(Reply, frozen=True, kw_only=True):
    """What was installed, runs and lies in the store has been looked at."""


class Abandon(Command, frozen=True, kw_only=True):
    """The request is gone, granted or not. Valid at any time."""

    request_id: str


class Unload(Command, frozen=True, kw_only=True):
    """End idle engines: `Unloaded`. Engines in use are left alone."""

    all: bool = False
    backend: str = ""
    model_ids: tuple[str, ...] = ()


class Unloaded(Reply, frozen=True, kw_only=True):
    """How many engines were told to end."""

    engines: int


class Configure(Command, frozen=True, kw_only=True):
    """Change how a model is loaded; what is None stays as it is. 409 while it is in use."""

    model_id: str
    model_ref: str
    mode: Mode = "completion"
    context_size: int | None = None
    flags: tuple[str, ...] | None = None
    keep_alive: float | None = None


class Configured(Reply, frozen=True, kw_only=True):
    """Whether anything changed."""

    changed: bool


class LiftQuarantines(Command, frozen=True, kw_only=True):
    """Installer → scheduler: somebody wants this version; every model may be tried on it again."""

    backend: str


class Keep(Command, frozen=True, kw_only=True):
    """How long a model stays after its last request, as a request wished that needed no engine found."""

    model_id: str
    keep_alive: float
    """Seconds; negative means for ever."""
    mode: Mode = "completion"


class ReadLedger(Command, frozen=True, kw_only=True):
    """Who holds what memory, for whom and until when: `LedgerReading`."""


class EngineAccount(Reply, frozen=True, kw_only=True):
    """One engine that shall run, as the scheduler reckons with it. Bytes and seconds."""

    engine_id: str
    promised: int
    measured: int | None
    """Memory its processes use now; None where it could not be measured."""
    peak: int | None
    device: str = ""
    """Id of the device it computes on; the next are about that device's memory."""
    device_promised: int = 0
    device_measured: int | None = None
    inside: int
    """Requests it is answering."""
    served: int
    queue: int
    """Requests that wait for it."""
    keep_alive: float
    """Negative means for ever."""
    idle_seconds: float | None
    """None while it is in use or loads."""
    expires_in: float | None
    """None while it is in use or loads, and when it stays for ever."""
    cause: str
    """Id of the event that admitted it."""


class QueueEntry(Reply, frozen=True, kw_only=True):
    """One request that has no engine yet."""

    request_id: str
    model_ref: str
    mode: Mode
    place: int
    """The first is 1; 0 when it has only just come."""
    phase: str
    message: str
    """What it waits for."""
    follows: str
    """The board's key of the job it waits for; empty when there is none."""
    waited: float
    """Seconds."""
    left: float
    """Seconds until it is refused, should nothing come of it."""


class DeviceAccount(Reply, frozen=True, kw_only=True):
    """The memory of one graphics device, in bytes."""

    id: str
    name: str
    total: int
    budget: int
    available: int | None
    """Measured; None where it cannot be."""
    promised: int
    free: int


class LedgerReading(Reply, frozen=True, kw_only=True):
    """The ledger at one moment, in bytes."""

    budget: int
    available: int
    promised: int
    free: int
    waiting: int
    """Requests that have no engine yet."""
    engines: tuple[EngineAccount, ...]
    queue: tuple[QueueEntry, ...] = ()
    """Those that wait, the first first."""
    devices: tuple[DeviceAccount, ...] = ()


class Drain(Command, frozen=True, kw_only=True):
    """The daemon stops: admit nothing more and end all engines (`Unloaded`)."""


class GateEmptied(Command, frozen=True, kw_only=True):
    """Report: the last request has left an engine."""

    engine_id: str


class JobMoved(Command, frozen=True, kw_only=True):
    """Report: a job got on. Never stored."""

    progress: Progress


# daemon


class NoteStopped(Command, frozen=True, kw_only=True):
    """Store that this daemon stops in order."""

    pid: int
    reason: str


# The library's, so that whoever talks to actors needs one module.
__all__ = [
    "CancelPull",
    "CancelPush",
    "LeavePull",
    "ModelGone",
    "ModelNoted",
    "ModelRepackaged",
    "ModelsSeen",
    "NoteDamage",
    "NoteModel",
    "Prune",
    "Pruned",
    "Pull",
    "PullAttemptEnded",
    "PullCommitted",
    "Pulled",
    "Push",
    "PushEnded",
    "Pushed",
    "Release",
    "Released",
    "RemoveModel",
    "Removed",
    "RepackageModel",
    "StoreSwept",
    "TagModel",
    "Tagged",
    "TagsWritten",
]
