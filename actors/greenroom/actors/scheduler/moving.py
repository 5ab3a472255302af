"""Which idle engine is loaded again, because more of its model would lie on graphics devices now.

A model is placed when it is loaded. Where a device was full then, its layers lie in memory, and stay there
after the device has room again. An engine is moved when

1. it is ready and idle, no request waits for anything, and it has been idle for `IDLE` seconds, but for less
   than half of its keep-alive: one that nothing uses is soon unloaded anyway;
2. without it there is room, beside all other engines, for all of its layers on devices, or for a quarter of
   them more than now; an engine that cannot divide its model is on no device, and could be;
3. that has been so for `STEADY` seconds;
4. the model was not moved within `PAUSE` seconds: other programs that come and go must not have it loaded
   again and again.
"""

from __future__ import annotations

import msgspec

from greenroom.actors.bounded_maps import remembered
from greenroom.actors.gates import GateReading
from greenroom.actors.scheduler.effects import LoadAgain
from greenroom.actors.scheduler.eviction import eviction
from greenroom.actors.scheduler.holdings import devices_of, holding
from greenroom.actors.scheduler.placement import Placement, Placements
from greenroom.actors.scheduler.state import MOVED, Move, config_key
from greenroom.actors.scheduler.turn_context import TurnContext
from greenroom.actors.values import Engine, EngineSpec

IDLE = 10.0
STEADY = 30.0
PAUSE = 600.0
_REMEMBERED = 64
LOOK = 5.0
"""Seconds between two looks at where an engine could lie."""


def better_place(turn: TurnContext, engine: Engine, reading: GateReading) -> Placement | None:
    """Where it is to lie from now on; None while it stays where it is."""
    spec, now = engine.spec, turn.now.monotonic
    if _is_whole(spec) or turn.queue:
        return None
    key, keep = config_key(spec.model_id, spec.mode), turn.keep_alive(spec.model_id, spec.mode)
    moved = turn.volatile.moved.get(key)
    idle = now - reading.idle_since
    if idle < IDLE or (0 <= keep <= 2 * idle) or (moved is not None and now - moved < PAUSE):  # 1, 4
        return None
    before = turn.volatile.moves.get(spec.engine_id, Move())
    if before.looked_at and now - before.looked_at < LOOK:
        turn.wakes.append(before.looked_at + LOOK)
        return None
    place = _place(turn, engine)
    since = (before.since or now) if place is not None else 0.0
    move = Move(since=since, looked_at=now)
    turn.update(moves={**turn.volatile.moves, spec.engine_id: move})
    turn.wakes.append(now + LOOK)
    return place if place is not None and now - since >= STEADY else None  # 3


def move(turn: TurnContext, engine: Engine, place: Placement) -> None:
    """End an idle engine, and have its model loaded again where it is to lie."""
    spec = engine.spec
    key, load = config_key(spec.model_id, spec.mode), turn.state.loads[spec.engine_id]
    need = place.needs[0]
    evicted = eviction(
        engine, turn.volatile, turn.now, MOVED, needed=need.size, free=need.account.free, device=need.device
    )
    evicted = msgspec.structs.replace(
        evicted,
        # Of the machine's memory: it may hold none of that device.
        memory=holding(spec, turn.volatile),
        on_devices=place.spec.on_devices,
        layers=place.spec.layers,
    )
    again = LoadAgain(
        model_id=spec.model_id,
        model_ref=spec.model_ref,
        mode=spec.mode,
        backend=spec.backend,
        keep_alive=-1.0 if load.kept else turn.volatile.keep_alive.get(key),
    )
    turn.record(evicted, cause=load.cause)
    if turn.storing:
        turn.effects.append(again)
        turn.update(moved=remembered(turn.volatile.moved, key, turn.now.monotonic, _REMEMBERED))


def _is_whole(spec: EngineSpec) -> bool:
    """All of it lies on devices."""
    return spec.on_devices >= spec.layers if spec.layers else bool(spec.device)


def _place(turn: TurnContext, engine: Engine) -> Placement | None:
    """Where it would be placed now, if that is better by far."""
    spec = engine.spec
    model = (turn.volatile.models or {}).get(spec.model_id)
    facts = next((one for one in turn.facts if one.name == spec.backend), None)
    if model is None or facts is None:
        return None
    same = EngineSpec(
        engine_id="",
        backend=spec.backend,
        installation_id=spec.installation_id,
        model_id=spec.model_id,
        model_ref=spec.model_ref,
        mode=spec.mode,
        context_size=spec.context_size,
        flags=spec.flags,
    )
    places = Placements(_without(turn, engine)).of(same, model, facts)
    place = next((one for one in places if one.fits), None)
    return place if place is not None and _is_better(place, spec) else None


def _is_better(place: Placement, spec: EngineSpec) -> bool:  # 2
    if not spec.layers:
        return bool(place.spec.device) and not spec.device
    more = place.spec.on_devices - spec.on_devices
    return more > 0 and (place.is_whole or more >= max(1, spec.layers // 4))


def _without(turn: TurnContext, engine: Engine) -> TurnContext:
    """The same turn, had this engine ended."""
    spec, volatile = engine.spec, turn.volatile
    freed = {device: holding(spec, volatile, device) for device in ("", *devices_of(spec))}
    devices = tuple(
        msgspec.structs.replace(one, available=one.available + freed.get(one.id, 0))
        if one.available is not None
        else one
        for one in volatile.memory.devices
    )
    memory = msgspec.structs.replace(
        volatile.memory, available=volatile.memory.available + freed[""], devices=devices
    )
    engines = {
        backend: {one: it for one, it in theirs.items() if one != spec.engine_id}
        for backend, theirs in volatile.engines.items()
    }
    loads = {one: load for one, load in turn.state.loads.items() if one != spec.engine_id}
    return TurnContext(
        msgspec.structs.replace(turn.state, loads=loads),
        turn.now,
        msgspec.structs.replace(volatile, memory=memory, engines=engines),
        turn.facts,
        turn.limits,
        storing=False,
    )
