"""What follows from the scheduler's state at one moment: the numbered steps of `settle`.

1. A load has failed when its engine has ended, was given up, or will never start.
2. Ready engines get an open gate; gates of engines that are gone are removed.
3. Each queued request gets a ready engine, a load or an installation to wait for, a new load, or a refusal.
   See `queue`.
4. Engines end when the daemon stops, when their installation retires, when idle past their keep-alive, and
   idle ones of a variant that is no longer in use, or of which more would lie on devices now (see `moving`).
5. Ending engines that have drained are stopped.
6. Breakers of models that have run well for a while are closed.
7. Owners that have not sent their list in this life are asked for it. Runners learn which of the installer's
   lists was acted on, so that retiring installations can be removed.
8. `Drain` is answered when no engine is left.
9. `AwaitReady` is answered when every owner has sent its list.
10. Quarantines that have lost their reason are lifted.
11. A request's keep-alive that pins a model, or unpins it, is stored, so that it survives a restart.

A step that has events ends the turn: the next one sees them applied. If they cannot be stored, the same steps
run without events, so that ready engines go on serving and queued requests learn the reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import msgspec

from greenroom.actors.bounded_maps import without
from greenroom.actors.engine_runner.messages import ForbidStart, StartEngine, StopEngine, runner_address
from greenroom.actors.gates import GateReading
from greenroom.actors.installer.messages import INSTALLER
from greenroom.actors.kernel.clock import Moment
from greenroom.actors.kernel.core import Answer, Decision, Tell
from greenroom.actors.library.messages import LIBRARY, NoteDamage
from greenroom.actors.progress import load_job
from greenroom.actors.scheduler.backend_choice import is_superseded
from greenroom.actors.scheduler.effects import CloseGate, OpenGate, RemoveGates
from greenroom.actors.scheduler.errors import failure_of, layers_missed, load_failed, never_started, undecided
from greenroom.actors.scheduler.events import BreakerClosed, BreakerOpened, KeepAliveWished, LoadFailed
from greenroom.actors.scheduler.eviction import eviction
from greenroom.actors.scheduler.holdings import device_footprint, footprint
from greenroom.actors.scheduler.messages import Ready, Unloaded
from greenroom.actors.scheduler.moving import better_place, move
from greenroom.actors.scheduler.quarantine import (
    FAILURES_TO_OPEN,
    LONGEST_COOL_DOWN,
    SPARED,
    broken_by_variant,
    broken_by_version,
    cleared_by,
    cool_down,
    is_telling,
    lifted,
    setbacks_after,
    why_lifted,
)
from greenroom.actors.scheduler.queue import AGAIN, QueueStep
from greenroom.actors.scheduler.state import (
    NO_DEVICE_MEMORY,
    NOT_THE_MODELS_FAULT,
    BreakerState,
    LoadState,
    SchedulerState,
    SchedulerVolatile,
    breaker_of,
    config_key,
    counts_against_model,
    failures_with,
)
from greenroom.actors.scheduler.turn_context import Limits, TurnContext
from greenroom.actors.values import BackendFacts, Engine, EngineSpec, Failure, RequestSnapshot

DRAINED = "drained"
"""Key of the answer to `Drain`."""
READY = "ready"
"""Key of the answer to `AwaitReady`."""
_NEVER_TAKEN_AFTER = 60.0
"""Seconds after which a start that its runner has not listed is forbidden."""
_WISHES_STORED = 16
"""Changes stored for one engine: a client that keeps alternating must not fill the journal."""
_FEWER = 8
"""Loads in a row with fewer layers each, for lack of a device's memory, before the next one has to wait."""
PROVEN_AFTER = 30.0
"""Seconds of being ready after which a model counts as running well, if its load took no longer than that.
Answers alone prove nothing: a model that dies after each of them would be loaded for every request."""


def take_turn(
    state: SchedulerState,
    now: Moment,
    volatile: SchedulerVolatile,
    facts: Sequence[BackendFacts],
    limits: Limits,
) -> Decision[SchedulerVolatile]:
    decision = Turn(state, now, volatile, facts, limits).take()
    if not decision.events:
        return decision
    without = Turn(state, now, volatile, facts, limits, storing=False).take()
    return msgspec.structs.replace(decision, if_not_stored=without)


class Turn(TurnContext):
    def take(self) -> Decision[SchedulerVolatile]:
        for step in (
            self._note_ends,
            self._tend_gates,
            QueueStep(self).take,
            self._end_due,
            self._stop_leaving,
            self._close_breakers,
            self._request_snapshots,
            self._report_drained,
            self._report_ready,
            self._lift_quarantines,
            self._store_wishes,
        ):
            self.guarded(step, doing=f"schedule ({step.__name__.strip('_')})")
            if self.events:
                break
        return self.decision()

    # 1

    def _note_ends(self) -> None:
        """For each load whose runner has sent its list:

        a. Its engine has ended or was given up: it has failed.
        b. Its runner says that it will never start: it has failed.
        c. It is not in the list, and was requested in this life not long ago: the start is repeated.
        d. It is not in the list otherwise: the start is forbidden, until a or b. Until then it may still be
           its way, so its memory stays reserved.
        e. Not all layers that were placed on devices lie there, and it must lie there as a whole: it has
           failed, and ends.
        """
        for engine_id, load in self.state.loads.items():
            if load.spec.backend in self.volatile.engines and not self.guarded(
                partial(self._note_end, load), doing="follow a load", about=engine_id
            ):
                self._drop(load)
            if self.events:
                return

    def _note_end(self, load: LoadState) -> None:
        volatile, engine_id = self.volatile, load.spec.engine_id
        engine = volatile.engine(engine_id)
        if engine is not None:
            if engine.state == "gone" or (engine.state == "stopping" and engine.fault):  # a
                self._fail(load, failure_of(engine))
            elif engine.has_missed_layers and self.requires_device(engine.spec):  # e
                self._fail(load, layers_missed(engine))
        elif engine_id in volatile.forbidden.get(load.spec.backend, ()):  # b
            self._fail(load, never_started(load.spec))
        elif self._is_on_its_way(engine_id):  # c
            self._repeat_start(load)
        else:  # d
            self._forbid_start(load)

    def _drop(self, load: LoadState) -> None:
        """Deciding on this load raises: it has failed, through no fault of its model."""
        spec = load.spec
        failure = Failure(
            kind="permanent",
            code="internal_error",
            message="Greenroom failed while loading this model.",
            blame="ours",
        )
        self.record(_load_failed(spec, failure), cause=load.cause)
        for waiting in [one for one in self.queue if one.follows == load_job(spec.engine_id)]:
            self.answer(waiting, undecided(waiting))

    def _is_on_its_way(self, engine_id: str) -> bool:
        volatile, now = self.volatile, self.now.monotonic
        begun = volatile.begun.get(engine_id)
        return begun is not None and engine_id not in volatile.met and now - begun < _NEVER_TAKEN_AFTER

    def _repeat_start(self, load: LoadState) -> None:
        one, now = load.spec.engine_id, self.now.monotonic
        if now - self.volatile.start_sent.get(one, self.volatile.begun[one]) >= AGAIN:
            self.effects.append(Tell(command=StartEngine(spec=load.spec), cause=load.cause))
            self.update(start_sent={**self.volatile.start_sent, one: now})

    def _forbid_start(self, load: LoadState) -> None:
        one, now = load.spec.engine_id, self.now.monotonic
        sent = self.volatile.forbid_sent.get(one)
        if sent is None or now - sent >= AGAIN:
            forbid = ForbidStart(backend=load.spec.backend, engine_id=one)
            self.effects.append(Tell(command=forbid, cause=load.cause))
            self.update(forbid_sent={**self.volatile.forbid_sent, one: now})

    def _fail(self, load: LoadState, failure: Failure) -> None:
        spec = load.spec
        failed = _load_failed(
            spec,
            failure,
            was_ready=spec.engine_id in self.volatile.gates,
            footprint=footprint(spec, self.volatile),
            device_footprint=device_footprint(spec, self.volatile),
        )
        self.record(failed, cause=load.cause)
        if failure.code == "model_damaged":
            # The library drops it, so that the next pull fetches it again.
            damage = NoteDamage(model_id=spec.model_id, reason=failure.message)
            self.effects.append(Tell(command=damage, cause=load.cause))
        if failure.code == NO_DEVICE_MEMORY and any(one.device for one in spec.reservations):
            # Its requests keep waiting: the next engine gets fewer layers there, in the end none.
            setbacks = setbacks_after(
                self.volatile.setbacks, spec, failure, self.now.monotonic, spared=_FEWER
            )
            self.update(setbacks=setbacks)
            return
        if failure.code in NOT_THE_MODELS_FAULT:
            # Its requests keep waiting: step 3 finds them another engine. But if every engine is lost as it
            # starts, a pause keeps one from following the other at once.
            if not failed.was_ready:
                now = self.now.monotonic
                self.update(
                    setbacks=setbacks_after(self.volatile.setbacks, spec, failure, now, spared=SPARED)
                )
            return
        if not counts_against_model(failure):
            setbacks = setbacks_after(self.volatile.setbacks, spec, failure, self.now.monotonic)
            if not failed.was_ready:
                self.update(setbacks=setbacks)
            self._answer_waiting(spec, failure, retry_after=setbacks[breaker_of(spec)].pause)
            return
        key = breaker_of(spec)
        failures = failures_with(self.state.breakers.get(key, BreakerState()), load)
        away = broken_by_version(spec, failures, failure.message, self.state, self.volatile.statuses or {})
        if failures >= FAILURES_TO_OPEN:
            opened = BreakerOpened(
                model_id=spec.model_id,
                model_ref=spec.model_ref,
                backend=spec.backend,
                installation_id=spec.installation_id,
                failures=failures,
                until=self.now.wall + cool_down(failures),
                reason=failure.message,
            )
            cleared = tuple(cleared_by(spec, failures, self.state))
            further = broken_by_variant(
                spec, failures, failure.message, self.state, self.volatile.statuses or {}
            )
            away = further if cleared else away or further
            self.record(opened, *(() if away is not None else cleared), cause=load.cause)
        elif failed.was_ready or not is_telling(self.volatile.engine(spec.engine_id), failure):
            away = None
        if away is not None:
            # Its requests keep waiting: step 3 has the older installation serve them.
            self.record(away, cause=load.cause)
            return
        self._answer_waiting(spec, failure)

    def _answer_waiting(self, spec: EngineSpec, failure: Failure, *, retry_after: float = 0.0) -> None:
        outcome = load_failed(spec, failure, retry_after)
        follows = load_job(spec.engine_id)
        for waiting in self.queue:
            if waiting.follows == follows:
                self.answer(waiting, outcome)

    # 2

    def _tend_gates(self) -> None:
        gates = self.volatile.gates
        alive = (*(engine.spec.engine_id for engine in self.volatile.alive()), *self.limits.remotes)
        if not self.silent and any(engine_id not in alive for engine_id in gates):
            self.effects.append(RemoveGates(keep=alive))
        for engine in (*self.limits.remotes.values(), *self.serving()):
            reading = gates.get(engine.spec.engine_id)
            if reading is None or not reading.open:
                self.update(setbacks=without(self.volatile.setbacks, breaker_of(engine.spec)))
                self.effects.append(
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

    def _end_due(self) -> None:
        statuses = self.volatile.statuses or {}
        retiring = {(name, one) for name, status in statuses.items() for one in status.retiring}
        for load in self.state.loads.values():
            reason = "retiring" if (load.spec.backend, load.spec.installation_id) in retiring else ""
            if self.volatile.draining or reason:
                ended = partial(self._end, load, "shutdown" if self.volatile.draining else reason)
                self.guarded(ended, doing="end an engine", about=load.spec.engine_id)
        if self.events:
            return
        for engine, reading in self.empty():
            rest = partial(self._end_idle, engine, reading)
            self.guarded(rest, doing="end an idle engine", about=engine.spec.engine_id)

    def _end(self, load: LoadState, reason: str) -> None:
        engine = self.volatile.engine(load.spec.engine_id)
        # Until its runner has listed it, its end would go unnoticed.
        if engine is not None:
            self.record(eviction(engine, self.volatile, self.now, reason), cause=load.cause)

    def _end_idle(self, engine: Engine, reading: GateReading) -> None:
        spec = engine.spec
        keep = self.keep_alive(spec.model_id, spec.mode)
        if not reading.open or self.wanted(spec):
            return
        has_devices = len(self.volatile.memory.devices) > 0
        if has_devices and (place := better_place(self, engine, reading)) is not None:
            move(self, engine, place)
            return
        if keep < 0:
            return
        if is_superseded(spec, self.state, self.volatile.statuses or {}):
            cause = self.state.loads[spec.engine_id].cause
            self.record(eviction(engine, self.volatile, self.now, "superseded"), cause=cause)
            return
        ends = reading.idle_since + keep
        if ends <= self.now.monotonic:
            cause = self.state.loads[spec.engine_id].cause
            evicted = eviction(engine, self.volatile, self.now, "idle")
            by = self.volatile.kept_by.get(config_key(spec.model_id, spec.mode), "")
            self.record(msgspec.structs.replace(evicted, keep_alive=keep, kept_by=by), cause=cause)
        else:
            self.wakes.append(ends)

    # 5

    def _stop_leaving(self) -> None:
        volatile, now = self.volatile, self.now.monotonic
        leaving: dict[str, float] = {}
        stop_sent: dict[str, float] = {}
        for engine in volatile.alive():
            one = engine.spec.engine_id
            if one in self.state.loads:
                continue
            since = leaving[one] = volatile.leaving.get(one, now)
            reading = volatile.gates.get(one)
            if reading is not None and reading.open:
                self.effects.append(CloseGate(engine_id=one))
                # Requests that entered since this reading show in the next one, once the gate is closed.
                self.wakes.append(now)
            drained = reading is None or (not reading.open and not reading.inside)
            overdue = now - since >= self.limits.drain or self.forced(engine)
            sent = volatile.stop_sent.get(one)
            if (drained or overdue) and (sent is None or now - sent >= AGAIN):
                reason = "it is no longer needed" if drained else "its requests did not finish in time"
                if not drained and self.forced(engine):
                    reason = "its backend is being uninstalled with --force"
                stop = StopEngine(backend=engine.spec.backend, engine_id=one, reason=reason)
                self.effects.append(Tell(command=stop, cause=self.state.ended.get(one, "")))
                stop_sent[one] = now
            elif sent is not None:
                stop_sent[one] = sent
            if not drained and not overdue:
                self.wakes.append(since + self.limits.drain)
        self.update(leaving=leaving, stop_sent=stop_sent)

    # 6

    def _close_breakers(self) -> None:
        for engine in self.serving():
            spec = engine.spec
            key = breaker_of(spec)
            if key not in self.state.breakers:
                continue
            load = self.state.loads[spec.engine_id]
            loading = min(engine.since - load.admitted_at, LONGEST_COOL_DOWN)
            since = self.volatile.ready_since.get(spec.engine_id, self.now.monotonic)
            if self.now.monotonic - since >= max(PROVEN_AFTER, loading):
                closed = BreakerClosed(
                    model_id=spec.model_id,
                    backend=spec.backend,
                    installation_id=spec.installation_id,
                    reason="it has been running long enough",
                )
                self.record(closed, cause=load.cause)
                return

    # 7

    def _request_snapshots(self) -> None:
        now = self.now.monotonic
        missing = [runner_address(name) for name in self.silent]
        missing += [INSTALLER] if self.volatile.statuses is None else []
        missing += [LIBRARY] if self.volatile.models is None else []
        if missing and now - self.volatile.requested_at >= AGAIN:
            ask = RequestSnapshot(token=self.volatile.life)
            self.effects += [Tell(to=to, command=ask) for to in missing]
            self.update(requested_at=now)
        retiring = {
            name: one.retiring for name, one in (self.volatile.statuses or {}).items() if one.retiring
        }
        if not retiring:
            return
        # A list is not acted on while a load is left on what it retires.
        specs = [load.spec for load in self.state.loads.values()]
        if any(spec.installation_id in retiring.get(spec.backend, ()) for spec in specs):
            return
        version, sent_at = self.volatile.acted_on
        if version == self.volatile.statuses_version and now - sent_at < AGAIN:
            return
        ask = RequestSnapshot(installations=self.volatile.statuses_version)
        self.effects += [Tell(to=runner_address(name), command=ask) for name in retiring]
        self.update(acted_on=(self.volatile.statuses_version, now))

    # 8

    def _report_drained(self) -> None:
        if self.volatile.draining and not (self.state.loads or self.volatile.alive() or self.silent):
            self.effects.append(Answer(key=DRAINED, outcome=Unloaded(engines=0)))

    # 9

    def _report_ready(self) -> None:
        volatile = self.volatile
        known = volatile.statuses is not None and volatile.models is not None
        if known and all(one.name in volatile.engines for one in self.facts):
            self.effects.append(Answer(key=READY, outcome=Ready()))

    # 10

    def _lift_quarantines(self) -> None:
        statuses = self.volatile.statuses
        if statuses is None:
            return
        for one in self.state.quarantines.values():
            if reason := why_lifted(one, statuses, self.volatile.in_use):
                self.record(lifted(one, reason), cause="")
        if not self.events:
            in_use = {name: one.current.id for name, one in statuses.items() if one.current is not None}
            self.update(in_use={**self.volatile.in_use, **in_use})

    # 11

    def _store_wishes(self) -> None:
        for engine_id, load in self.state.loads.items():
            spec = load.spec
            wished = self.volatile.keep_alive.get(config_key(spec.model_id, spec.mode))
            if wished is None or (wished < 0) == load.kept or load.wishes >= _WISHES_STORED:
                continue
            event = KeepAliveWished(
                engine_id=engine_id, model_id=spec.model_id, model_ref=spec.model_ref, keep_alive=wished
            )
            by = self.volatile.kept_by.get(config_key(spec.model_id, spec.mode))
            self.record(event, cause=by or load.cause)
            return


def _load_failed(spec: EngineSpec, failure: Failure, **measured: Any) -> LoadFailed:
    return LoadFailed(
        engine_id=spec.engine_id,
        model_id=spec.model_id,
        model_ref=spec.model_ref,
        backend=spec.backend,
        installation_id=spec.installation_id,
        failure=failure,
        **measured,
    )
