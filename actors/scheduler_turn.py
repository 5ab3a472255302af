"""What follows from the scheduler's state at one moment: the numbered steps of `settle`.

1. Loads whose engines have ended, or were never heard of again, have failed.
2. Engines that are ready get an open gate; gates of engines that are gone are removed.
3. Each waiting request, first come first served: a ready engine, a load to wait for, a new load, an
   installation to wait for, or a refusal that says why.
4. Idle engines past their keep-alive, and engines of installations that retire, shall end.
5. Engines that shall end and have drained are told to.
6. Breakers of models that serve again are closed.

A step that has events ends the turn: the next one sees them applied.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
from greenroom.actors import events as ev
from greenroom.actors import messages as msg
from greenroom.actors.choice import Install, Use, choose
from greenroom.actors.effects import AdmitRequest, CloseGate, InformRequest, OpenGate, RemoveGates
from greenroom.actors.facts import Engine, EngineSpec, Failure, Mode, Model
from greenroom.actors.kernel.clock import Moment
from greenroom.actors.kernel.core import Answer, Decision, Effect, Event, Tell, refuse
from greenroom.actors.kernel.errors import Refusal
from greenroom.actors.ledger import Account, Holding, fewest_victims, memory_needed
from greenroom.actors.progress import install_job, load_job
from greenroom.actors.scheduler_refusals import failure_of, never_fits, not_installable
from greenroom.actors.scheduler_state import (
    BreakerState,
    LoadState,
    ModelConfigState,
    SchedulerSeen,
    SchedulerState,
    Waiting,
    breaker_key,
    config_key,
)

_AGAIN = 5.0
"""Seconds after which a command to a runner is told again: it is harmless, and it may have been lost."""
_FAILURES_TO_OPEN = 3
_FIRST_COOL_DOWN = 10.0
_LONGEST_COOL_DOWN = 300.0
_PROVEN_AFTER = 30.0
"""Seconds of being ready after which a model counts as running well, even without a request."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What the operator has set, in seconds and requests."""

    keep_alive: float = 300.0
    max_wait: float = 300.0
    drain: float = 600.0
    """How long an engine that shall end may go on with the requests inside it."""
    queue: int = 256


class Turn:
    """One settle. Mutable and short-lived: it collects a Decision and nothing outside sees it."""

    def __init__(
        self,
        state: SchedulerState,
        now: Moment,
        seen: SchedulerSeen,
        facts: Sequence[msg.BackendFacts],
        limits: Limits,
    ) -> None:
        self._state = state
        self._now = now
        self._seen = seen
        self._facts = facts
        self._limits = limits
        self._queue = list(seen.queue)
        self._events: list[Event] = []
        self._effects: list[Effect] = []
        self._wakes: list[float] = []
        self._cause = ""
        """The request or event this turn's events go back to."""

    def take(self) -> Decision[SchedulerSeen]:
        """Go through the steps."""
        for step in (
            self._note_ends,
            self._open_gates,
            self._serve_queue,
            self._evict,
            self._stop_leaving,
            self._close_breakers,
        ):
            step()
            if self._events:
                break
        self._update(queue=tuple(self._queue))
        return Decision(
            events=tuple(self._events),
            effects=tuple(self._effects),
            seen=self._seen,
            cause=self._cause,
            wake_at=min(self._wakes) if self._wakes else None,
        )

    # 1

    def _note_ends(self) -> None:
        for engine_id, load in self._state.loads.items():
            engine = self._seen.engine(engine_id)
            if engine is not None and engine.state != "gone":
                continue
            if engine is None:
                if engine_id in self._seen.begun and engine_id not in self._seen.met:
                    self._tell_to_start(load)
                    continue
                failure = Failure(
                    kind="transient",
                    code="engine_lost",
                    message=f"The engine of {load.spec.model_ref} is gone; nobody saw how it ended.",
                )
            else:
                failure = failure_of(engine)
            self._fail(load, failure, was_ready=engine_id in self._seen.gates)

    def _tell_to_start(self, load: LoadState) -> None:
        told = self._seen.start_told.get(load.spec.engine_id)
        if told is None or self._now.monotonic - told >= _AGAIN:
            to = msg.runner_address(load.spec.backend)
            self._effects.append(Tell(to=to, command=msg.StartEngine(spec=load.spec)))
            self._update(start_told={**self._seen.start_told, load.spec.engine_id: self._now.monotonic})

    def _fail(self, load: LoadState, failure: Failure, *, was_ready: bool) -> None:
        spec = load.spec
        self._cause = load.cause
        self._events.append(
            ev.LoadFailed(
                engine_id=spec.engine_id,
                model_id=spec.model_id,
                model_ref=spec.model_ref,
                backend=spec.backend,
                installation_id=spec.installation_id,
                failure=failure,
                was_ready=was_ready,
            )
        )
        key = breaker_key(spec.model_id, spec.backend, spec.installation_id)
        failures = self._state.breakers.get(key, BreakerState()).failures + 1
        if failure.code != "engine_lost" and failures >= _FAILURES_TO_OPEN:
            cool_down = min(_LONGEST_COOL_DOWN, _FIRST_COOL_DOWN * 2 ** (failures - _FAILURES_TO_OPEN))
            self._events.append(
                ev.BreakerOpened(
                    model_id=spec.model_id,
                    model_ref=spec.model_ref,
                    backend=spec.backend,
                    installation_id=spec.installation_id,
                    failures=failures,
                    until=self._now.wall + cool_down,
                    reason=failure.message,
                )
            )
        outcome = Refusal(
            code=failure.code,
            message=failure.message,
            advice=failure.advice or f"`greenroom logs {spec.engine_id}` shows its last words.",
            status=500,
            subject=spec.model_ref,
        )
        follows = load_job(spec.engine_id)
        for waiting in [one for one in self._queue if one.follows == follows]:
            self._queue.remove(waiting)
            self._effects.append(Answer(key=waiting.request_id, outcome=outcome))

    # 2

    def _open_gates(self) -> None:
        alive = tuple(engine.spec.engine_id for engine in self._seen.alive())
        if any(engine_id not in alive for engine_id in self._seen.gates):
            self._effects.append(RemoveGates(keep=alive))
        for engine in self._serving():
            reading = self._seen.gates.get(engine.spec.engine_id)
            if reading is None or not reading.open:
                self._effects.append(
                    OpenGate(
                        engine_id=engine.spec.engine_id,
                        model_id=engine.spec.model_id,
                        mode=engine.spec.mode,
                        backend=engine.spec.backend,
                        endpoint=engine.endpoint,
                    )
                )

    def _serving(self) -> Iterator[Engine]:
        """Engines that shall be and are ready."""
        for engine_id in self._state.loads:
            engine = self._seen.engine(engine_id)
            if engine is not None and engine.state == "ready":
                yield engine

    # 3

    def _serve_queue(self) -> None:
        for waiting in list(self._queue):
            if self._events:
                return
            self._cause = waiting.request_id
            self._serve(waiting)

    def _serve(self, waiting: Waiting) -> None:
        """Decide on one waiting request.

        a. The daemon stops, or the model is not here: refused.
        b. A ready engine serves it: a place in its gate, and the answer.
        c. A load it can use is in flight: it waits for that one.
        d. A backend is chosen; one that must be installed first is waited for, or refused by policy.
        e. The breaker of this model on this installation is open: refused, with when to come back.
        f. It can never fit: refused with the numbers. It fits: a load. It does not fit now: the least
           recently used idle engines end, or it waits for room.
        g. Whoever has waited too long is refused; the load or installation goes on.
        """
        models = self._seen.models or {}
        model = models.get(waiting.model_id)
        if self._seen.draining:  # a
            self._refuse(waiting, refuse("stopping", "Greenroom is stopping.", status=503, retry_after=5.0))
            return
        if model is None:
            self._refuse(
                waiting,
                refuse(
                    "model_not_found",
                    f'model "{waiting.model_ref}" is not here; run: greenroom pull {waiting.model_ref}',
                    status=404,
                    subject=waiting.model_ref,
                ),
            )
            return
        serving = next((e for e in self._serving() if _fits(e.spec, waiting)), None)  # b
        if serving is not None:
            self._grant(waiting, serving)
            return
        load = next((one for one in self._state.loads.values() if _fits(one.spec, waiting)), None)  # c
        if load is not None:
            name = f"loading {waiting.model_ref} on {load.spec.backend}"
            self._wait(waiting, "loading", name, load_job(load.spec.engine_id))
            return
        choice = choose(  # d
            model,
            waiting.mode,
            waiting.backend,
            waiting.policy,
            self._facts,
            self._seen.statuses or {},
        )
        if isinstance(choice, Refusal):
            self._refuse(waiting, choice)
        elif isinstance(choice, Install):
            self._install(waiting, choice)
        else:
            self._load(waiting, model, choice)

    def _grant(self, waiting: Waiting, engine: Engine) -> None:
        self._queue.remove(waiting)
        granted = msg.Granted(
            engine_id=engine.spec.engine_id, backend=engine.spec.backend, endpoint=engine.endpoint
        )
        self._effects += [
            AdmitRequest(engine_id=engine.spec.engine_id, request_id=waiting.request_id),
            Answer(key=waiting.request_id, outcome=granted),
        ]

    def _install(self, waiting: Waiting, choice: Install) -> None:
        """Tell the installer once, then wait for a list that is younger than the telling."""
        status = (self._seen.statuses or {}).get(choice.backend)
        told = self._seen.ensured.get(choice.backend)
        under_way = status is not None and status.job != ""
        if told is None and not under_way:
            command = msg.Ensure(backend=choice.backend, wanted_by="request")
            self._effects.append(Tell(to=msg.INSTALLER, command=command))
            self._update(ensured={**self._seen.ensured, choice.backend: self._seen.statuses_version})
        elif told is not None and self._seen.statuses_version > told and not under_way:
            # The job has ended and the backend is not installed: whoever waited for it hears why.
            failure = status.failure if status is not None else None
            waiters = [
                one for one in self._queue if one.follows == install_job(choice.backend) or one is waiting
            ]
            for one in waiters:
                self._refuse(one, not_installable(choice.backend, failure))
            self._update(ensured={k: v for k, v in self._seen.ensured.items() if k != choice.backend})
            return
        text = f"installing {choice.backend}, since {choice.reason}"
        self._wait(waiting, "installing", text, install_job(choice.backend))

    def _load(self, waiting: Waiting, model: Model, choice: Use) -> None:
        key = config_key(model.id, waiting.mode)
        if choice.backend in self._seen.ensured:
            self._update(ensured={k: v for k, v in self._seen.ensured.items() if k != choice.backend})
        breaker = self._state.breakers.get(breaker_key(model.id, choice.backend, choice.installation_id))
        if breaker is not None and breaker.until > self._now.wall:  # e
            left = breaker.until - self._now.wall
            self._refuse(
                waiting,
                refuse(
                    "breaker_open",
                    f"{waiting.model_ref} has failed {breaker.failures} times on {choice.backend}; it is "
                    f"tried again in {left:.0f} s. The last failure: {breaker.reason}",
                    status=503,
                    retry_after=left,
                    subject=waiting.model_ref,
                ),
            )
            return
        config = self._state.configs.get(key, ModelConfigState())
        overhead = next(one.overhead for one in self._facts if one.name == choice.backend)
        need = memory_needed(model, config.context_size or 0, overhead)
        account = self.account()
        if need > account.memory.budget:  # f
            self._refuse(waiting, never_fits(waiting.model_ref, need, account))
        elif need <= account.free:
            self._admit(waiting, model, choice, config, need, account)
        else:
            self._make_room(waiting, need, account)

    def _admit(
        self,
        waiting: Waiting,
        model: Model,
        choice: Use,
        config: ModelConfigState,
        need: int,
        account: Account,
    ) -> None:
        engine_id = f"{int(self._now.wall * 1000):x}-{self._state.admitted + 1}"
        spec = EngineSpec(
            engine_id=engine_id,
            backend=choice.backend,
            installation_id=choice.installation_id,
            model_id=model.id,
            model_ref=waiting.model_ref,
            mode=waiting.mode,
            context_size=config.context_size or 0,
            flags=config.flags or (),
            memory=need,
        )
        key = config_key(model.id, waiting.mode)
        self._events += [
            ev.BackendChosen(
                model_id=model.id,
                model_ref=waiting.model_ref,
                mode=waiting.mode,
                backend=choice.backend,
                installation_id=choice.installation_id,
                reasons=choice.reasons,
            ),
            ev.LoadAdmitted(
                spec=spec,
                promised=account.promised + need,
                budget=account.memory.budget,
                refused_before=self._seen.refused.get(key, 0),
            ),
        ]
        self._update(
            begun=self._seen.begun | {engine_id},
            refused={k: v for k, v in self._seen.refused.items() if k != key},
        )

    def _make_room(self, waiting: Waiting, need: int, account: Account) -> None:
        coming = sum(
            engine.spec.memory
            for engine in self._seen.alive()
            if engine.spec.engine_id not in self._state.loads
        )
        victims = fewest_victims(need - account.free - coming, self._idle())
        for victim in victims:
            engine = self._seen.engine(victim.engine_id)
            assert engine is not None
            self._events.append(
                self._eviction(engine, "room", in_favour_of=waiting.model_ref, needed=need, free=account.free)
            )
        megabytes = 2**20
        text = (
            f"waiting for memory: {waiting.model_ref} needs {need // megabytes} MiB, "
            f"{account.free // megabytes} MiB are free"
        )
        self._wait(waiting, "waiting_for_memory", text, "")

    def _idle(self) -> list[Holding]:
        """Engines that may be ended for others: ready, empty, not pinned, not waited for."""
        wanted = {(one.model_id, one.mode) for one in self._queue}
        return [
            Holding(engine_id=one.spec.engine_id, memory=one.spec.memory, idle_since=reading.idle_since)
            for one, reading in self._empty()
            if self.keep_alive(one.spec.model_id, one.spec.mode) >= 0
            and (one.spec.model_id, one.spec.mode) not in wanted
        ]

    def _empty(self) -> Iterator[tuple[Engine, Any]]:
        for engine in self._serving():
            reading = self._seen.gates.get(engine.spec.engine_id)
            if reading is not None and not reading.inside:
                yield engine, reading

    def _wait(self, waiting: Waiting, phase: str, text: str, follows: str) -> None:
        waited = self._now.monotonic - waiting.since
        if waited >= self._limits.max_wait:  # g
            message = f"{waiting.model_ref} is not ready after {waited:.0f} s; it is still {text}."
            advice = "It goes on; ask again."
            self._refuse(
                waiting,
                refuse("not_ready_yet", message, advice=advice, status=503, retry_after=10.0),
            )
            return
        self._wakes.append(waiting.since + self._limits.max_wait)
        if waiting.follows != follows or not waiting.follows:
            informed = msgspec.structs.replace(waiting, follows=follows)
            self._queue[self._queue.index(waiting)] = informed
            self._effects.append(
                InformRequest(request_id=waiting.request_id, phase=phase, message=text, follows=follows)
            )

    def _refuse(self, waiting: Waiting, refusal: Refusal) -> None:
        """Answer no, and store the reason when it is a new one for this model."""
        self._queue.remove(waiting)
        self._effects.append(Answer(key=waiting.request_id, outcome=refusal))
        if refusal.code in ("stopping", "model_not_found"):
            return
        key = config_key(waiting.model_id, waiting.mode)
        self._update(refused={**self._seen.refused, key: self._seen.refused.get(key, 0) + 1})
        if self._state.refusals.get(key) != refusal.code:
            self._events.append(
                ev.LoadRefused(
                    model_id=waiting.model_id,
                    model_ref=waiting.model_ref,
                    mode=waiting.mode,
                    code=refusal.code,
                    message=refusal.message,
                    numbers=refusal.numbers,
                    count=self._seen.refused[key],
                )
            )

    # 4

    def _evict(self) -> None:
        retiring = {
            (name, one) for name, status in (self._seen.statuses or {}).items() for one in status.retiring
        }
        for load in self._state.loads.values():
            engine = self._seen.engine(load.spec.engine_id)
            if engine is None:
                continue
            if self._seen.draining:
                self._events.append(self._eviction(engine, "shutdown"))
            elif (load.spec.backend, load.spec.installation_id) in retiring:
                self._events.append(self._eviction(engine, "retiring"))
        if self._events:
            return
        waited_for = {(one.model_id, one.mode) for one in self._queue}
        for engine, reading in self._empty():
            spec = engine.spec
            keep = self.keep_alive(spec.model_id, spec.mode)
            if keep < 0 or (spec.model_id, spec.mode) in waited_for or not reading.open:
                continue
            ends = reading.idle_since + keep
            if ends <= self._now.monotonic:
                self._events.append(self._eviction(engine, "idle"))
            else:
                self._wakes.append(ends)

    def keep_alive(self, model_id: str, mode: Mode) -> float:
        """Seconds a model stays after its last request: the request's wish, the configured, the default."""
        key = config_key(model_id, mode)
        wished = self._seen.keep_alive.get(key)
        if wished is not None:
            return wished
        configured = self._state.configs.get(key, ModelConfigState()).keep_alive
        return configured if configured is not None else self._limits.keep_alive

    def _eviction(
        self, engine: Engine, reason: str, *, in_favour_of: str = "", needed: int = 0, free: int = 0
    ) -> ev.EvictionDecided:
        return eviction(
            engine,
            self._seen,
            self._now,
            reason,
            in_favour_of=in_favour_of,
            needed=needed,
            free=free,
        )

    # 5

    def _stop_leaving(self) -> None:
        leaving: dict[str, float] = {}
        stop_told: dict[str, float] = {}
        for engine in self._seen.alive():
            one = engine.spec.engine_id
            if one in self._state.loads:
                continue
            since = self._seen.leaving.get(one, self._now.monotonic)
            leaving[one] = since
            reading = self._seen.gates.get(one)
            if reading is not None and reading.open:
                self._effects.append(CloseGate(engine_id=one))
            # Once closed, nobody enters; until then the reading may be older than a request that did.
            drained = reading is None or (not reading.open and not reading.inside)
            overdue = self._now.monotonic - since >= self._limits.drain
            told = self._seen.stop_told.get(one)
            if (drained or overdue) and (told is None or self._now.monotonic - told >= _AGAIN):
                reason = "it is not wanted any more" if drained else "its requests did not end in time"
                self._effects.append(
                    Tell(
                        to=msg.runner_address(engine.spec.backend),
                        command=msg.StopEngine(engine_id=one, reason=reason),
                        cause=self._state.ended.get(one, ""),
                    )
                )
                stop_told[one] = self._now.monotonic
            elif told is not None:
                stop_told[one] = told
            if not drained:
                self._wakes.append(since + self._limits.drain)
                if reading is not None and reading.open:
                    self._wakes.append(self._now.monotonic)
        self._update(leaving=leaving, stop_told=stop_told)

    # 6

    def _close_breakers(self) -> None:
        for engine in self._serving():
            spec = engine.spec
            key = breaker_key(spec.model_id, spec.backend, spec.installation_id)
            if key not in self._state.breakers:
                continue
            reading = self._seen.gates.get(spec.engine_id)
            served = reading.served if reading is not None else 0
            if served > 0 or self._now.wall - engine.since >= _PROVEN_AFTER:
                self._events.append(
                    ev.BreakerClosed(
                        model_id=spec.model_id,
                        backend=spec.backend,
                        installation_id=spec.installation_id,
                        reason="it has served a request" if served else "it has been running for a while",
                    )
                )

    # shared

    def account(self) -> Account:
        """The ledger now: loads in flight, engines that run, and engines that have not let go yet."""
        by_id = {load.spec.engine_id: load.spec for load in self._state.loads.values()}
        alive = {engine.spec.engine_id: engine for engine in self._seen.alive()}
        loading = sum(
            spec.memory for one, spec in by_id.items() if one not in alive or alive[one].state == "starting"
        )
        for one, engine in alive.items():
            by_id.setdefault(one, engine.spec)
        return Account(
            memory=self._seen.memory,
            promised=sum(spec.memory for spec in by_id.values()),
            unclaimed=loading,
        )

    def _update(self, **changes: object) -> None:
        self._seen = msgspec.structs.replace(self._seen, **changes)


def eviction(
    engine: Engine,
    seen: SchedulerSeen,
    now: Moment,
    reason: str,
    *,
    in_favour_of: str = "",
    needed: int = 0,
    free: int = 0,
) -> ev.EvictionDecided:
    """The event that ends an engine, with the numbers that decided."""
    reading = seen.gates.get(engine.spec.engine_id)
    idle = now.monotonic - reading.idle_since if reading is not None and not reading.inside else 0.0
    return ev.EvictionDecided(
        engine_id=engine.spec.engine_id,
        model_id=engine.spec.model_id,
        model_ref=engine.spec.model_ref,
        backend=engine.spec.backend,
        reason=reason,
        in_favour_of=in_favour_of,
        idle_seconds=round(idle, 3),
        memory=engine.spec.memory,
        needed=needed,
        free=free,
    )


def _fits(spec: EngineSpec, waiting: Waiting) -> bool:
    same = spec.model_id == waiting.model_id and spec.mode == waiting.mode
    return same and waiting.backend in ("", spec.backend)
