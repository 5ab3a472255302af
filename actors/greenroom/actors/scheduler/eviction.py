"""What is evicted: which engines end for others, or because a command asks for it.

- `room_for`: when a load does not fit, the least recently used idle engines, as few as possible.
- `unloadable` and `idle_only`: what `unload`, the removal of a model and a new configuration end.

Engines in use, pinned engines and those that requests are queued for never make room for another model. An
evicted engine serves the requests inside it to their end; `reconcile` stops it then.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from greenroom.actors.kernel.clock import Moment
from greenroom.actors.kernel.core import refuse
from greenroom.actors.kernel.errors import Refusal
from greenroom.actors.scheduler.events import EvictionDecided
from greenroom.actors.scheduler.holdings import device_footprint, footprint, holding
from greenroom.actors.scheduler.messages import Unload
from greenroom.actors.scheduler.placement import Need, Placement
from greenroom.actors.scheduler.state import SchedulerState, SchedulerVolatile, Waiting, fits
from greenroom.actors.scheduler.turn_context import TurnContext
from greenroom.actors.values import Engine, EngineSpec


class Holding(msgspec.Struct, frozen=True, kw_only=True):
    """An idle engine that could be evicted."""

    engine_id: str
    memory: int
    idle_since: float


class Room(msgspec.Struct, frozen=True, kw_only=True):
    """What must end for a place."""

    place: Placement
    victims: tuple[tuple[str, Need], ...]
    """Engine ids, and what each is ended for."""


def fewest_victims(needed: int, idle: Sequence[Holding]) -> tuple[Holding, ...]:
    """The least recently used idle engines that together free `needed` bytes, as few as possible.

    Empty when all of them together do not suffice, so that none is evicted without effect.
    """
    if needed <= 0:
        return ()
    oldest_first = sorted(idle, key=lambda one: one.idle_since)
    chosen: list[Holding] = []
    freed = 0
    for one in oldest_first:
        chosen.append(one)
        freed += one.memory
        if freed >= needed:
            break
    if freed < needed:
        return ()
    # A later, larger victim may have made earlier, smaller ones unnecessary: let the most recent go free.
    for one in sorted(chosen, key=lambda one: -one.idle_since):
        if freed - one.memory >= needed:
            chosen.remove(one)
            freed -= one.memory
    return tuple(chosen)


# room for a load


def make_room(turn: TurnContext, room: Room, waiting: Waiting) -> None:
    for one, need in room.victims:
        engine = turn.volatile.engine(one)
        assert engine is not None
        evicted = eviction(
            engine,
            turn.volatile,
            turn.now,
            "room",
            in_favour_of=waiting.model_ref,
            needed=need.size,
            free=need.account.free,
            device=need.device,
        )
        turn.record(evicted, cause=waiting.asked_by)


def room_for(turn: TurnContext, places: Sequence[Placement]) -> Room | None:
    """The place for which the fewest idle engines must end; None when ending all would not suffice."""
    rooms = [room for place in places if (room := _room(turn, place)) is not None]
    return min(rooms, key=lambda room: len(room.victims), default=None)


def _room(turn: TurnContext, place: Placement) -> Room | None:
    volatile = turn.volatile
    victims: dict[str, Need] = {}
    for need in place.needs:
        freed = sum(
            holding(engine.spec, volatile, need.device)
            for one in victims
            if (engine := volatile.engine(one)) is not None
        )
        lacking = need.size - need.account.free - turn.coming(need.device) - freed
        if lacking <= 0:
            continue
        more = fewest_victims(
            lacking, [one for one in _idle(turn, need.device) if one.engine_id not in victims]
        )
        if not more:
            return None
        victims |= dict.fromkeys((one.engine_id for one in more), need)
    return Room(place=place, victims=tuple(victims.items()))


def _idle(turn: TurnContext, device: str) -> list[Holding]:
    return [
        Holding(engine_id=one.spec.engine_id, memory=held, idle_since=reading.idle_since)
        for one, reading, held in turn.evictable(device)
    ]


def yielding(turn: TurnContext, device: str) -> int:
    """Bytes that will be free in time: of engines that are ending, and of those that are not pinned."""
    leaving = {one.spec.engine_id for one in turn.leaving()}
    return sum(
        holding(one.spec, turn.volatile, device)
        for one in turn.volatile.alive()
        if one.spec.engine_id in leaving or turn.keep_alive(one.spec.model_id, one.spec.mode) >= 0
    )


# what commands end


def unloadable(
    ask: Unload, state: SchedulerState, volatile: SchedulerVolatile
) -> tuple[list[Engine], list[str]]:
    """The engines that match and may end, and a sentence about each that is in use and is left alone.

    A load may take long. Naming its model ends it; with `all`, a load that requests wait for is in use.
    """
    found: list[Engine] = []
    busy: list[str] = []
    for load in state.loads.values():
        spec = load.spec
        wanted = ask.all or spec.model_id in ask.model_ids or (ask.backend and not ask.model_ids)
        engine = volatile.engine(spec.engine_id)
        if engine is None or not wanted or ask.backend not in ("", spec.backend):
            continue
        named = engine.state == "starting" and spec.model_id in ask.model_ids
        users = _users(spec, volatile)
        if named or ask.force or not users:
            found.append(engine)
        else:
            busy.append(_in_use(spec, volatile, users))
    return found, busy


def _in_use(spec: EngineSpec, volatile: SchedulerVolatile, users: int) -> str:
    return f"{spec.model_ref} is in use on {spec.backend} ({_who(spec, volatile, users)})."


def idle_only(
    specs: Iterable[EngineSpec], volatile: SchedulerVolatile, *, advice: str, preloads: bool = False
) -> list[Engine] | Refusal:
    """These engines; the refusal if one of them loads or has users.

    With `preloads`, engines that load without a client waiting for them are among them.
    """
    found: list[Engine] = []
    for spec in specs:
        engine, users = volatile.engine(spec.engine_id), _users(spec, volatile, preloads=not preloads)
        if users or engine is None or (engine.state == "starting" and not preloads):
            loading = f"{spec.model_ref} is being loaded."
            # What its runner has not listed yet can be ended in a moment.
            code = "begins_to_load" if engine is None and preloads and not users else "in_use"
            message = _in_use(spec, volatile, users) if users else loading
            return refuse(code, message, advice=advice, kind="conflict", subject=spec.model_ref)
        found.append(engine)
    return found


def _users(spec: EngineSpec, volatile: SchedulerVolatile, *, preloads: bool = True) -> int:
    reading = volatile.gates.get(spec.engine_id)
    inside = reading.inside if reading is not None else 0
    return inside + sum(fits(spec, one) and (preloads or not one.is_preload) for one in volatile.queue)


def _who(spec: EngineSpec, volatile: SchedulerVolatile, count: int) -> str:
    """How many requests use or wait for an engine, and some of their ids, for `greenroom why`."""
    reading = volatile.gates.get(spec.engine_id)
    names = sorted(reading.some) if reading is not None else []
    names += [one.request_id for one in volatile.queue if fits(spec, one) and not one.is_preload]
    shown = ", ".join(names[:3])
    if count > 3:
        return f"{count} requests, {shown} among them"
    return f"{count} request{'s' if count > 1 else ''}: {shown}"


def eviction(
    engine: Engine,
    volatile: SchedulerVolatile,
    now: Moment,
    reason: str,
    *,
    in_favour_of: str = "",
    needed: int = 0,
    free: int = 0,
    device: str = "",
) -> EvictionDecided:
    """The event that ends an engine, with the numbers of the pool that decided."""
    reading = volatile.gates.get(engine.spec.engine_id)
    idle = now.monotonic - reading.idle_since if reading is not None and not reading.inside else 0.0
    return EvictionDecided(
        engine_id=engine.spec.engine_id,
        model_id=engine.spec.model_id,
        model_ref=engine.spec.model_ref,
        backend=engine.spec.backend,
        reason=reason,
        in_favour_of=in_favour_of,
        idle_seconds=round(idle, 3),
        memory=holding(engine.spec, volatile, device),
        needed=needed,
        free=free,
        device=device,
        footprint=footprint(engine.spec, volatile),
        device_footprint=device_footprint(engine.spec, volatile),
        installation_id=engine.spec.installation_id if engine.spec.engine_id in volatile.gates else "",
    )
