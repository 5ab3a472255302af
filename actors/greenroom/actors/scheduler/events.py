"""What the scheduler stores. A changed field needs a new SCHEMA and an upcaster."""

from __future__ import annotations

from greenroom.actors.kernel.core import Event
from greenroom.actors.values import RESERVED_IN_JSON, Caller, EngineSpec, Failure, Mode


class BackendChosen(Event, frozen=True, kw_only=True):
    """Which backend serves a model, and why."""

    TAG = "backend_chosen"
    model_id: str
    model_ref: str
    mode: Mode
    backend: str
    installation_id: str
    reasons: tuple[str, ...] = ()
    preferred: str = ""
    """A backend that is preferred to this one and not installed."""


class LoadAdmitted(Event, frozen=True, kw_only=True, rename=RESERVED_IN_JSON):
    """Memory is reserved for a load; its engine will be started."""

    TAG = "load_admitted"
    spec: EngineSpec
    reserved: int
    """Bytes reserved for all engines, this one included."""
    budget: int
    device_reserved: int = 0
    """The same two for its device, if it has one."""
    device_budget: int = 0
    refused_before: int = 0
    """Requests for the model that were refused since it was last loaded."""
    caller: Caller = Caller()
    """Who made the request."""
    placed: str = ""
    """Why the layers lie where they do, as a sentence."""


class LoadRefused(Event, frozen=True, kw_only=True):
    """Requests for a model are refused; stored when the reason first appears or changes."""

    TAG = "load_refused"
    PROBLEM = True
    model_id: str
    model_ref: str
    mode: Mode
    code: str
    message: str
    numbers: dict[str, float] = {}  # noqa: RUF012 - msgspec copies it for every instance
    count: int = 1
    advice: str = ""
    """What the client can do."""
    backends: tuple[str, ...] = ()
    """Backends that are not installed and could serve the model, the preferred one first."""
    caller: Caller = Caller()
    """Who made the request."""
    binding: str = ""
    """The backend that its path named: what this one was refused says nothing about other requests."""


class LoadFailed(Event, frozen=True, kw_only=True):
    """An engine that should run does not."""

    TAG = "load_failed"
    PROBLEM = True
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
    """An engine will be stopped; its memory is free once it has ended."""

    TAG = "eviction_decided"
    URGENT = True
    engine_id: str
    model_id: str
    model_ref: str
    backend: str
    reason: str
    """`idle`, `room`, `unload`, `retiring`, `superseded`, `reconfigured`, `removed`, `shutdown`,
    `larger_context`, `moved`."""
    in_favour_of: str = ""
    """The model that needs the room."""
    idle_seconds: float = 0.0
    memory: int = 0
    """Bytes it was reckoned to hold."""
    needed: int = 0
    free: int = 0
    device: str = ""
    """The device these three are about; empty for the machine."""
    footprint: int = 0
    """Bytes to reckon with the next time, by measurement; 0 when it was not measured well enough."""
    device_footprint: int = 0
    """The same of its device's memory."""
    installation_id: str = ""
    """Where it ran; empty when it was never ready."""
    on_devices: int = 0
    """Layers that are to lie on devices from now on, for `moved`; 0 for an engine that does not divide."""
    layers: int = 0
    """Of so many."""
    keep_alive: float | None = None
    """Seconds it was to stay after its last request, for `idle`; None in older events."""
    kept_by: str = ""
    """The request that had set that; empty where it is configured, or the default."""

    @property
    def is_urgent(self) -> bool:
        """Not to make room: the load it is for could not be stored."""
        return self.reason != "room"


class BreakerOpened(Event, frozen=True, kw_only=True):
    """Loads of a model keep failing on an installation; none is tried for a while."""

    TAG = "breaker_opened"
    PROBLEM = True
    model_id: str
    model_ref: str
    backend: str
    installation_id: str
    failures: int
    until: float
    reason: str


class BreakerClosed(Event, frozen=True, kw_only=True):
    """A model has run long enough: its failures no longer count."""

    TAG = "breaker_closed"
    model_id: str
    backend: str
    installation_id: str
    reason: str


class ModelQuarantined(Event, frozen=True, kw_only=True):
    """A model fails on an installation and has run on another of the same backend, which serves it again."""

    TAG = "model_quarantined"
    PROBLEM = True
    model_id: str
    model_ref: str
    backend: str
    installation_id: str
    """Where it fails."""
    version: str
    back_to: str
    """The installation it goes back to."""
    back_to_version: str
    failures: int
    reason: str
    """The last failure, as a sentence."""


class QuarantineLifted(Event, frozen=True, kw_only=True):
    """A model may be loaded on that installation again; its failures there no longer count."""

    TAG = "quarantine_lifted"
    model_id: str
    model_ref: str
    backend: str
    installation_id: str
    reason: str


class KeepAliveWished(Event, frozen=True, kw_only=True):
    """A request pinned a model (or unpinned it) by its keep-alive; other values are not stored."""

    TAG = "keep_alive_wished"
    engine_id: str
    model_id: str
    model_ref: str
    keep_alive: float
    """Seconds; negative pins the model."""


class ConfigChanged(Event, frozen=True, kw_only=True):
    """How a model is loaded from now on."""

    TAG = "config_changed"
    model_id: str
    model_ref: str
    mode: Mode
    context_size: int | None = None
    flags: tuple[str, ...] | None = None
    keep_alive: float | None = None
    """Seconds; negative pins the model."""
    slots: int | None = None
    """Requests at once; 0 lets the ledger decide."""
    prompt_cache: int | None = None
    """Bytes; negative lets the ledger decide."""
    require_device: bool | None = None
    """Load it only if it lies on graphics devices as a whole."""
    reset: tuple[str, ...] = ()
    """Fields that go back to their defaults, unless this event sets them."""
    caller: Caller = Caller()
    """Who asked."""
