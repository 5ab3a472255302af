"""The ledger for display: which engine holds how much, until when, and which requests wait."""

from __future__ import annotations

import math
from collections.abc import Sequence

from greenroom.actors.kernel.clock import Moment
from greenroom.actors.scheduler.holdings import holding
from greenroom.actors.scheduler.ledger import Device, context_reckoned
from greenroom.actors.scheduler.messages import (
    DeviceAccount,
    EngineAccount,
    LedgerReading,
    PlacementReading,
    QueueEntry,
    ReadPlacement,
)
from greenroom.actors.scheduler.placement import Placements
from greenroom.actors.scheduler.state import (
    LoadState,
    ModelConfigState,
    SchedulerState,
    SchedulerVolatile,
    Waiting,
    config_key,
    fits,
)
from greenroom.actors.scheduler.turn_context import Limits, TurnContext
from greenroom.actors.values import BackendFacts, EngineSpec


def ledger_reading(
    state: SchedulerState,
    now: Moment,
    volatile: SchedulerVolatile,
    facts: Sequence[BackendFacts],
    limits: Limits,
) -> LedgerReading:
    turn = TurnContext(state, now, volatile, facts, limits, storing=False)
    account = turn.account()
    return LedgerReading(
        budget=account.memory.budget,
        available=account.memory.available,
        reserved=account.reserved,
        free=account.free,
        waiting=len(turn.queue),
        engines=tuple(_engine(turn, load) for load in state.loads.values()),
        devices=tuple(_device(turn, one) for one in volatile.memory.devices if not one.is_shared),
        queue=tuple(_entry(turn, one) for one in sorted(turn.queue, key=lambda one: one.place or math.inf)),
    )


def placement_reading(
    ask: ReadPlacement,
    state: SchedulerState,
    now: Moment,
    volatile: SchedulerVolatile,
    facts: Sequence[BackendFacts],
    limits: Limits,
) -> PlacementReading:
    model = (volatile.models or {}).get(ask.model_id)
    one = next((one for one in facts if one.name == ask.backend), None)
    if model is None or one is None:
        return PlacementReading()
    turn = TurnContext(state, now, volatile, facts, limits, storing=False)
    config = state.configs.get(config_key(model.id, ask.mode), ModelConfigState())
    spec = EngineSpec(
        engine_id="",
        backend=ask.backend,
        installation_id=ask.installation_id,
        model_id=model.id,
        model_ref=model.id,
        mode=ask.mode,
        context_size=model.context_size if config.context_size is None else config.context_size,
        flags=config.flags or (),
    )
    places = Placements(turn)
    found = places.of(spec, model, one)
    if not found:
        return PlacementReading()
    best = next((place for place in found if place.fits), found[-1])
    context = context_reckoned(spec.context_size, model.context_length)
    return PlacementReading(
        layers=best.spec.layers,
        placement=best.spec.placement,
        reason=best.reason,
        context=context,
        context_for_all=0 if best.is_whole else places.context_for_all(spec, model, one, context),
    )


def _device(turn: TurnContext, device: Device) -> DeviceAccount:
    account = turn.account(device.id)
    return DeviceAccount(
        id=device.id,
        name=device.name,
        total=device.total,
        budget=device.budget,
        available=device.available,
        reserved=account.reserved,
        free=account.free,
    )


def _entry(turn: TurnContext, waiting: Waiting) -> QueueEntry:
    waited = turn.now.monotonic - waiting.since
    left = waiting.until - turn.now.monotonic if waiting.until else turn.limits.max_wait - waited
    return QueueEntry(
        request_id=waiting.request_id,
        model_ref=waiting.model_ref,
        mode=waiting.mode,
        place=waiting.place,
        phase=waiting.phase,
        message=waiting.said,
        follows=waiting.follows,
        waited=round(waited, 3),
        left=round(max(0.0, left), 3),
        caller=str(waiting.caller),
    )


def _engine(turn: TurnContext, load: LoadState) -> EngineAccount:
    spec = load.spec
    reading = turn.volatile.gates.get(spec.engine_id)
    engine = turn.volatile.engine(spec.engine_id)
    measured = turn.volatile.measured.get(spec.engine_id)
    keep = turn.keep_alive(spec.model_id, spec.mode)
    model = (turn.volatile.models or {}).get(spec.model_id)
    ready = engine is not None and engine.state == "ready"
    idle = ready and reading is not None and not reading.inside
    idle_for = max(0.0, turn.now.monotonic - reading.idle_since) if idle and reading is not None else None
    return EngineAccount(
        engine_id=spec.engine_id,
        reserved=holding(spec, turn.volatile),
        measured=measured.now if measured is not None else None,
        peak=measured.peak if measured is not None else None,
        device=spec.device,
        device_reserved=holding(spec, turn.volatile, spec.device) if spec.device else 0,
        device_measured=measured.device if measured is not None else None,
        context_size=context_reckoned(spec.context_size, model.context_length if model is not None else 0),
        slots=spec.slots,
        used=reading.used if reading is not None else 0,
        inside=reading.inside if reading is not None else 0,
        served=reading.served if reading is not None else 0,
        queue=sum(fits(spec, waiting) for waiting in turn.queue),
        keep_alive=keep,
        idle_seconds=round(idle_for, 3) if idle_for is not None else None,
        expires_in=round(max(0.0, keep - idle_for), 3) if idle_for is not None and keep >= 0 else None,
        cause=load.cause,
    )
