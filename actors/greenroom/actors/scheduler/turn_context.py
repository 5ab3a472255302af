"""What the steps of one scheduler turn share: the state they read, the decision they build."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import msgspec

from greenroom.actors.gates import GateReading
from greenroom.actors.kernel.clock import Moment
from greenroom.actors.kernel.core import Answer, Decision, Effect, Event, Fault, fault
from greenroom.actors.scheduler.holdings import holding, share
from greenroom.actors.scheduler.ledger import Account
from greenroom.actors.scheduler.state import (
    ModelConfigState,
    SchedulerState,
    SchedulerVolatile,
    Waiting,
    config_key,
    fits,
    pruned,
)
from greenroom.actors.values import BackendFacts, Engine, EngineSpec, Mode


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
    remotes: Mapping[str, Engine] = {}
    """Remote backends, by name: engines that are always ready, so only their slots are assigned."""


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

    def pinned(self, device: str) -> int:
        """Bytes that no load can get there."""
        return sum(
            holding(load.spec, self.volatile, device)
            for load in self.state.loads.values()
            if self.keep_alive(load.spec.model_id, load.spec.mode) < 0
        )

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
