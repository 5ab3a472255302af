"""Commands and replies: what the actors, the front door and hosts say to each other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, get_args

from greenroom.actors.facts import (
    Caller,
    Engine,
    Failure,
    Installation,
    InstallPolicy,
    Measured,
    Mode,
    Model,
    ModelFormat,
    Promise,
    WantedBy,
)
from greenroom.actors.installer_messages import (
    InstallationGone,
    InstallationsSeen,
    InstallationsUnread,
    InstallAttemptEnded,
    InstallCommitted,
    PlanMade,
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
from greenroom.actors.limits import (
    BackendName,
    Context,
    Flags,
    Id,
    Ids,
    Line,
    Many,
    Name,
    PromptCache,
    Reason,
    Seconds,
    Slots,
    Version,
    Whole,
)
from greenroom.actors.runner_messages import (
    AdoptedEngine,
    BarEngine,
    EngineEnded,
    EngineIsReady,
    EngineMoved,
    EnginesMeasured,
    EngineStalled,
    LostEngine,
    SpawnedEngine,
    StartEngine,
    StopEngine,
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
    slots: int = 0
    """Requests an engine takes at once unless somebody says otherwise; 0 when it takes all that come."""
    shares_cache: bool = False
    """Its slots share one context's key/value cache, and it makes requests wait for it."""
    prompt_cache: bool = False
    """It keeps prompts in memory after their requests, and can be told how many bytes of them."""
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

    backends: Annotated[tuple[BackendStatus, ...], Many]
    version: Whole
    heard: Annotated[Mapping[Id, Id], Many] = {}
    """backend → token of the last `Ensure` that was decided on: what became of it is in this list."""


class EngineList(Command, frozen=True, kw_only=True):
    """Runner → scheduler and installer: all its engines, and the last that are gone."""

    backend: BackendName
    engines: Annotated[tuple[Engine, ...], Many]
    barred: Ids = ()
    """Engines that never will start, even if their start is still on its way."""
    version: Whole
    installations: Whole = -1
    """Version of the installer's list that the scheduler had acted on when it last called the roll."""
    token: Id = ""
    """Of the last roll call that named one: whatever was sent before that call is in this list."""
    measured: Annotated[Mapping[Id, Measured], Many] = {}
    """engine → memory, as far as it could be measured."""


class ModelList(Command, frozen=True, kw_only=True):
    """Library → scheduler: all models."""

    models: Annotated[tuple[Model, ...], Many]
    version: Whole


class RollCall(Command, frozen=True, kw_only=True):
    """Scheduler → owners, in a new life: tell me your list again."""

    installations: Whole = -1
    """Version of the installer's list that the sender has acted on. Whatever it starts afterwards runs on
    nothing that is retiring there, and what it started before has reached the runner before this."""
    token: Id = ""
    """Comes back in the list that answers this call."""


# installer


class Ensure(Command, frozen=True, kw_only=True):
    """Have a backend installed. The reply comes when it is, or when the job has ended: `Ensured`."""

    REPEATABLE = True
    backend: BackendName
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


class Ensured(Reply, frozen=True, kw_only=True):
    """The backend is installed."""

    installation: Installation
    fresh: bool
    """False when it was installed already."""


class Uninstall(Command, frozen=True, kw_only=True):
    """Remove a backend, or a version of it, once its engines have drained: `Uninstalled`."""

    REPEATABLE = True
    backend: BackendName
    version: Version = ""
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

    backend: BackendName
    version: Version = ""
    """What was asked for; empty means whichever is under way."""
    job: Id = ""
    """This one and no other."""
    reason: Line = "cancelled by the user"
    leave: bool = False
    waiter: Id = ""
    """Who leaves: see `Ensure.waiter`."""


class LeaveInstall(Command, frozen=True, kw_only=True):
    """A waiter has gone without a word: nothing ends for it, but he is not waited for either."""

    backend: BackendName
    version: Version = ""
    waiter: Id


class InstallsAwaited(Command, frozen=True, kw_only=True):
    """Scheduler → installer: all backends whose installation requests wait for at this moment."""

    backends: Annotated[frozenset[BackendName], Many] = frozenset()


class Cancelled(Reply, frozen=True, kw_only=True):
    """Whether there was something to end."""

    ended: bool


class PlanInstall(Command, frozen=True, kw_only=True):
    """What would an installation fetch? `Plan`."""

    REPEATABLE = True
    backend: BackendName
    version: Version = ""


# scheduler


class Serve(Command, frozen=True, kw_only=True):
    """Find an engine for a request whose model is known: `Granted`, with a place in its gate."""

    request_id: Id
    """Chosen by the caller, so that it can abandon a request whose grant it has not seen."""
    model_id: Id
    model_ref: Name
    mode: Mode = "completion"
    backend: BackendName = ""
    """Binding: no other serves it."""
    policy: InstallPolicy | None = None
    """Overrides the configured one."""
    keep_alive: Seconds | None = None
    """Seconds the model stays after its last request; negative means for ever."""
    caller: Caller = Caller()
    """Who asks: callers take turns, and none fills the whole queue."""
    places: Slots = 1
    """Slots it needs: one for each answer it wants at the same time."""
    held: bool = False
    """The asker leaves the gate whatever happens, so the place does not end with its `Granted`."""

    def withdrawn(self) -> Abandon:
        return Abandon(request_id=self.request_id)

    @property
    def is_leased(self) -> bool:
        return not self.held


class CallerFound(Command, frozen=True, kw_only=True):
    """Who asks is known better by now: of a request that is still queued, this counts from now on."""

    request_id: Id
    caller: Caller


class Granted(Reply, frozen=True, kw_only=True, weakref=True):
    """A place in an engine's gate under the request's id, until `Abandon`, or until nobody holds this."""

    engine_id: str
    backend: str
    endpoint: str


class AwaitReady(Command, frozen=True, kw_only=True):
    """Has everybody told what he owns? `Ready`, once the scheduler has heard all owners in this life."""


class Ready(Reply, frozen=True, kw_only=True):
    """What was installed, runs and lies in the store has been looked at."""


class Abandon(Command, frozen=True, kw_only=True):
    """The request is gone, granted or not. Valid at any time."""

    request_id: Id


class Unload(Command, frozen=True, kw_only=True):
    """End idle engines: `Unloaded`. Engines in use are left alone."""

    all: bool = False
    backend: BackendName = ""
    model_ids: Ids = ()


class Unloaded(Reply, frozen=True, kw_only=True):
    """How many engines were told to end."""

    engines: int


ConfigField = Literal["context_size", "flags", "keep_alive", "slots", "prompt_cache"]
CONFIG_FIELDS: tuple[ConfigField, ...] = get_args(ConfigField)


class Configure(Command, frozen=True, kw_only=True):
    """Change how a model is loaded; what is None stays as it is. 409 while it is in use."""

    model_id: Id
    model_ref: Name
    mode: Mode = "completion"
    context_size: Context | None = None
    flags: Flags | None = None
    keep_alive: Seconds | None = None
    slots: Slots | None = None
    """Requests at once, each with the whole context; 0 lets the ledger decide."""
    prompt_cache: PromptCache | None = None
    """Bytes of prompts kept after their requests; negative lets the ledger decide."""
    caller: Caller = Caller()
    """Who asks."""
    reset: Annotated[tuple[ConfigField, ...], Many] = ()
    """What is as if it had never been set, unless it is set here."""


class ForgetModel(Command, frozen=True, kw_only=True):
    """Library → scheduler: a model was removed. How it was configured goes with it."""

    model_id: Id
    model_ref: Name


class Configured(Reply, frozen=True, kw_only=True):
    """Whether anything changed."""

    changed: bool


class LiftQuarantines(Command, frozen=True, kw_only=True):
    """Installer → scheduler: somebody wants this version; every model may be tried on it again."""

    backend: BackendName


class Keep(Command, frozen=True, kw_only=True):
    """How long a model stays after its last request, as a request wished that needed no engine found."""

    model_id: Id
    keep_alive: Seconds
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
    context_size: int = 0
    """Tokens each request may fill."""
    slots: int = 0
    """Requests it takes at once; 0 when it takes all that come."""
    used: int = 0
    """Slots that are taken."""
    promises: tuple[Promise, ...] = ()
    """What was promised at its start, by pool and part."""
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
    caller: str = ""
    """Who asks, for people."""


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


class SlotFreed(Command, frozen=True, kw_only=True):
    """Report: a slot is free that requests are queued for."""

    engine_id: Id


class GateEmptied(Command, frozen=True, kw_only=True):
    """Report: the last request has left an engine."""

    engine_id: Id


# daemon


class NoteStopped(Command, frozen=True, kw_only=True):
    """Store that this daemon stops in order."""

    pid: Whole
    reason: Reason


# The library's and reports to the installer, so that whoever talks to actors needs one module.
__all__ = [
    "AdoptedEngine",
    "BarEngine",
    "CancelPull",
    "CancelPush",
    "EngineEnded",
    "EngineIsReady",
    "EngineMoved",
    "EngineStalled",
    "EnginesMeasured",
    "InstallAttemptEnded",
    "InstallCommitted",
    "InstallationGone",
    "InstallationsSeen",
    "InstallationsUnread",
    "LeavePull",
    "LostEngine",
    "ModelGone",
    "ModelNoted",
    "ModelRepackaged",
    "ModelsSeen",
    "NoteDamage",
    "NoteModel",
    "PlanMade",
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
    "SpawnedEngine",
    "StartEngine",
    "StopEngine",
    "StoreSwept",
    "TagModel",
    "Tagged",
    "TagsWritten",
]
