"""Where an engine could have its memory: the machine's alone, or a graphics device's and a little beside it.

A device's memory is a pool of its own: reserved, measured and made free apart from the machine's. Memory that
a graphics processor shares with the machine, as on Apple silicon, is the machine's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec

from greenroom.actors.scheduler.layers import (
    Demand,
    Division,
    Site,
    asked_layers,
    context_that_fits,
    most_of,
    wholes,
)
from greenroom.actors.scheduler.ledger import (
    GROWTH,
    Account,
    Capacity,
    Device,
    context_reckoned,
    default_prompt_cache,
    expected,
    larger,
    reservation_for,
)
from greenroom.actors.scheduler.state import ModelConfigState, config_key, excess_key, footprint_key
from greenroom.actors.scheduler.turn_context import TurnContext
from greenroom.actors.sizes import format_size
from greenroom.actors.values import BackendFacts, EngineSpec, Installation, LayersOn, Model, Reservation

_NOTICED = 100_000_000
"""Bytes that other programs must hold of a device to be mentioned."""


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
    rank: int = 0
    """Those with a lower one are preferred, even if engines must end for them."""
    reason: str = ""
    """Why its layers lie where they do, as a sentence."""

    @property
    def fits(self) -> bool:
        return not any(need.lacking for need in self.needs)

    @property
    def is_whole(self) -> bool:
        """All layers lie on devices."""
        return bool(self.spec.layers) and self.spec.on_devices == self.spec.layers

    @property
    def room(self) -> int:
        """What would be left where it is tightest."""
        return self.needs[0].account.free - self.needs[0].size


def _with(spec: EngineSpec, capacity: Capacity) -> EngineSpec:
    return msgspec.structs.replace(
        spec, slots=capacity.slots, prompt_cache=capacity.prompt_cache, batch=capacity.batch
    )


def _batch(spec: EngineSpec, model: Model, facts: BackendFacts) -> int:
    """Tokens that must be computed at once: as many as an input may have, unless the last token's vector is
    all that counts, which can be computed batch by batch."""
    splits = model.pooling == "last" and not any(flag.startswith("--pooling") for flag in spec.flags)
    if spec.mode == "completion" or not facts.one_batch or splits:
        return 0
    return context_reckoned(spec.context_size, model.context_length)


def _runtime(installation: Installation | None, facts: BackendFacts) -> str | None:
    """What an installation computes through: empty for anything, None for the processor."""
    if installation is not None and installation.managed and facts.runtimes:
        return dict(facts.runtimes).get(installation.variant)
    return "" if facts.device else None


class Placements:
    def __init__(self, turn: TurnContext) -> None:
        self._turn = turn

    def of(self, spec: EngineSpec, model: Model, facts: BackendFacts) -> list[Placement]:
        """Everywhere an engine could go with the fewest slots it may have, the preferred places first; `spec`
        has no reservations yet. None if it must go to a device and there is none.
        """
        smallest, _ = self._range(spec, model, facts)
        installation = self._installation(spec)
        runtime = _runtime(installation, facts)
        devices = self._devices(runtime)
        required = self._turn.requires_device(spec)
        told = installation is None or installation.managed or facts.device
        # Without a device it is better not to decide for programs that may find one.
        if facts.divides and told and (devices or runtime not in ("", "metal")):
            places = self._divided(spec, model, facts, smallest, devices)
            if not devices:
                reason = f"No device was found that {runtime} can use, so the processor computes."
                if runtime is None:
                    there = bool(self._turn.volatile.memory.devices)
                    reason = "This installation computes on the processor." if there else ""
                places = [msgspec.structs.replace(one, reason=reason) for one in places]
            if not required:
                return places
            whole = [one for one in places if one.is_whole]
            # Too large for all of them together: the numbers of the largest say by how much.
            return whole or [self._on_largest(spec, model, facts, smallest, devices)] if devices else []
        own = [one for one in devices if not one.is_shared]
        if own:
            return [self._on_device(spec, model, facts, smallest, device) for device in own]
        return [self._on_machine(spec, model, facts, smallest)] if devices or not required else []

    def _installation(self, spec: EngineSpec) -> Installation | None:
        status = (self._turn.volatile.statuses or {}).get(spec.backend)
        installations = status.installations if status is not None else ()
        return next((one for one in installations if one.id == spec.installation_id), None)

    def _devices(self, runtime: str | None) -> list[Device]:
        if runtime is None:
            return []
        devices = self._turn.volatile.memory.devices
        return [one for one in devices if not (runtime and one.runtimes) or runtime in one.runtimes]

    def grown(self, place: Placement, model: Model, facts: BackendFacts) -> Placement:
        """The same place with as many slots, and as large a prompt cache, as the ledger has room for."""
        device = next(
            (one for one in self._turn.volatile.memory.devices if one.id == place.spec.device), None
        )
        spec = msgspec.structs.replace(place.spec, device="", device_total=0)
        _, sizes = self._range(spec, model, facts)
        for capacity in sizes:
            if place.spec.layers:
                grown = self._with_capacity(place, model, facts, capacity)
            elif device is None:
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
        keeps_prompts = facts.prompt_cache and spec.mode == "completion"
        if keeps_prompts:
            wanted = limits.prompt_cache if config.prompt_cache is None else config.prompt_cache
            cache = wanted if wanted is not None and wanted >= 0 else None
        asked = cache is not None
        smallest = Capacity(
            slots=slots or 1,
            prompt_cache=cache if asked or not facts.prompt_cache else 0,
            batch=_batch(spec, model, facts),
            shares_cache=facts.shares_cache,
        )
        most = default_prompt_cache(model, spec.context_size) if keeps_prompts and not asked else 0
        most_slots = slots or self._default_slots(spec, facts)
        return smallest, larger(smallest, most_slots, most, alone=facts.prompt_cache_alone)

    def _default_slots(self, spec: EngineSpec, facts: BackendFacts) -> int:
        installation = self._installation(spec)
        variant = facts.variant_of(installation) if installation is not None else ""
        return next((one.slots for one in facts.variants if one.name == variant), 0) or facts.slots

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

    # models that are divided

    def _divided(
        self,
        spec: EngineSpec,
        model: Model,
        facts: BackendFacts,
        capacity: Capacity,
        devices: Sequence[Device],
    ) -> list[Placement]:
        """Where a model's layers could lie.

        1. All of them on one device, or on as few as possible together.
        2. As many as fit on devices, and the rest in memory: beside the engines that are idle there; without
           them if that is a quarter of all layers more; or without those in use too, for which it would wait.
        3. All in memory, and the processor computes.

        Devices with memory of their own come before those that share the machine's. The number of layers that
        the user configured is never exceeded.
        """
        demand = Demand(model, spec.context_size, capacity, facts)
        # A model that must lie on devices as a whole is not loaded in part because of an older flag.
        required = self._turn.requires_device(spec)
        most = None if required else asked_layers(spec.flags, facts.layer_flags)
        if not any(not one.is_shared for one in devices):
            found = [self._shared(demand, one, most) for one in devices[:1]]
            return [self._placed(spec, capacity, one, 0) for one in found or [demand.on_processor()]]
        own = [one for one in devices if not one.is_shared]
        now = self._sites(spec, own, lambda one: self._turn.account(one.id).free)
        ended = self._sites(spec, own, self._free_without_idle)
        empty = self._sites(spec, own, lambda one: one.budget)
        ranked: list[tuple[int, Division]] = []
        if most is None or most >= demand.layers:  # 1
            ranked += [(0, one) for sites in (now, ended, empty) for one in wholes(demand, sites)]
        beside, without, alone = (most_of(demand, sites, most) for sites in (now, ended, empty))  # 2
        if without.on_devices - beside.on_devices >= max(1, demand.layers // 4):
            ranked.append((1, without))
        ranked += [(2, beside), (3, without), (5, alone), (4, demand.on_processor())]  # 3
        unlike: dict[tuple[LayersOn, ...], Placement] = {}
        for rank, division in sorted(ranked, key=lambda pair: pair[0]):
            if division.placement not in unlike:
                unlike[division.placement] = self._placed(spec, capacity, division, rank)
        return list(unlike.values())

    def _on_largest(
        self,
        spec: EngineSpec,
        model: Model,
        facts: BackendFacts,
        capacity: Capacity,
        devices: Sequence[Device],
    ) -> Placement:
        demand = Demand(model, spec.context_size, capacity, facts)
        largest = max(devices, key=lambda one: one.budget)
        division = demand.divided([LayersOn(device=largest.id, layers=demand.layers)])
        return self._placed(spec, capacity, division, 0)

    def context_for_all(self, spec: EngineSpec, model: Model, facts: BackendFacts, below: int) -> int:
        """The largest context, of half of `below`, a quarter and so on, with which all layers would lie on
        devices now; 0 for none.
        """
        devices = self._devices(_runtime(self._installation(spec), facts))
        own = [one for one in devices if not one.is_shared] if facts.divides else []
        sites = self._sites(spec, own, lambda one: self._turn.account(one.id).free)
        smallest, _ = self._range(spec, model, facts)
        return context_that_fits(model, smallest, facts, sites, below)

    def _free_without_idle(self, device: Device) -> int:
        turn = self._turn
        idle = sum(held for *_, held in turn.evictable(device.id))
        return min(device.budget, turn.account(device.id).free + idle + turn.coming(device.id))

    def _sites(
        self, spec: EngineSpec, devices: Sequence[Device], room: Callable[[Device], int]
    ) -> list[Site]:
        learned = self._turn.state.footprints.get(excess_key(spec, on_device=True), 0)
        return [Site(device=one.id, room=room(one), learned=learned) for one in devices]

    def _shared(self, demand: Demand, device: Device, most: int | None) -> Division:
        """On a device that computes in the machine's memory: what it takes counts there, and once."""
        found = most_of(demand, [Site(device=device.id, room=device.budget)], most)
        return msgspec.structs.replace(demand.on_processor(), placement=found.placement)

    def _with_capacity(
        self, place: Placement, model: Model, facts: BackendFacts, capacity: Capacity
    ) -> Placement:
        """The same layers on the same devices."""
        demand = Demand(model, place.spec.context_size, capacity, facts)
        if len(place.needs) > 1:
            devices = self._turn.volatile.memory.devices
            division = demand.divided(place.spec.placement, self._sites(place.spec, devices, lambda _: 0))
        else:
            division = msgspec.structs.replace(demand.on_processor(), placement=place.spec.placement)
        grown = self._placed(place.spec, capacity, division, place.rank)
        return msgspec.structs.replace(grown, reason=place.reason)

    def _placed(self, spec: EngineSpec, capacity: Capacity, division: Division, rank: int) -> Placement:
        turn = self._turn
        devices = {one.id: one for one in turn.volatile.memory.devices}
        machine = turn.account()
        learned = turn.state.footprints.get(excess_key(spec, on_device=False), 0)
        largest = max(division.placement, key=lambda one: one.layers, default=None)
        device = largest.device if largest is not None else ""
        rest = division.memory
        if division.devices:
            rest = msgspec.structs.replace(rest, learned=max(learned, -rest.compute))
        else:
            kind = msgspec.structs.replace(_with(spec, capacity), device=device)
            rest = self._learned(kind, rest, machine)
        needs = [
            Need(
                device=one.device,
                name=devices[one.device].name,
                size=one.total,
                account=turn.account(one.device),
            )
            for one in division.devices
        ]
        placed = msgspec.structs.replace(
            _with(spec, capacity),
            device=device,
            device_total=devices[device].total if device else 0,
            device_memory=sum(one.total for one in division.devices if one.device == device),
            layers=division.layers,
            placement=division.placement,
            memory=rest.total,
            reservations=(*division.devices, rest),
        )
        needs.append(Need(device="", name="", size=rest.total, account=machine))
        reason = self._reason(division, devices)
        return Placement(spec=placed, needs=tuple(needs), rank=rank, reason=reason)

    def _reason(self, division: Division, devices: Mapping[str, Device]) -> str:
        count, names = division.layers, [devices[one.device].name for one in division.placement]
        if not names:
            own = [one for one in devices.values() if not one.is_shared]
            rooms = "; ".join(map(self._room_text, own))
            return f"No layer lies on a device, so the processor computes{f': {rooms}' if rooms else ''}."
        if len(names) == 1:
            where = names[0]
        else:
            each = [f"{one.layers} on {name}" for one, name in zip(division.placement, names, strict=True)]
            where = f"several devices, since none has room for all ({', '.join(each)})"
        if division.is_whole:
            return f"All {count} layers lie on {where}."
        rooms = "; ".join(self._room_text(devices[one.device]) for one in division.placement)
        return (
            f"{division.on_devices} of {count} layers lie on {where}, the other "
            f"{count - division.on_devices} in memory: {rooms}."
        )

    def _room_text(self, device: Device) -> str:
        account = self._turn.account(device.id)
        unreserved = max(0, account.memory.budget - account.reserved)
        others = unreserved - account.free
        text = f"{format_size(account.free)} of {format_size(device.total)} is free on {device.name}"
        return f"{text}, where other programs hold {format_size(others)}" if others > _NOTICED else text
