"""What follows from the scheduler's state at one moment: the numbered steps of `settle`.

1. Loads whose engines have ended, were given up, or never will start, have failed.
2. Engines that are ready get an open gate; gates of engines that are gone are removed.
3. Each waiting request: a ready engine, a load to wait for, a new load, an installation to wait for, or a
   refusal that says why. See `scheduler_queue`.
4. All engines when the daemon stops, engines of installations that retire, and idle engines past their
   keep-alive shall end.
5. Engines that shall end and have drained are told to.
6. Breakers of models that have been running well for a while are closed.
7. Owners who have not told their list in this life are asked for it; runners are told of the installer's
   list that has been acted on, so that what retires can be removed.
8. A daemon that stops and has no engines left is told so.
9. Whoever waits for the daemon to be ready is told once every owner has told his list.
10. Quarantines whose reason is gone are lifted.
11. A request's wish that makes a model stay for ever, or ends that, is stored: a restart keeps to it.

A step that has events ends the turn: the next one sees them applied. Should they not be storable, the same
steps are gone through without events, so that ready engines go on serving and whoever waits hears why.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import msgspec

from greenroom.actors.bounded_maps import without
from greenroom.actors.engine_runner.messages import ForbidStart, StartEngine, StopEngine, runner_address
from greenroom.actors.gates import GateReading
from greenroom.actors.installer.messages import INSTALLER
from greenroom.actors.kernel.clock import Moment
from greenroom.actors.kernel.core import Answer, Decision, Tell
from greenroom.actors.library.messages import LIBRARY, NoteDamage
from greenroom.actors.progress import load_job
from greenroom.actors.scheduler.context import Limits, TurnContext, eviction, footprint
from greenroom.actors.scheduler.effects import CloseGate, OpenGate, RemoveGates
from greenroom.actors.scheduler.errors import failure_of, load_failed, never_started, undecided
from greenroom.actors.scheduler.events import BreakerClosed, BreakerOpened, KeepAliveWished, LoadFailed
from greenroom.actors.scheduler.messages import Ready, Unloaded
from greenroom.actors.scheduler.quarantine import broken_by_version, cleared_by, is_telling, outlived
from greenroom.actors.scheduler.queue import AGAIN, FAILURES_TO_OPEN, LONGEST_COOL_DOWN, QueueStep, cool_down
from greenroom.actors.scheduler.setbacks import SPARED, setback_key, setbacks_after
from greenroom.actors.scheduler.state import (
    NOT_THE_MODELS_FAULT,
    BreakerState,
    LoadState,
    SchedulerState,
    SchedulerVolatile,
    breaker_key,
    config_key,
    counts_against_model,
    failures_with,
)
from greenroom.actors.values import BackendFacts, Engine, EngineSpec, Failure, RequestSnapshot

DRAINED = "drained"
"""Under which whoever stops the daemon waits."""
READY = "ready"
"""Under which whoever starts the daemon waits."""
_NEVER_TAKEN_AFTER = 60.0
"""Seconds after which a runner that has never told of a start is told not to start it any more."""
_WISHES_STORED = 16
"""Changes stored for one engine: a client that keeps changing its mind must not fill the journal."""
PROVEN_AFTER = 30.0
"""Seconds of being ready after which a model counts as running well, if its load took no longer than that.
Answers alone prove nothing: one that dies after each of them would be loaded for every request, for ever."""


def take_turn(
    state: SchedulerState,
    now: Moment,
    volatile: SchedulerVolatile,
    facts: Sequence[BackendFacts],
    limits: Limits,
) -> Decision[SchedulerVolatile]:
    decision = Turn(TurnContext(state, now, volatile, facts, limits)).take()
    if not decision.events:
        return decision
    without = Turn(TurnContext(state, now, volatile, facts, limits, storing=False)).take()
    return msgspec.structs.replace(decision, if_not_stored=without)


class Turn:
    """The steps; what they collect is in the context."""

    def __init__(self, context: TurnContext) -> None:
        self._turn = context

    def take(self) -> Decision[SchedulerVolatile]:
        for step in (
            self._note_ends,
            self._tend_gates,
            QueueStep(self._turn).take,
            self._evict,
            self._stop_leaving,
            self._close_breakers,
            self._request_snapshots,
            self._report_drained,
            self._report_ready,
            self._lift_quarantines,
            self._store_wishes,
        ):
            self._turn.guarded(step, doing=f"schedule ({step.__name__.strip('_')})")
            if self._turn.events:
                break
        return self._turn.decision()

    # 1

    def _note_ends(self) -> None:
        """Of each load whose runner has told his list:

        a. Its engine has ended or was given up: it has failed.
        b. Its runner says that it never will start: it has failed.
        c. It is not in the list, and was asked for in this life not long ago: its start is told again.
        d. It is not in the list otherwise: its runner is told not to start it any more, until a or b. Before
           that its start may still be on its way, and its memory remains promised.
        """
        turn = self._turn
        for engine_id, load in turn.state.loads.items():
            if load.spec.backend in turn.volatile.engines and not turn.guarded(
                partial(self._note_end, load), doing="follow a load", about=engine_id
            ):
                self._drop(load)
            if turn.events:
                return

    def _note_end(self, load: LoadState) -> None:
        volatile, engine_id = self._turn.volatile, load.spec.engine_id
        engine = volatile.engine(engine_id)
        if engine is not None:
            if engine.state == "gone" or (engine.state == "stopping" and engine.fault):  # a
                self._fail(load, failure_of(engine))
        elif engine_id in volatile.forbidden.get(load.spec.backend, ()):  # b
            self._fail(load, never_started(load.spec))
        elif self._is_on_its_way(engine_id):  # c
            self._tell_to_start(load)
        else:  # d
            self._tell_never_to_start(load)

    def _drop(self, load: LoadState) -> None:
        """Nothing can be decided about this load: it has failed, by no fault of its model."""
        spec = load.spec
        failed = LoadFailed(
            engine_id=spec.engine_id,
            model_id=spec.model_id,
            model_ref=spec.model_ref,
            backend=spec.backend,
            installation_id=spec.installation_id,
            failure=Failure(
                kind="permanent",
                code="internal_error",
                message="Greenroom failed on this load.",
                blame="ours",
            ),
        )
        self._turn.record(failed, cause=load.cause)
        for waiting in [one for one in self._turn.queue if one.follows == load_job(spec.engine_id)]:
            self._turn.answer(waiting, undecided(waiting))

    def _is_on_its_way(self, engine_id: str) -> bool:
        volatile, now = self._turn.volatile, self._turn.now.monotonic
        begun = volatile.begun.get(engine_id)
        return begun is not None and engine_id not in volatile.met and now - begun < _NEVER_TAKEN_AFTER

    def _tell_to_start(self, load: LoadState) -> None:
        turn, one, now = self._turn, load.spec.engine_id, self._turn.now.monotonic
        if now - turn.volatile.start_told.get(one, turn.volatile.begun[one]) >= AGAIN:
            turn.effects.append(Tell(command=StartEngine(spec=load.spec), cause=load.cause))
            turn.update(start_told={**turn.volatile.start_told, one: now})

    def _tell_never_to_start(self, load: LoadState) -> None:
        turn, one, now = self._turn, load.spec.engine_id, self._turn.now.monotonic
        told = turn.volatile.bar_told.get(one)
        if told is None or now - told >= AGAIN:
            forbid = ForbidStart(backend=load.spec.backend, engine_id=one)
            turn.effects.append(Tell(command=forbid, cause=load.cause))
            turn.update(bar_told={**turn.volatile.bar_told, one: now})

    def _fail(self, load: LoadState, failure: Failure) -> None:
        turn, spec = self._turn, load.spec
        failed = LoadFailed(
            engine_id=spec.engine_id,
            model_id=spec.model_id,
            model_ref=spec.model_ref,
            backend=spec.backend,
            installation_id=spec.installation_id,
            failure=failure,
            was_ready=spec.engine_id in turn.volatile.gates,
            footprint=footprint(spec, turn.volatile),
            device_footprint=footprint(spec, turn.volatile, spec.device) if spec.device else 0,
        )
        turn.record(failed, cause=load.cause)
        if failure.code == "model_damaged":
            # It is here no more: whoever asks for it again has it fetched anew.
            damage = NoteDamage(model_id=spec.model_id, reason=failure.message)
            turn.effects.append(Tell(command=damage, cause=load.cause))
        if failure.code in NOT_THE_MODELS_FAULT:
            # Whoever waited for it waits on: the next step finds it another engine. But where every engine is
            # lost as it starts, each would be followed by the next at once, as long as anybody waits.
            if not failed.was_ready:
                now = turn.now.monotonic
                turn.update(
                    setbacks=setbacks_after(turn.volatile.setbacks, spec, failure, now, spared=SPARED)
                )
            return
        if not counts_against_model(failure):
            setbacks = setbacks_after(turn.volatile.setbacks, spec, failure, turn.now.monotonic)
            if not failed.was_ready:
                turn.update(setbacks=setbacks)
            self._answer_waiting(spec, failure, retry_after=setbacks[setback_key(spec)].pause)
            return
        key = breaker_key(spec.model_id, spec.backend, spec.installation_id)
        failures = failures_with(turn.state.breakers.get(key, BreakerState()), load)
        away = broken_by_version(spec, failures, failure.message, turn.state, turn.volatile.statuses or {})
        if failures >= FAILURES_TO_OPEN:
            opened = BreakerOpened(
                model_id=spec.model_id,
                model_ref=spec.model_ref,
                backend=spec.backend,
                installation_id=spec.installation_id,
                failures=failures,
                until=turn.now.wall + cool_down(failures),
                reason=failure.message,
            )
            cleared = tuple(cleared_by(spec, failures, turn.state))
            turn.record(opened, *cleared, cause=load.cause)
            away = None if cleared else away
        elif failed.was_ready or not is_telling(turn.volatile.engine(spec.engine_id), failure):
            away = None
        if away is not None:
            # Whoever waited for it waits on: the next step has the older installation serve it.
            turn.record(away, cause=load.cause)
            return
        self._answer_waiting(spec, failure)

    def _answer_waiting(self, spec: EngineSpec, failure: Failure, *, retry_after: float = 0.0) -> None:
        outcome = load_failed(spec, failure, retry_after)
        follows = load_job(spec.engine_id)
        for waiting in self._turn.queue:
            if waiting.follows == follows:
                self._turn.answer(waiting, outcome)

    # 2

    def _tend_gates(self) -> None:
        turn, gates = self._turn, self._turn.volatile.gates
        alive = tuple(engine.spec.engine_id for engine in turn.volatile.alive())
        if not turn.silent and any(engine_id not in alive for engine_id in gates):
            turn.effects.append(RemoveGates(keep=alive))
        for engine in turn.serving():
            reading = gates.get(engine.spec.engine_id)
            if reading is None or not reading.open:
                # What failed before does not count any more.
                turn.update(setbacks=without(turn.volatile.setbacks, setback_key(engine.spec)))
                turn.effects.append(
                    OpenGate(
                        engine_id=engine.spec.engine_id,
                        model_id=engine.spec.model_id,
                        mode=engine.spec.mode,
                        backend=engine.spec.backend,
                        endpoint=engine.endpoint,
                        slots=engine.spec.slots,
                    )
                )

    # 4

    def _evict(self) -> None:
        turn, volatile = self._turn, self._turn.volatile
        retiring = {
            (name, one) for name, status in (volatile.statuses or {}).items() for one in status.retiring
        }
        for load in turn.state.loads.values():
            reason = "retiring" if (load.spec.backend, load.spec.installation_id) in retiring else ""
            if volatile.draining or reason:
                ended = partial(self._end, load, "shutdown" if volatile.draining else reason)
                turn.guarded(ended, doing="end an engine", about=load.spec.engine_id)
        if turn.events:
            return
        for engine, reading in turn.empty():
            rest = partial(self._end_idle, engine, reading)
            turn.guarded(rest, doing="end an idle engine", about=engine.spec.engine_id)

    def _end(self, load: LoadState, reason: str) -> None:
        turn, engine = self._turn, self._turn.volatile.engine(load.spec.engine_id)
        # Until its runner has told of it, nobody could tell when it is gone.
        if engine is not None:
            turn.record(eviction(engine, turn.volatile, turn.now, reason), cause=load.cause)

    def _end_idle(self, engine: Engine, reading: GateReading) -> None:
        turn, spec = self._turn, engine.spec
        keep = turn.keep_alive(spec.model_id, spec.mode)
        if keep < 0 or not reading.open or turn.wanted(spec):
            return
        ends = reading.idle_since + keep
        if ends <= turn.now.monotonic:
            cause = turn.state.loads[spec.engine_id].cause
            turn.record(eviction(engine, turn.volatile, turn.now, "idle"), cause=cause)
        else:
            turn.wakes.append(ends)

    # 5

    def _stop_leaving(self) -> None:
        turn, volatile, now = self._turn, self._turn.volatile, self._turn.now.monotonic
        leaving: dict[str, float] = {}
        stop_told: dict[str, float] = {}
        for engine in volatile.alive():
            one = engine.spec.engine_id
            if one in turn.state.loads:
                continue
            since = leaving[one] = volatile.leaving.get(one, now)
            reading = volatile.gates.get(one)
            if reading is not None and reading.open:
                turn.effects.append(CloseGate(engine_id=one))
                # Whoever has entered since this reading is seen by the next look, once the gate is closed.
                turn.wakes.append(now)
            drained = reading is None or (not reading.open and not reading.inside)
            overdue = now - since >= turn.limits.drain or turn.forced(engine)
            told = volatile.stop_told.get(one)
            if (drained or overdue) and (told is None or now - told >= AGAIN):
                reason = "it is no longer needed" if drained else "its requests did not finish in time"
                if not drained and turn.forced(engine):
                    reason = "its backend is being uninstalled with --force"
                stop = StopEngine(backend=engine.spec.backend, engine_id=one, reason=reason)
                turn.effects.append(Tell(command=stop, cause=turn.state.ended.get(one, "")))
                stop_told[one] = now
            elif told is not None:
                stop_told[one] = told
            if not drained and not overdue:
                turn.wakes.append(since + turn.limits.drain)
        turn.update(leaving=leaving, stop_told=stop_told)

    # 6

    def _close_breakers(self) -> None:
        turn = self._turn
        for engine in turn.serving():
            spec = engine.spec
            key = breaker_key(spec.model_id, spec.backend, spec.installation_id)
            if key not in turn.state.breakers:
                continue
            load = turn.state.loads[spec.engine_id]
            loading = min(engine.since - load.admitted_at, LONGEST_COOL_DOWN)
            since = turn.volatile.ready_since.get(spec.engine_id, turn.now.monotonic)
            if turn.now.monotonic - since >= max(PROVEN_AFTER, loading):
                closed = BreakerClosed(
                    model_id=spec.model_id,
                    backend=spec.backend,
                    installation_id=spec.installation_id,
                    reason="it has been running long enough",
                )
                turn.record(closed, cause=load.cause)
                return

    # 7

    def _request_snapshots(self) -> None:
        turn, now = self._turn, self._turn.now.monotonic
        missing = [runner_address(name) for name in turn.silent]
        missing += [INSTALLER] if turn.volatile.statuses is None else []
        missing += [LIBRARY] if turn.volatile.models is None else []
        if missing and now - turn.volatile.called_at >= AGAIN:
            ask = RequestSnapshot(token=turn.volatile.life)
            turn.effects += [Tell(to=to, command=ask) for to in missing]
            turn.update(called_at=now)
        retiring = {
            name: one.retiring for name, one in (turn.volatile.statuses or {}).items() if one.retiring
        }
        if not retiring:
            return
        # A load whose installation retires keeps the list from having been acted on.
        specs = [load.spec for load in turn.state.loads.values()]
        if any(spec.installation_id in retiring.get(spec.backend, ()) for spec in specs):
            return
        version, told_at = turn.volatile.acted_on
        if version == turn.volatile.statuses_version and now - told_at < AGAIN:
            return
        ask = RequestSnapshot(installations=turn.volatile.statuses_version)
        turn.effects += [Tell(to=runner_address(name), command=ask) for name in retiring]
        turn.update(acted_on=(turn.volatile.statuses_version, now))

    # 8

    def _report_drained(self) -> None:
        turn = self._turn
        if turn.volatile.draining and not (turn.state.loads or turn.volatile.alive() or turn.silent):
            turn.effects.append(Answer(key=DRAINED, outcome=Unloaded(engines=0)))

    # 9

    def _report_ready(self) -> None:
        turn, volatile = self._turn, self._turn.volatile
        heard = volatile.statuses is not None and volatile.models is not None
        if heard and all(one.name in volatile.engines for one in turn.facts):
            turn.effects.append(Answer(key=READY, outcome=Ready()))

    # 10

    def _lift_quarantines(self) -> None:
        turn, statuses = self._turn, self._turn.volatile.statuses
        if statuses is None:
            return
        for one in outlived(turn.state, statuses, turn.volatile.in_use):
            turn.record(one, cause="")
        if not turn.events:
            in_use = {name: one.current.id for name, one in statuses.items() if one.current is not None}
            turn.update(in_use={**turn.volatile.in_use, **in_use})

    # 11

    def _store_wishes(self) -> None:
        turn = self._turn
        for engine_id, load in turn.state.loads.items():
            spec = load.spec
            wished = turn.volatile.keep_alive.get(config_key(spec.model_id, spec.mode))
            if wished is None or (wished < 0) == load.kept or load.wishes >= _WISHES_STORED:
                continue
            event = KeepAliveWished(
                engine_id=engine_id, model_id=spec.model_id, model_ref=spec.model_ref, keep_alive=wished
            )
            turn.record(event, cause=load.cause)
            return


__all__ = ["DRAINED", "PROVEN_AFTER", "Limits", "Turn", "eviction", "take_turn"]
