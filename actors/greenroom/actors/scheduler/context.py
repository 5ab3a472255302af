"""What the steps of one scheduler turn share: the state they read, the decision they build."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import msgspec

from greenroom.actors.gates import GateReading
from greenroom.actors.kernel.clock import Moment
from greenroom.actors.kernel.core import Answer, Decision, Effect, Event, Fault, fault
from greenroom.actors.scheduler.ledger import PROVEN_BY, Account, Capacity, reckoned, reservation_for
from greenroom.actors.scheduler.state import (
    ModelConfigState,
    SchedulerState,
    SchedulerVolatile,
    Waiting,
    config_key,
)
from greenroom.actors.values import BackendFacts, Engine, EngineSpec, Measured, Mode


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What the operator has set, in seconds and requests."""

    keep_alive: float = 300.0
    max_wait: float = 300.0
    """For an engine to be ready."""
    max_queued: float = 3600.0
    """For a slot, while the queue does not move."""
    drain: float = 600.0
    """For the requests inside an engine that is ending."""
    queue: int = 256
    slots: int | None = None
    """Requests an engine takes at once; None leaves that to its backend."""
    prompt_cache: int | None = None
    """Bytes of prompts an engine keeps after their requests; None lets the ledger decide."""
    require_device: bool = False
    """Load no model that does not lie on graphics devices as a whole."""


class TurnContext:
    """One call of `settle`: mutable, short-lived, seen only by its steps."""

    def __init__(
        self,
        state: SchedulerState,
        now: Moment,
        volatile: SchedulerVolatile,
        facts: Sequence[BackendFacts],
        limits: Limits,
        *,
        storing: bool = True,
    ) -> None:
        """Without `storing` the steps do only what needs no event."""
        self.state = state
        self.now = now
        self.volatile = pruned(state, volatile)
        self.facts = facts
        self.limits = limits
        self.storing = storing
        self._queue = {one.request_id: one for one in volatile.queue}
        self.events: list[Event] = []
        self.effects: list[Effect] = []
        self.wakes: list[float] = []
        self.faults: list[Fault] = []
        self.granted: dict[str, int] = {}
        """engine → slots granted in this turn; the gates' readings do not show them yet."""
        self.cause = ""
        """The request or event that caused this turn's events."""

    def decision(self) -> Decision[SchedulerVolatile]:
        return Decision(
            events=tuple(self.events),
            effects=tuple(self.effects),
            volatile=msgspec.structs.replace(self.volatile, queue=self.queue),
            cause=self.cause if self.events else "",
            wake_at=min(self.wakes, default=None),
            faults=tuple(self.faults),
        )

    def guarded(self, step: Callable[[], None], *, doing: str, about: str = "") -> bool:
        """Run a part of the turn. If it raises, only this part is undone; False then."""
        volatile, queue, granted, cause = self.volatile, dict(self._queue), dict(self.granted), self.cause
        events, effects, wakes = len(self.events), len(self.effects), len(self.wakes)
        try:
            step()
        except Exception as error:  # noqa: BLE001 - whatever it is, the rest of the turn is not about it
            self.volatile, self._queue, self.granted, self.cause = volatile, queue, granted, cause
            del self.events[events:], self.effects[effects:], self.wakes[wakes:]
            self.faults.append(fault(error, doing=doing, about=about))
            return False
        return True

    # writing

    def record(self, *events: Event, cause: str) -> None:
        """Store events; the step that has them is the turn's last."""
        if self.storing:
            self.events += events
            self.cause = cause

    def update(self, **changes: object) -> None:
        self.volatile = msgspec.structs.replace(self.volatile, **changes)

    def answer(self, waiting: Waiting, outcome: object) -> None:
        """A request waits no longer."""
        del self._queue[waiting.request_id]
        self.effects.append(Answer(key=waiting.request_id, outcome=outcome))

    def change(self, waiting: Waiting, **changes: object) -> Waiting:
        """The request keeps its place in the queue."""
        changed = msgspec.structs.replace(waiting, **changes)
        self._queue[waiting.request_id] = changed
        return changed

    # reading

    @property
    def queue(self) -> tuple[Waiting, ...]:
        return tuple(self._queue.values())

    def wanted(self, spec: EngineSpec) -> bool:
        return any(fits(spec, waiting) for waiting in self._queue.values())

    def has_room(self, spec: EngineSpec, slots: int) -> bool:
        """Whether so many slots of an engine are free, less those granted in this turn."""
        given = self.granted.get(spec.engine_id, 0)
        reading = self.volatile.gates.get(spec.engine_id) or GateReading(True, 0, 0.0, 0, slots=spec.slots)
        return reading.has_room(slots, given)

    @property
    def silent(self) -> list[str]:
        """Backends whose runner has not sent its list in this life: the memory they hold is not known."""
        return [one.name for one in self.facts if one.name not in self.volatile.engines]

    def serving(self) -> Iterator[Engine]:
        """Engines that should run and are ready."""
        for engine_id in self.state.loads:
            engine = self.volatile.engine(engine_id)
            if engine is not None and engine.state == "ready":
                yield engine

    def forced(self, engine: Engine) -> bool:
        """True on an installation that is removed without waiting for requests."""
        status = (self.volatile.statuses or {}).get(engine.spec.backend)
        return status is not None and status.forced and engine.spec.installation_id in status.retiring

    def empty(self) -> Iterator[tuple[Engine, GateReading]]:
        """Serving engines without requests."""
        for engine in self.serving():
            reading = self.volatile.gates.get(engine.spec.engine_id)
            if reading is not None and not reading.inside and engine.spec.engine_id not in self.granted:
                yield engine, reading

    def requires_device(self, spec: EngineSpec) -> bool:
        """Whether the model may be loaded only if it lies on graphics devices as a whole."""
        configured = self.state.configs.get(config_key(spec.model_id, spec.mode), ModelConfigState())
        required = configured.require_device
        return self.limits.require_device if required is None else required

    def evictable(self, device: str) -> Iterator[tuple[Engine, GateReading, int]]:
        """Engines that may make room there, with the bytes they hold: ready, empty, neither pinned nor waited
        for.
        """
        for engine, reading in self.empty():
            held = holding(engine.spec, self.volatile, device)
            pinned = self.keep_alive(engine.spec.model_id, engine.spec.mode) < 0
            if held and not pinned and not self.wanted(engine.spec):
                yield engine, reading, held

    def leaving(self) -> list[Engine]:
        """Engines that are ending and not gone yet."""
        return [one for one in self.volatile.alive() if one.spec.engine_id not in self.state.loads]

    def coming(self, device: str) -> int:
        """Bytes that these still hold there."""
        return sum(holding(one.spec, self.volatile, device) for one in self.leaving())

    def keep_alive(self, model_id: str, mode: Mode) -> float:
        """Seconds a model stays after its last request: the last request's, the configured, the default."""
        key = config_key(model_id, mode)
        wished = self.volatile.keep_alive.get(key)
        if wished is not None:
            return wished
        if any(
            load.kept and config_key(load.spec.model_id, load.spec.mode) == key
            for load in self.state.loads.values()
        ):
            return -1.0
        configured = self.state.configs.get(key, ModelConfigState()).keep_alive
        return configured if configured is not None else self.limits.keep_alive

    def account(self, device: str = "") -> Account:
        """The ledger of the machine or of one device: loads in flight, running engines, and ending ones."""
        by_id = {load.spec.engine_id: load.spec for load in self.state.loads.values()}
        alive = {engine.spec.engine_id: engine for engine in self.volatile.alive()}
        loading = sum(
            share(spec, device)
            for one, spec in by_id.items()
            if one not in alive or alive[one].state == "starting"
        )
        for one, engine in alive.items():
            by_id.setdefault(one, engine.spec)
        pools = {one.id: one.memory for one in self.volatile.memory.devices}
        return Account(
            memory=pools[device] if device else self.volatile.memory,
            reserved=sum(holding(spec, self.volatile, device) for spec in by_id.values()),
            unclaimed=loading,
        )


def devices_of(spec: EngineSpec) -> tuple[str, ...]:
    """Ids of the devices whose memory an engine uses."""
    if spec.placement:
        return tuple(one.device for one in spec.reservations if one.device)
    return (spec.device,) if spec.device else ()


def share(spec: EngineSpec, device: str = "") -> int:
    """Bytes reserved for an engine there."""
    if not device:
        return spec.memory
    if spec.placement:
        return sum(one.total for one in spec.reservations if one.device == device)
    return spec.device_memory if spec.device == device else 0


def _peak(spec: EngineSpec, measured: Measured, device: str) -> int:
    """The most that an engine was measured to hold there."""
    if device:
        # Drivers tell what it holds on all devices together.
        reserved = sum(share(spec, one) for one in devices_of(spec))
        return measured.device_peak * share(spec, device) // reserved if reserved else 0
    # While it loads, it has all of the file in memory that it copies to devices.
    return measured.now if spec.placement and devices_of(spec) else measured.peak


def holding(spec: EngineSpec, volatile: SchedulerVolatile, device: str = "") -> int:
    """Bytes an engine or a load in flight counts for there: reserved, or measured where that is possible."""
    reservation, measured = share(spec, device), volatile.measured.get(spec.engine_id)
    if not reservation or measured is None or (device and measured.device is None):
        return reservation
    reading = volatile.gates.get(spec.engine_id)
    return reckoned(
        reservation,
        least(spec, volatile, device),
        _peak(spec, measured, device),
        reading.served if reading is not None else 0,
    )


def least(spec: EngineSpec, volatile: SchedulerVolatile, device: str = "") -> int:
    """Weights and cache, in bytes; the whole reservation while the model is not known."""
    if spec.device and not device and not spec.placement:
        return 0  # they are in the device
    for reservation in spec.reservations:
        if reservation.device == device:
            return reservation.claimable
    model = (volatile.models or {}).get(spec.model_id)
    if model is None:
        return share(spec, device)
    return reservation_for(model, spec.context_size, 0, Capacity(slots=spec.slots, batch=spec.batch)).total


def footprint(spec: EngineSpec, volatile: SchedulerVolatile, device: str = "") -> int:
    """What to reserve for the next engine of this kind, in bytes; 0 when this one was not measured enough."""
    measured, reading = volatile.measured.get(spec.engine_id), volatile.gates.get(spec.engine_id)
    if measured is None or (device and measured.device is None):
        return 0
    proven = reading is not None and reading.served >= PROVEN_BY
    peak = _peak(spec, measured, device)
    return holding(spec, volatile, device) if proven or peak > share(spec, device) else 0


def device_footprint(spec: EngineSpec, volatile: SchedulerVolatile) -> int:
    """The same of all its devices together, unless it has not loaded what was planned."""
    engine = volatile.engine(spec.engine_id)
    if engine is not None and engine.has_missed_layers:
        return 0
    return sum(footprint(spec, volatile, one) for one in devices_of(spec))


def pruned(state: SchedulerState, volatile: SchedulerVolatile) -> SchedulerVolatile:
    """Forget what belongs to engines that are gone, so that nothing grows over weeks."""
    loads = state.loads.keys()
    alive = {one.spec.engine_id for one in volatile.alive()}
    wanted = {config_key(load.spec.model_id, load.spec.mode) for load in state.loads.values()}
    wanted |= {config_key(one.model_id, one.mode) for one in volatile.queue}
    cooling = {f"{key}@{breaker.until}" for key, breaker in state.breakers.items()}
    return msgspec.structs.replace(
        volatile,
        met=volatile.met & loads,
        measured={one: size for one, size in volatile.measured.items() if one in alive or one in loads},
        begun={one: at for one, at in volatile.begun.items() if one in loads},
        start_sent={one: at for one, at in volatile.start_sent.items() if one in loads},
        leaving={one: at for one, at in volatile.leaving.items() if one in alive},
        forbid_sent={one: at for one, at in volatile.forbid_sent.items() if one in loads},
        stop_sent={one: at for one, at in volatile.stop_sent.items() if one in alive},
        # A request's keep-alive applies to the engine that served it, not to the next one.
        keep_alive={key: seconds for key, seconds in volatile.keep_alive.items() if key in wanted},
        ready_since={one: at for one, at in volatile.ready_since.items() if one in loads},
        cooling={name: at for name, at in volatile.cooling.items() if name in cooling},
    )


def fits(spec: EngineSpec, waiting: Waiting) -> bool:
    same = spec.model_id == waiting.model_id and spec.mode == waiting.mode
    return same and waiting.backend in ("", spec.backend)
