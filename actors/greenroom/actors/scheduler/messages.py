"""The scheduler's commands and replies."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from greenroom.actors.kernel.core import Address, Command, R_co
from greenroom.actors.limits import (
    BackendName,
    Context,
    Flags,
    Id,
    Ids,
    Many,
    Name,
    PromptCache,
    Seconds,
    Slots,
)
from greenroom.actors.values import RESERVED_IN_JSON, Caller, Fact, InstallPolicy, LayersOn, Mode

SCHEDULER = Address("scheduler")


class SchedulerCommand(Command[R_co], frozen=True, kw_only=True):
    ACTOR = SCHEDULER


class Granted(Fact, frozen=True, kw_only=True, weakref=True):
    """A slot in an engine under the request's id, until `Abandon` or until this is garbage-collected."""

    engine_id: str
    backend: str
    endpoint: str


class Serve(SchedulerCommand[Granted], frozen=True, kw_only=True):
    """Find an engine for a request and enter its gate."""

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
    """Seconds the model stays after its last request; negative pins it."""
    caller: Caller = Caller()
    """Who asks: callers take turns, and none fills the whole queue."""
    slots: Slots = 1
    """Slots it needs: one for each answer it wants at the same time."""
    context_size: Context = 0
    """Tokens that it may fill at least, whatever is configured; 0 leaves that to the configuration."""
    held: bool = False
    """The caller leaves the gate itself, so the slot does not end with its `Granted`."""
    on_behalf: Id = ""
    """The client's request, if this is a further attempt at it under an id of its own."""

    def withdrawn(self) -> Abandon:
        return Abandon(request_id=self.request_id)

    @property
    def is_leased(self) -> bool:
        return not self.held


class CallerFound(SchedulerCommand[None], frozen=True, kw_only=True):
    """A queued request turns out to be from this caller."""

    request_id: Id
    caller: Caller


class Ready(Fact, frozen=True, kw_only=True):
    """Every owner has sent its list."""


class AwaitReady(SchedulerCommand[Ready], frozen=True, kw_only=True):
    """Answered once every owner has sent its list in this life."""


class Abandon(SchedulerCommand[None], frozen=True, kw_only=True):
    """The client has gone, granted or not. Valid at any time."""

    request_id: Id


class Unloaded(Fact, frozen=True, kw_only=True):
    """How many engines are ending."""

    engines: int
    ending: tuple[str, ...] = ()
    """Their ids."""
    busy: tuple[str, ...] = ()
    """A sentence for each engine that was left alone: it names the model and the requests that use it."""


class Unload(SchedulerCommand[Unloaded], frozen=True, kw_only=True):
    """End idle engines; those in use are left alone, unless it is forced."""

    all: bool = False
    force: bool = False
    """Also end those in use, once the requests inside are done."""
    backend: BackendName = ""
    model_ids: Ids = ()


ConfigField = Literal["context_size", "flags", "keep_alive", "slots", "prompt_cache", "require_device"]
CONFIG_FIELDS: tuple[ConfigField, ...] = get_args(ConfigField)


class Configured(Fact, frozen=True, kw_only=True):
    """The reply to `Configure`."""

    changed: bool


class Configure(SchedulerCommand[Configured], frozen=True, kw_only=True):
    """Change how a model is loaded; what is None stays as it is. Refused while it is in use."""

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
    require_device: bool | None = None
    """Load it only if it lies on graphics devices as a whole."""
    caller: Caller = Caller()
    """Who asks."""
    reset: Annotated[tuple[ConfigField, ...], Many] = ()
    """Fields that go back to their defaults, unless they are set here."""


class ForgetModel(SchedulerCommand[None], frozen=True, kw_only=True):
    """Library → scheduler: a model was removed, and its configuration with it."""

    model_id: Id
    model_ref: Name


class LiftQuarantines(SchedulerCommand[None], frozen=True, kw_only=True):
    """Installer → scheduler: a user asked for this version; every model may be tried on it again."""

    backend: BackendName


class Keep(SchedulerCommand[None], frozen=True, kw_only=True):
    """The keep-alive of a request that entered a gate without the scheduler."""

    model_id: Id
    keep_alive: Seconds
    """Seconds; negative pins the model."""
    mode: Mode = "completion"
    request_id: Id = ""


class LedgerReading(Fact, frozen=True, kw_only=True, rename=RESERVED_IN_JSON):
    """The ledger at one moment, in bytes."""

    budget: int
    available: int
    reserved: int
    free: int
    waiting: int
    """Requests that have no engine yet."""
    engines: tuple[EngineAccount, ...]
    queue: tuple[QueueEntry, ...] = ()
    """In the order in which they are served."""
    devices: tuple[DeviceAccount, ...] = ()


class ReadLedger(SchedulerCommand[LedgerReading], frozen=True, kw_only=True):
    """Which engine holds how much memory, and until when."""


class PlacementReading(Fact, frozen=True, kw_only=True):
    """Where the layers of a model would lie if it were loaded now."""

    layers: int = 0
    """All of them; 0 where its engine decides for itself."""
    placement: tuple[LayersOn, ...] = ()
    reason: str = ""
    context: int = 0
    """Tokens of context it would be loaded with."""
    context_for_all: int = 0
    """A smaller context with which all layers would lie on devices; 0 if none is, or all do."""


class ReadPlacement(SchedulerCommand[PlacementReading], frozen=True, kw_only=True):
    """Where a model would be loaded now, by this installation."""

    model_id: Id
    backend: BackendName
    installation_id: Id
    mode: Mode = "completion"


class EngineAccount(Fact, frozen=True, kw_only=True, rename=RESERVED_IN_JSON):
    """One engine in the ledger. Bytes and seconds."""

    engine_id: str
    reserved: int
    measured: int | None
    """Memory its processes use now; None where it could not be measured."""
    peak: int | None
    device: str = ""
    """Id of the device it computes on; the next two are about that device's memory."""
    device_reserved: int = 0
    device_measured: int | None = None
    context_size: int = 0
    """Tokens each request may fill."""
    slots: int = 0
    """Requests it takes at once; 0 for no limit."""
    used: int = 0
    inside: int
    """Requests that it is answering."""
    served: int
    queue: int
    """Requests that wait for it."""
    keep_alive: float
    """Negative when it is pinned."""
    idle_seconds: float | None
    """None while it is loading or in use."""
    expires_in: float | None
    """None while it is loading, in use or pinned."""
    cause: str
    """Id of the event that admitted it."""


class QueueEntry(Fact, frozen=True, kw_only=True):
    request_id: str
    model_ref: str
    mode: Mode
    place: int
    """The first is 1; 0 for one that has just arrived."""
    phase: str
    message: str
    """What it waits for."""
    follows: str
    """The board's key of the job it waits for; empty when there is none."""
    waited: float
    """Seconds."""
    left: float
    """Seconds until it is refused if it is not served."""
    caller: str = ""
    """For people."""


class DeviceAccount(Fact, frozen=True, kw_only=True, rename=RESERVED_IN_JSON):
    """The memory of one graphics device, in bytes."""

    id: str
    name: str
    total: int
    budget: int
    available: int | None
    """Measured; None where it cannot be."""
    reserved: int
    free: int


class Drain(SchedulerCommand[Unloaded], frozen=True, kw_only=True):
    """The daemon stops: admit nothing more and end all engines."""


class SlotFreed(SchedulerCommand[None], frozen=True, kw_only=True):
    """Report: a slot is free that requests are queued for."""

    engine_id: Id


class GateEmptied(SchedulerCommand[None], frozen=True, kw_only=True):
    """Report: the last request has left an engine."""

    engine_id: Id
