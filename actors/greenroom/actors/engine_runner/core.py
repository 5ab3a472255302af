"""A runner: the actor that owns the engines of one backend.

    starting → ready → stopping → gone

It knows pids, endpoints, readiness and how each engine ended. The scheduler makes the ids, so a repeated
command is harmless. After a restart the journal is not trusted: each engine is looked for, and is adopted,
has ended, or is lost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from greenroom.actors.engine_runner import events as runner_events
from greenroom.actors.engine_runner.effects import EndEngine, RecoverEngines, SpawnEngine
from greenroom.actors.engine_runner.events import (
    EngineAdopted,
    EngineExited,
    EngineLoaded,
    EngineLost,
    EngineReady,
    EngineSpawned,
    EngineStartRequested,
    EngineStopRequested,
)
from greenroom.actors.engine_runner.messages import (
    EngineList,
    EngineMeasured,
    EngineMoved,
    EngineStalled,
    ForbidStart,
    StartEngine,
    StopEngine,
    runner_address,
)
from greenroom.actors.installer.messages import INSTALLER
from greenroom.actors.kernel.clock import Moment
from greenroom.actors.kernel.core import (
    Command,
    Decision,
    Effect,
    Event,
    NotUnderstood,
    Recovered,
    SingleStream,
    Stored,
    Tell,
    events_of,
)
from greenroom.actors.reports import Happened
from greenroom.actors.scheduler.messages import SCHEDULER
from greenroom.actors.values import Engine, EngineExit, Failure, Measured, RequestSnapshot

_TELL_EVERY = 5.0
_GROWN = 32 * 2**20
"""Bytes by which an engine's peak must grow for its list to be sent at once."""
_REMEMBERED = 16
"""Ended engines that stay in the list, so that every receiver sees how they ended."""
_FORBIDDEN = 256
"""Far more than the loads in flight at a time: no engine is dropped whose start may still arrive."""
SILENT_START = 900.0
"""Seconds without progress after which this actor gives up a start whose host is silent."""
SILENT_STOP = 60.0
"""Seconds after which a stopping engine counts as lost; its host escalates its signals much sooner."""
SILENT_RECOVERY = 120.0
"""Seconds after which an engine of an earlier life that has not been found counts as lost."""
_SLEPT = 15.0
"""Seconds between two calls of `settle`, due every few seconds, that mean this process did not run."""
SECOND_LOOK = 30.0
"""Seconds for which a silence must continue once noticed: this actor may have been busy, with the reports
waiting in its mailbox."""


class RunnerState(msgspec.Struct, frozen=True, kw_only=True):
    engines: Mapping[str, Engine] = msgspec.field(default_factory=dict)
    """By id, oldest first; a bounded number of ended ones is kept."""
    forbidden: tuple[str, ...] = ()
    """The latest engines that must never start, although their start may still arrive."""
    version: int = 0


class RunnerVolatile(msgspec.Struct, frozen=True, kw_only=True):
    moved: Mapping[str, float] = msgspec.field(default_factory=dict)
    """engine → monotonic second of its last sign of progress."""
    overdue: Mapping[str, float] = msgspec.field(default_factory=dict)
    """engine → monotonic second at which its silence was noticed."""
    unsettled: frozenset[str] = frozenset()
    """Engines of an earlier life that have not been found yet."""
    early: frozenset[str] = frozenset()
    """Engines that were ready before their start could be stored, for example on a full disk."""
    installations: int = -1
    """Version of the installer's list that the scheduler had acted on when it last requested this list."""
    token: str = ""
    """Token of the last request that had one."""
    measured: Mapping[str, Measured] = msgspec.field(default_factory=dict)
    looked_at: float = 0.0
    """Monotonic second of the last `settle`."""
    told: int = -1
    told_at: float = 0.0


_Observed = EngineSpawned | EngineLoaded | EngineReady | EngineAdopted | EngineExited | EngineLost


class Runner(SingleStream[RunnerState]):
    event_types = events_of(runner_events)

    def __init__(self, backend: str) -> None:
        self.backend = backend
        self.address = runner_address(backend)

    def initial(self) -> RunnerState:
        return RunnerState()

    def initial_volatile(self) -> RunnerVolatile:
        return RunnerVolatile()

    def apply(self, state: RunnerState, stored: Stored[Any]) -> RunnerState:
        event = stored.event
        version = state.version + 1
        if isinstance(event, EngineStartRequested):
            spec = event.spec
            new = Engine(spec=spec, state="starting", since=stored.at, cause=stored.id)
            return replace(state, engines={**state.engines, spec.engine_id: new}, version=version)
        one = event.engine_id
        old = state.engines.get(one)
        if old is None:
            forbidden = state.forbidden
            if isinstance(event, EngineLost):
                forbidden = (*forbidden, one)[-_FORBIDDEN:]
            return replace(state, forbidden=forbidden, version=version)
        match event:
            case EngineSpawned() as e:
                new = replace(old, pid=e.pid, started=e.started, endpoint=e.endpoint)
            case EngineLoaded(loaded=loaded):
                new = replace(old, loaded=loaded)
            case EngineReady() if old.state == "starting":
                new = replace(old, state="ready", since=stored.at)
            case EngineAdopted() as e:
                new = replace(old, pid=e.pid, started=e.started, endpoint=e.endpoint)
                if old.state == "ready" and not e.ready:
                    new = replace(new, state="starting", since=stored.at)
            case EngineStopRequested() as e if old.state != "gone":
                fault = e.reason if e.fault else ""
                new = replace(old, state="stopping", since=stored.at, fault=fault, failure=e.failure)
            case EngineExited() as e:
                new = replace(old, state="gone", since=stored.at, exit=e.exit)
            case EngineLost() as e:
                lost = EngineExit(at=stored.at, summary=e.reason, expected=old.state == "stopping", lost=True)
                new = replace(old, state="gone", since=stored.at, exit=lost)
            case _:
                new = old
        engines = {**state.engines, one: new}
        # Only when one has just ended: a replay folds hundreds of thousands of events.
        if new.state == "gone" and old.state != "gone":
            engines = _apply_bound(engines)
        return replace(state, engines=engines, version=version)

    def decide(
        self, state: RunnerState, command: Command[Any], now: Moment, volatile: RunnerVolatile
    ) -> Decision[RunnerVolatile]:
        """An engine may be forbidden before its start arrives, which a full disk or a busy mailbox may delay:
        once the list says that it will never start, its memory is reserved for others.

        Reports on engines that have ended or are unknown are dropped, but a process that runs without an
        intent is ended.
        """
        match command:
            case StartEngine(spec=spec):
                if spec.engine_id in state.engines or spec.engine_id in state.forbidden:
                    return Decision()
                return Decision(
                    events=(EngineStartRequested(spec=spec),), volatile=_moved(volatile, spec.engine_id, now)
                )
            case StopEngine(engine_id=one, reason=reason):
                engine = state.engines.get(one)
                if engine is None or engine.state == "gone":
                    return Decision(volatile=replace(volatile, told=-1))
                if engine.state == "stopping":
                    return Decision(effects=(self._ending(one, reason),))
                return Decision(
                    events=(EngineStopRequested(engine_id=one, reason=reason),),
                    volatile=_moved(volatile, one, now),
                )
            case ForbidStart(engine_id=one):
                if one in state.engines or one in state.forbidden:
                    return Decision(volatile=replace(volatile, told=-1))
                return Decision(events=(EngineLost(engine_id=one, reason="it was never started"),))
            case RequestSnapshot() as ask:
                return Decision(
                    volatile=replace(
                        volatile,
                        told=-1,
                        installations=max(volatile.installations, ask.installations),
                        token=ask.token or volatile.token,
                    )
                )
            case Recovered():
                left = tuple(one for one in state.engines.values() if one.state != "gone")
                ids = frozenset(one.spec.engine_id for one in left)
                return Decision(
                    effects=(RecoverEngines(backend=self.backend, engines=left),),
                    volatile=replace(volatile, unsettled=ids, moved=dict.fromkeys(ids, now.monotonic)),
                )
            case EngineMoved(engine_id=one):
                # Its host manages it: it need not be looked for.
                return Decision(volatile=_settled(_moved(volatile, one, now), one))
            case EngineStalled(engine_id=one, failure=failure):
                engine = state.engines.get(one)
                if engine is None or engine.state not in ("starting", "ready"):
                    return Decision()
                reason = failure.message.removesuffix(".")
                stalled = EngineStopRequested(
                    engine_id=one, reason=reason, fault=True, failure=_given_up(engine, failure)
                )
                return Decision(events=(stalled,), cause=engine.cause, volatile=_moved(volatile, one, now))
            case EngineMeasured():
                return Decision(volatile=_measured(volatile, command))
            case Happened(
                event=EngineSpawned()
                | EngineLoaded()
                | EngineReady()
                | EngineAdopted()
                | EngineExited()
                | EngineLost() as event
            ):
                return self._happened(state, event, now, volatile)
            case _:
                raise NotUnderstood(self.address, command)

    def _happened(
        self, state: RunnerState, event: _Observed, now: Moment, volatile: RunnerVolatile
    ) -> Decision[RunnerVolatile]:
        one = event.engine_id
        engine = state.engines.get(one)
        if engine is None or engine.state == "gone":
            if isinstance(event, (EngineSpawned, EngineLoaded, EngineAdopted, EngineReady)):
                return Decision(effects=(self._ending(one, "it is no longer needed"),))
            return Decision()
        starting = engine.state == "starting"
        events: tuple[Event, ...] = (event,)
        volatile = _moved(volatile, one, now)
        match event:
            case EngineLoaded(loaded=loaded) if loaded == engine.loaded:
                return Decision(volatile=volatile)
            case EngineReady() if starting and not engine.endpoint:
                # On a full disk reports are retried, so they may arrive out of order. Without an endpoint no
                # request can enter.
                early = replace(volatile, early=volatile.early | {one})
                return Decision(volatile=early, cause=engine.cause)
            case EngineReady():
                events = (_ready(engine, now),) if starting else ()
                return Decision(events=events, cause=engine.cause, volatile=volatile)
            case EngineSpawned() if starting and one in volatile.early:
                events = (event, _ready(engine, now))
            case EngineAdopted(ready=True) if starting:
                events = (event, EngineReady(engine_id=one))
            case EngineExited(exit=end) if engine.fault:
                # We stopped it, but because it did not work.
                summary = f"The engine was stopped: {engine.fault}."
                end = replace(end, expected=False, summary=summary, failure=engine.failure)
                events = (EngineExited(engine_id=one, exit=end),)
        return Decision(events=events, cause=engine.cause, volatile=_settled(volatile, one))

    def _ending(self, engine_id: str, reason: str) -> EndEngine:
        return EndEngine(backend=self.backend, engine_id=engine_id, reason=reason)

    def react(self, state: RunnerState, stored: Stored[Any]) -> Sequence[Effect]:
        match stored.event:
            case EngineStartRequested(spec=spec):
                return (SpawnEngine(spec=spec),)
            case EngineStopRequested(engine_id=one, reason=reason) if one in state.engines:
                return (self._ending(one, reason),)
            case _:
                return ()

    def settle(self, state: RunnerState, now: Moment, volatile: RunnerVolatile) -> Decision[RunnerVolatile]:
        """What follows from the state as it stands.

        1. Stop an engine whose start has shown no progress for very long.
        2. Count an engine as lost if it is stopping, or from an earlier life, and silent for too long.
        3. After a change, and every few seconds, send the list, once engines of an earlier life are settled.

        4. If this actor did not run for a while (its process was stopped, the machine slept), end no engine
           for its silence yet: reports that arrived meanwhile come first.

        A silence counts only when noticed twice; the first time, the host is asked to end the engine.
        """
        events: list[Event] = []
        effects: list[Effect] = []
        wakes: list[float] = []
        overdue: dict[str, float] = {}
        slept = 0.0 < volatile.looked_at < now.monotonic - _SLEPT  # 4
        moved = dict(volatile.moved)
        before = volatile.unsettled & {one for one, engine in state.engines.items() if engine.state != "gone"}
        unsettled = set(before)
        for one, engine in state.engines.items():
            if engine.state == "gone" or (engine.state == "ready" and one not in unsettled):
                continue
            since = moved.setdefault(one, now.monotonic)
            if one in unsettled:
                limit = SILENT_RECOVERY
            else:
                limit = SILENT_START if engine.state == "starting" else SILENT_STOP
            if now.monotonic - since < limit:
                wakes.append(since + limit)
                continue
            starting = engine.state == "starting" and one not in unsettled
            if slept and not starting and one not in volatile.overdue:
                wakes.append(now.monotonic + 1.0)
                continue
            noticed = overdue[one] = volatile.overdue.get(one, now.monotonic)
            if noticed == now.monotonic and not starting:
                effects.append(self._ending(one, "nothing is heard of it"))
            if now.monotonic - noticed < SECOND_LOOK:
                wakes.append(noticed + SECOND_LOOK)
            elif starting:  # 1
                reason = f"no sign of progress for {limit:.0f}s while starting"
                events.append(EngineStopRequested(engine_id=one, reason=reason, fault=True))
                moved[one] = now.monotonic
                del overdue[one]
            else:  # 2
                reason = "it could not be found" if one in unsettled else ""
                lost = reason or "it did not report that it stopped"
                events.append(EngineLost(engine_id=one, reason=lost))
                unsettled.discard(one)
        changing = {one for one, engine in state.engines.items() if engine.state in ("starting", "stopping")}
        volatile = replace(
            volatile,
            moved={one: at for one, at in moved.items() if one in changing | unsettled},
            early=volatile.early & changing,
            overdue=overdue,
            looked_at=now.monotonic,
            unsettled=frozenset(unsettled),
            measured={one: size for one, size in volatile.measured.items() if _is_alive(state, one)},
        )
        decision = Decision(
            events=tuple(events), effects=tuple(effects), volatile=volatile, wake_at=min(wakes, default=None)
        )
        stale = volatile.told != state.version or now.monotonic - volatile.told_at >= _TELL_EVERY
        if not stale or before:
            return decision
        whole = replace(  # 3
            self.list_of(state), installations=volatile.installations, measured=volatile.measured
        )
        whole = replace(whole, token=volatile.token)
        telling = Decision(
            effects=(*decision.effects, Tell(command=whole, to=SCHEDULER), Tell(command=whole, to=INSTALLER)),
            volatile=replace(volatile, told=state.version, told_at=now.monotonic),
            wake_at=decision.wake_at,
        )
        return replace(decision, if_not_stored=telling) if events else telling

    def list_of(self, state: RunnerState) -> EngineList:
        return EngineList(
            backend=self.backend,
            engines=tuple(state.engines.values()),
            forbidden=state.forbidden,
            version=state.version,
        )


def _ready(engine: Engine, now: Moment) -> EngineReady:
    return EngineReady(engine_id=engine.spec.engine_id, seconds=max(0.0, now.wall - engine.since))


def _given_up(engine: Engine, failure: Failure) -> Failure:
    """The failure as the client sees it: names the engine, and says where its output is."""
    spec, reason = engine.spec, failure.message.removesuffix(".")
    return replace(
        failure,
        message=f"The {spec.backend} engine for {spec.model_ref} was stopped: {reason}.",
        advice=failure.advice or f"`greenroom logs {spec.engine_id}` shows its output.",
    )


def _is_alive(state: RunnerState, engine_id: str) -> bool:
    engine = state.engines.get(engine_id)
    return engine is not None and engine.state != "gone"


def _measured(volatile: RunnerVolatile, report: EngineMeasured) -> RunnerVolatile:
    """Note a measurement; the first one, and a peak that has grown a lot, are sent at once."""
    one, size = report.engine_id, report.size
    before = volatile.measured.get(one)
    is_news = before is None or (
        max(size.peak - before.peak, size.device_peak - before.device_peak) >= _GROWN
    )
    told = -1 if is_news else volatile.told
    return replace(volatile, measured={**volatile.measured, one: size}, told=told)


def _moved(volatile: RunnerVolatile, engine_id: str, now: Moment) -> RunnerVolatile:
    return replace(volatile, moved={**volatile.moved, engine_id: now.monotonic})


def _settled(volatile: RunnerVolatile, engine_id: str) -> RunnerVolatile:
    return replace(volatile, unsettled=volatile.unsettled - {engine_id})


def _apply_bound(engines: dict[str, Engine]) -> dict[str, Engine]:
    gone = [one for one, engine in engines.items() if engine.state == "gone"]
    for one in gone[: max(0, len(gone) - _REMEMBERED)]:
        del engines[one]
    return engines
