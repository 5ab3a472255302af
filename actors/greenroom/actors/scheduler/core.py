"""The scheduler: which model runs where, which requests wait for it, and what is evicted for it.

It owns loads, reserved memory, evictions, breakers and configuration; for everything else the owner sends it
whole lists. A request that finds no open gate is queued here; what then follows is derived from the state, in
the numbered steps of `reconcile`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

import msgspec

from greenroom.actors.engine_runner.messages import EngineList, StartEngine
from greenroom.actors.installer.messages import InstallationList, PendingInstallRequests
from greenroom.actors.kernel.clock import Moment
from greenroom.actors.kernel.core import (
    Address,
    Answer,
    Command,
    Decision,
    Effect,
    Event,
    Later,
    NotUnderstood,
    Recovered,
    SingleStream,
    Stored,
    Tell,
    events_of,
    refuse,
)
from greenroom.actors.kernel.errors import Refusal
from greenroom.actors.library.messages import ModelList, Release, Released
from greenroom.actors.limits import flags_complaint
from greenroom.actors.progress import load_job
from greenroom.actors.scheduler import events as scheduler_events
from greenroom.actors.scheduler.effects import LeaveGate
from greenroom.actors.scheduler.errors import unloaded
from greenroom.actors.scheduler.events import ConfigChanged, LoadAdmitted
from greenroom.actors.scheduler.eviction import eviction, idle_only, unloadable
from greenroom.actors.scheduler.ledger_reading import ledger_reading, placement_reading
from greenroom.actors.scheduler.messages import (
    CONFIG_FIELDS,
    SCHEDULER,
    Abandon,
    AwaitReady,
    CallerFound,
    Configure,
    Configured,
    Drain,
    ForgetModel,
    GateEmptied,
    Keep,
    LiftQuarantines,
    ReadLedger,
    ReadPlacement,
    Serve,
    SlotFreed,
    Unload,
    Unloaded,
)
from greenroom.actors.scheduler.quarantine import lifted_by_hand
from greenroom.actors.scheduler.queue import AGAIN
from greenroom.actors.scheduler.reconcile import DRAINED, READY, take_turn
from greenroom.actors.scheduler.state import (
    ModelConfigState,
    SchedulerState,
    SchedulerVolatile,
    Waiting,
    apply,
    config_key,
)
from greenroom.actors.scheduler.turn_context import Limits
from greenroom.actors.values import BackendFacts, Caller, InstallPolicy, Mode

_OWN_SHARE = 0.75
"""The share of the queue that one caller's requests may fill."""


class Scheduler(SingleStream[SchedulerState]):
    address: Address = SCHEDULER
    event_types: Sequence[type[Event]] = events_of(scheduler_events)

    def __init__(
        self,
        backends: Sequence[BackendFacts],
        *,
        policy: InstallPolicy = "ask",
        limits: Limits = Limits(),  # noqa: B008 - frozen
    ) -> None:
        """`policy` is what a request may cause to be installed; `limits` are the operator's."""
        self._facts = tuple(backends)
        self._policy: InstallPolicy = policy
        self._limits = limits

    def initial(self) -> SchedulerState:
        return SchedulerState()

    def initial_volatile(self) -> SchedulerVolatile:
        return SchedulerVolatile()

    def apply(self, state: SchedulerState, stored: Stored[Any]) -> SchedulerState:
        return apply(state, stored)

    # decide

    def decide(
        self, state: SchedulerState, command: Command[Any], now: Moment, volatile: SchedulerVolatile
    ) -> Decision[SchedulerVolatile]:
        """One command; what it leads to is derived by `settle`."""
        change = msgspec.structs.replace
        match command:
            case Serve():
                return self._serve(command, now, volatile)
            case Abandon(request_id=gone):
                queue = tuple(one for one in volatile.queue if one.request_id != gone)
                outcome = refuse("abandoned", "The request was abandoned.", kind="conflict")
                return Decision(
                    effects=(LeaveGate(request_id=gone), Answer(key=gone, outcome=outcome)),
                    volatile=change(volatile, queue=queue),
                )
            case CallerFound():
                return self._found(command, volatile)
            case Unload():
                return self._unload(state, command, now, volatile)
            case Configure():
                return self._configure(state, command, now, volatile)
            case ForgetModel():
                return Decision(events=_forgotten(state, command))
            case Release():
                return self._release(state, command, now, volatile)
            case Keep(model_id=one, mode=mode, keep_alive=seconds, request_id=request):
                return Decision(volatile=_kept(volatile, config_key(one, mode), seconds, request))
            case LiftQuarantines(backend=backend):
                reason = f"{backend} was requested again"
                return Decision(events=lifted_by_hand(state, reason, backend=backend))
            case ReadLedger():
                return Decision(
                    reply=command.replied(ledger_reading(state, now, volatile, self._facts, self._limits))
                )
            case ReadPlacement():
                told = placement_reading(command, state, now, volatile, self._facts, self._limits)
                return Decision(reply=command.replied(told))
            case AwaitReady():
                return Decision(reply=Later(READY))
            case Drain():
                return Decision(reply=Later(DRAINED), volatile=change(volatile, draining=True))
            case InstallationList():
                statuses = {one.name: one for one in command.backends}
                return Decision(
                    volatile=change(
                        volatile, statuses=statuses, statuses_version=command.version, heard=command.heard
                    )
                )
            case ModelList():
                return Decision(volatile=change(volatile, models={one.id: one for one in command.models}))
            case EngineList():
                if command.backend not in volatile.engines and command.token != volatile.life:
                    # It was sent before this life, and may lack what has been started since.
                    return Decision()
                engines = {one.spec.engine_id: one for one in command.engines}
                ready = {one: now.monotonic for one, engine in engines.items() if engine.state == "ready"}
                return Decision(
                    volatile=change(
                        volatile,
                        engines={**volatile.engines, command.backend: engines},
                        forbidden={**volatile.forbidden, command.backend: frozenset(command.forbidden)},
                        measured={**volatile.measured, **command.measured},
                        met=volatile.met | frozenset(engines),
                        ready_since={**ready, **volatile.ready_since},
                    )
                )
            case GateEmptied() | SlotFreed():
                return Decision()
            case Recovered():
                # The turn that follows requests all lists. Requests that waited before are queued again soon.
                none_wait = Tell(command=PendingInstallRequests())
                life = f"{now.monotonic}/{now.draw}"
                volatile = change(volatile, life=life, requested_at=now.monotonic - AGAIN)
                return Decision(effects=(none_wait,), volatile=volatile)
            case _:
                raise NotUnderstood(self.address, command)

    def _serve(self, ask: Serve, now: Moment, volatile: SchedulerVolatile) -> Decision[SchedulerVolatile]:
        if any(one.request_id == ask.request_id for one in volatile.queue):
            return Decision(reply=Later(ask.request_id))
        if (full := self._full(ask.caller, volatile.queue)) is not None:
            return Decision(reply=full)
        waiting = Waiting(
            request_id=ask.request_id,
            model_id=ask.model_id,
            model_ref=ask.model_ref,
            mode=ask.mode,
            backend=ask.backend,
            policy=ask.policy or self._policy,
            since=now.monotonic,
            caller=ask.caller,
            on_behalf=ask.on_behalf,
            slots=ask.slots,
            context_size=ask.context_size,
        )
        if ask.keep_alive is not None:
            key = config_key(ask.model_id, ask.mode)
            volatile = _kept(volatile, key, ask.keep_alive, ask.on_behalf or ask.request_id)
        volatile = msgspec.structs.replace(volatile, queue=(*volatile.queue, waiting))
        return Decision(reply=Later(ask.request_id), volatile=volatile)

    def _found(self, found: CallerFound, volatile: SchedulerVolatile) -> Decision[SchedulerVolatile]:
        """Note the caller, which may turn out to have too many requests queued."""
        others = tuple(one for one in volatile.queue if one.request_id != found.request_id)
        if len(others) == len(volatile.queue):
            return Decision()
        if (full := self._full(found.caller, others)) is not None:
            answer = Answer(key=found.request_id, outcome=full)
            return Decision(effects=(answer,), volatile=msgspec.structs.replace(volatile, queue=others))
        queue = tuple(
            msgspec.structs.replace(one, caller=found.caller) if one.request_id == found.request_id else one
            for one in volatile.queue
        )
        return Decision(volatile=msgspec.structs.replace(volatile, queue=queue))

    def _full(self, caller: Caller, queue: Sequence[Waiting]) -> Refusal | None:
        """The refusal if the queue, or this caller's share of it, is full."""
        waiting, most = len(queue), self._limits.queue
        message = f"{waiting} requests are already queued."
        if waiting < most:
            own = sum(one.caller.key == caller.key for one in queue)
            if own < max(1, round(most * _OWN_SHARE)):
                return None
            message = (
                f"{own} of your requests are already queued; the rest of the queue is for other callers."
            )
        return refuse("queue_full", message, advice="Try again later.", kind="exhausted", retry_after=5.0)

    def _unload(
        self, state: SchedulerState, ask: Unload, now: Moment, volatile: SchedulerVolatile
    ) -> Decision[SchedulerVolatile]:
        """End what may be unloaded, and refuse the requests that wait for a load among it."""
        engines, busy = unloadable(ask, state, volatile)
        jobs = {load_job(one.spec.engine_id) for one in engines}
        queue = volatile.queue
        ended = (Answer(key=one.request_id, outcome=unloaded(one)) for one in queue if one.follows in jobs)
        left = tuple(one for one in queue if one.follows not in jobs)
        return Decision(
            events=tuple(eviction(one, volatile, now, "unload") for one in engines),
            effects=tuple(ended),
            volatile=msgspec.structs.replace(volatile, queue=left),
            reply=ask.replied(
                Unloaded(
                    engines=len(engines),
                    ending=tuple(one.spec.engine_id for one in engines),
                    busy=tuple(busy),
                )
            ),
        )

    def _release(
        self, state: SchedulerState, ask: Release, now: Moment, volatile: SchedulerVolatile
    ) -> Decision[SchedulerVolatile]:
        """A model is to be removed: end its idle engines, and load nothing from it.

        Refused while it is in use or loading, unless forced; requests inside are then served to the end.
        """
        specs = [load.spec for load in state.loads.values() if load.spec.model_id == ask.model_id]
        engines = idle_only(specs, volatile, advice="Wait for them, or remove it with --force.")
        if ask.force:
            engines = [engine for spec in specs if (engine := volatile.engine(spec.engine_id)) is not None]
        elif isinstance(engines, Refusal):
            return Decision(effects=(Tell(command=Released(model_id=ask.model_id, refusal=engines)),))
        models = {one: model for one, model in (volatile.models or {}).items() if one != ask.model_id}
        return Decision(
            events=tuple(eviction(one, volatile, now, "removed") for one in engines),
            effects=(Tell(command=Released(model_id=ask.model_id)),),
            volatile=msgspec.structs.replace(volatile, models=None if volatile.models is None else models),
        )

    def _configure(
        self, state: SchedulerState, ask: Configure, now: Moment, volatile: SchedulerVolatile
    ) -> Decision[SchedulerVolatile]:
        """Merge a configuration and end engines that have another; refused while requests use one of them.

        What loads without a client that waits for it is loaded again with the new one.
        """
        event = ConfigChanged(**msgspec.structs.asdict(ask))
        if too_much := flags_complaint(ask.flags or ()):
            return Decision(reply=refuse("flags_too_long", too_much))
        key = config_key(ask.model_id, ask.mode)
        old = state.configs.get(key, ModelConfigState())
        new = apply(state, Stored(event, "", now.wall, "")).configs.get(key, ModelConfigState())
        if ask.keep_alive is not None or "keep_alive" in ask.reset:
            # It is the latest word, so it replaces what a request has asked for, on engines that run too.
            latest = self._limits.keep_alive if new.keep_alive is None else new.keep_alive
            if any(config_key(one.spec.model_id, one.spec.mode) == key for one in state.loads.values()):
                volatile = _kept(volatile, key, latest, "")
        if new == old:
            return Decision(volatile=volatile, reply=ask.replied(Configured(changed=False)))
        events: list[Event] = [event]
        reload = _shape(old) != _shape(new)
        model = (volatile.models or {}).get(ask.model_id)
        packaged = model.context_size if model is not None else 0
        context = packaged if new.context_size is None else new.context_size
        unlike = [
            spec
            for load in state.loads.values()
            if (spec := load.spec).model_id == ask.model_id
            and spec.mode == ask.mode
            and (
                (spec.context_size, spec.flags) != (context, new.flags or ())
                or (new.slots and spec.slots != new.slots)
                or (new.prompt_cache is not None and new.prompt_cache not in (-1, spec.prompt_cache))
                or (new.require_device and spec.on_devices < spec.layers)
            )
        ]
        engines = idle_only(
            unlike if reload else (),
            volatile,
            advice=f"Wait for them, or stop it first: greenroom stop {ask.model_ref} --force",
            preloads=True,
        )
        if isinstance(engines, Refusal):
            return Decision(reply=engines)
        events += [eviction(one, volatile, now, "reconfigured") for one in engines]
        if reload:
            events += lifted_by_hand(state, "its configuration has changed", model_id=ask.model_id)
            # It may have failed because of its old configuration.
            others = {
                name: one
                for name, one in volatile.setbacks.items()
                if not name.startswith(f"{ask.model_id}|")
            }
            volatile = msgspec.structs.replace(volatile, setbacks=others)
        return Decision(events=tuple(events), volatile=volatile, reply=ask.replied(Configured(changed=True)))

    def react(self, state: SchedulerState, stored: Stored[Any]) -> Sequence[Effect]:  # noqa: ARG002
        if isinstance(stored.event, LoadAdmitted):
            return (Tell(command=StartEngine(spec=stored.event.spec)),)
        return ()

    # settle

    def settle(
        self, state: SchedulerState, now: Moment, volatile: SchedulerVolatile
    ) -> Decision[SchedulerVolatile]:
        return take_turn(state, now, volatile, self._facts, self._limits)


def _kept(volatile: SchedulerVolatile, key: str, seconds: float, request: str) -> SchedulerVolatile:
    """With a model's latest keep-alive; `request` is empty for one that was configured."""
    return msgspec.structs.replace(
        volatile, keep_alive={**volatile.keep_alive, key: seconds}, kept_by={**volatile.kept_by, key: request}
    )


def _forgotten(state: SchedulerState, gone: ForgetModel) -> tuple[Event, ...]:
    return tuple(
        ConfigChanged(model_id=gone.model_id, model_ref=gone.model_ref, mode=mode, reset=CONFIG_FIELDS)
        for mode in get_args(Mode)
        if config_key(gone.model_id, mode) in state.configs
    )


def _shape(config: ModelConfigState) -> tuple[object, ...]:
    return (config.context_size, config.flags, config.slots, config.prompt_cache, config.require_device)
