"""Where an engine could have its memory: the machine's alone, or a graphics device's and a little beside it.

A device's memory is a pool of its own: reserved, measured and made free apart from the machine's. Memory that
a graphics processor shares with the machine, as on Apple silicon, is the machine's.
"""

from __future__ import annotations

import msgspec

from greenroom.actors.scheduler.context import TurnContext
from greenroom.actors.scheduler.ledger import (
    GROWTH,
    Account,
    Capacity,
    Device,
    default_prompt_cache,
    expected,
    larger,
    reservation_for,
)
from greenroom.actors.scheduler.state import ModelConfigState, config_key, footprint_key
from greenroom.actors.values import BackendFacts, EngineSpec, Model, Reservation


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
        return max(0, self.size - self.account.free)


class Placement(msgspec.Struct, frozen=True, kw_only=True):
    """One way to place an engine: its spec with its reservations, and their pools, a device first."""

    spec: EngineSpec
    needs: tuple[Need, ...]

    @property
    def fits(self) -> bool:
        return not any(need.lacking for need in self.needs)

    @property
    def room(self) -> int:
        """What would be left where it is tightest."""
        return self.needs[0].account.free - self.needs[0].size


def _with(spec: EngineSpec, capacity: Capacity) -> EngineSpec:
    return msgspec.structs.replace(spec, slots=capacity.slots, prompt_cache=capacity.prompt_cache)


class Placements:
    def __init__(self, turn: TurnContext) -> None:
        self._turn = turn

    def of(self, spec: EngineSpec, model: Model, facts: BackendFacts) -> list[Placement]:
        """Everywhere an engine could go with the fewest slots it may have; `spec` has no reservations yet."""
        smallest, _ = self._range(spec, model, facts)
        devices = self._turn.volatile.memory.devices if facts.device else ()
        if not devices:
            return [self._on_machine(spec, model, facts, smallest)]
        return [self._on_device(spec, model, facts, smallest, device) for device in devices]

    def grown(self, place: Placement, model: Model, facts: BackendFacts) -> Placement:
        """The same place with as many slots, and as large a prompt cache, as the ledger has room for."""
        device = next(
            (one for one in self._turn.volatile.memory.devices if one.id == place.spec.device), None
        )
        spec = msgspec.structs.replace(place.spec, device="", device_total=0)
        _, sizes = self._range(spec, model, facts)
        for capacity in sizes:
            if device is None:
                grown = self._on_machine(spec, model, facts, capacity)
            else:
                grown = self._on_device(spec, model, facts, capacity, device)
            if all(
                more.size - need.size <= GROWTH * max(0, need.account.free - need.size)
                for need, more in zip(place.needs, grown.needs, strict=True)
            ):
                return grown
        return place

    def _range(self, spec: EngineSpec, model: Model, facts: BackendFacts) -> tuple[Capacity, list[Capacity]]:
        """The smallest capacity an engine may have, and all that it may grow to, the largest first.

        What is configured, for the model or for all, is never reduced: if it does not fit, nothing is loaded.
        """
        turn, limits = self._turn, self._turn.limits
        if not facts.slots:
            return Capacity(), []
        config = turn.state.configs.get(config_key(spec.model_id, spec.mode), ModelConfigState())
        slots = config.slots or limits.slots or 0
        cache: int | None = None
        if facts.prompt_cache:
            wanted = limits.prompt_cache if config.prompt_cache is None else config.prompt_cache
            cache = wanted if wanted is not None and wanted >= 0 else None
        asked = cache is not None
        smallest = Capacity(
            slots=slots or 1,
            prompt_cache=cache if asked or not facts.prompt_cache else 0,
            shares_cache=facts.shares_cache,
        )
        most = default_prompt_cache(model, spec.context_size) if facts.prompt_cache and not asked else 0
        return smallest, larger(smallest, slots or facts.slots, most)

    def _on_machine(
        self, spec: EngineSpec, model: Model, facts: BackendFacts, capacity: Capacity
    ) -> Placement:
        account = self._turn.account()
        reservation = reservation_for(model, spec.context_size, facts.overhead, capacity)
        spec = _with(spec, capacity)
        reservation = self._learned(spec, reservation, account)
        need = Need(device="", name="", size=reservation.total, account=account)
        placed = msgspec.structs.replace(spec, memory=reservation.total, reservations=(reservation,))
        return Placement(spec=placed, needs=(need,))

    def _on_device(
        self, spec: EngineSpec, model: Model, facts: BackendFacts, capacity: Capacity, device: Device
    ) -> Placement:
        turn = self._turn
        there, beside = turn.account(device.id), turn.account()
        # Prompts that are kept lie in the machine's memory, wherever the engine computes.
        kept = capacity.prompt_cache or 0
        on_device = msgspec.structs.replace(capacity, prompt_cache=None)
        placed = msgspec.structs.replace(_with(spec, capacity), device=device.id, device_total=device.total)
        reservation = reservation_for(model, spec.context_size, facts.overhead, on_device, device.id)
        reservation = self._learned(placed, reservation, there)
        rest = self._learned(placed, Reservation(compute=facts.overhead, prompt_cache=kept), beside)
        needs = (
            Need(device=device.id, name=device.name, size=reservation.total, account=there),
            Need(device="", name="", size=rest.total, account=beside),
        )
        placed = msgspec.structs.replace(
            placed, memory=rest.total, device_memory=reservation.total, reservations=(reservation, rest)
        )
        return Placement(spec=placed, needs=needs)

    def _learned(self, spec: EngineSpec, reservation: Reservation, account: Account) -> Reservation:
        """The reservation with what engines of this kind were measured to hold."""
        key = footprint_key(spec, on_device=bool(reservation.device))
        measured = self._turn.state.footprints.get(key, 0)
        need = expected(reservation.total, reservation.claimable, measured, account)
        return msgspec.structs.replace(reservation, learned=need - reservation.total)
