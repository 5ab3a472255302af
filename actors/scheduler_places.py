"""Where an engine could have its memory: the machine's alone, or a graphics device's and a little beside it.

A device's memory is a pool of its own: promised, measured and made free apart from the machine's. Memory that
a graphics processor shares with the machine, as on Apple silicon, is the machine's.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from greenroom.actors import messages as msg
from greenroom.actors.facts import Engine, EngineSpec, Model
from greenroom.actors.ledger import Account, Holding, expected, fewest_victims, memory_needed
from greenroom.actors.scheduler_context import TurnContext, fits, holding
from greenroom.actors.scheduler_state import footprint_key


class Need(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine needs of one pool, in bytes."""

    device: str
    """Empty for the machine's memory."""
    name: str
    """Of the device, for people."""
    size: int
    account: Account

    @property
    def lacking(self) -> int:
        """What is not free now."""
        return max(0, self.size - self.account.free)


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """One way to place an engine: its spec with its promises, and the pools they are from, a device first."""

    spec: EngineSpec
    needs: tuple[Need, ...]

    @property
    def fits(self) -> bool:
        """Whether all of it is free now."""
        return not any(need.lacking for need in self.needs)

    @property
    def room(self) -> int:
        """What would be left where it is tightest."""
        return self.needs[0].account.free - self.needs[0].size


class Room(msgspec.Struct, frozen=True, kw_only=True):
    """What must end for a place."""

    place: Place
    victims: tuple[tuple[str, Need], ...]
    """Engine ids, and what each is ended for."""


class Places:
    """The places of one turn."""

    def __init__(self, turn: TurnContext) -> None:
        self._turn = turn

    def of(self, spec: EngineSpec, model: Model, facts: msg.BackendFacts) -> list[Place]:
        """Everywhere an engine could go; `spec` has no promises yet."""
        turn = self._turn
        least = memory_needed(model, spec.context_size, 0)
        if not facts.device or not turn.seen.memory.devices:
            account = turn.account()
            size = self._expected(spec, least + facts.overhead, least, account)
            need = Need(device="", name="", size=size, account=account)
            return [Place(spec=msgspec.structs.replace(spec, memory=size), needs=(need,))]
        places: list[Place] = []
        for device in turn.seen.memory.devices:
            there, beside = turn.account(device.id), turn.account()
            placed = msgspec.structs.replace(spec, device=device.id, device_total=device.total)
            size = self._expected(placed, least + facts.overhead, least, there, on_device=True)
            rest = self._expected(placed, facts.overhead, 0, beside)
            needs = (
                Need(device=device.id, name=device.name, size=size, account=there),
                Need(device="", name="", size=rest, account=beside),
            )
            placed = msgspec.structs.replace(placed, memory=rest, device_memory=size)
            places.append(Place(spec=placed, needs=needs))
        return places

    def _expected(
        self, spec: EngineSpec, estimate: int, least: int, account: Account, *, on_device: bool = False
    ) -> int:
        measured = self._turn.state.footprints.get(footprint_key(spec, on_device=on_device), 0)
        return expected(estimate, least, measured, account)

    def pinned(self, device: str) -> int:
        """Bytes of a pool that pinned models hold."""
        turn = self._turn
        return sum(
            holding(load.spec, turn.seen, device)
            for load in turn.state.loads.values()
            if turn.keep_alive(load.spec.model_id, load.spec.mode) < 0
        )

    def room_for(self, places: Sequence[Place]) -> Room | None:
        """The place for which the fewest idle engines must end; None when ending all would not suffice."""
        rooms = [room for place in places if (room := self._room(place)) is not None]
        return min(rooms, key=lambda room: len(room.victims), default=None)

    def _room(self, place: Place) -> Room | None:
        seen = self._turn.seen
        victims: dict[str, Need] = {}
        for need in place.needs:
            freed = sum(
                holding(engine.spec, seen, need.device)
                for one in victims
                if (engine := seen.engine(one)) is not None
            )
            lacking = need.size - need.account.free - self.coming(need.device) - freed
            if lacking <= 0:
                continue
            more = fewest_victims(
                lacking, [one for one in self._idle(need.device) if one.engine_id not in victims]
            )
            if not more:
                return None
            victims |= dict.fromkeys((one.engine_id for one in more), need)
        return Room(place=place, victims=tuple(victims.items()))

    def coming(self, device: str) -> int:
        """Bytes of engines that shall end and have not yet let go."""
        turn = self._turn
        return sum(holding(one.spec, turn.seen, device) for one in self._leaving())

    def yielding(self, device: str) -> int:
        """Bytes that time will free: of engines that end, and of those that are not pinned."""
        turn = self._turn
        leaving = {one.spec.engine_id for one in self._leaving()}
        return sum(
            holding(one.spec, turn.seen, device)
            for one in turn.seen.alive()
            if one.spec.engine_id in leaving or turn.keep_alive(one.spec.model_id, one.spec.mode) >= 0
        )

    def _leaving(self) -> list[Engine]:
        turn = self._turn
        return [one for one in turn.seen.alive() if one.spec.engine_id not in turn.state.loads]

    def _idle(self, device: str) -> list[Holding]:
        """Engines that may be ended for others: ready, empty, not pinned, not waited for, and with something
        to give there.
        """
        turn = self._turn
        return [
            Holding(
                engine_id=one.spec.engine_id,
                memory=held,
                idle_since=reading.idle_since,
            )
            for one, reading in turn.empty()
            if (held := holding(one.spec, turn.seen, device))
            and turn.keep_alive(one.spec.model_id, one.spec.mode) >= 0
            and not any(fits(one.spec, waiting) for waiting in turn.queue)
        ]
