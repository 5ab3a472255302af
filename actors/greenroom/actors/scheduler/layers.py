"""How a model is divided between graphics devices and the machine's memory. Pure; sizes are bytes.

Layers are counted as llama.cpp counts them: those of the model, then its output. Devices take the last ones,
so the output is the first to lie on one; the input always stays in memory. Beside its layers a device needs
their key/value cache, what is computed there for a batch of tokens, and what its driver takes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import msgspec

from greenroom.actors.scheduler.ledger import MASK, Capacity, context_reckoned, reservation_for
from greenroom.actors.values import BackendFacts, LayersOn, Model, ModelLayers, Reservation

BATCH = 512
"""Tokens computed at once."""
_COPIES = 4
"""Of a batch's mask on each of several devices, which then work on batches in turn."""
_ASSUMED = 16
"""Layers of a model whose header does not tell. With more, each is smaller than assumed."""


def parts_of(model: Model) -> ModelLayers:
    """Its layers; equal ones where they are not known."""
    if model.layers is not None and model.layers.count:
        return model.layers
    each = (model.size - model.projector_size) // (_ASSUMED + 1)
    return ModelLayers(
        weights=(each,) * _ASSUMED,
        cache=(-(-model.kv_bytes_per_token // _ASSUMED),) * _ASSUMED,
        input=each,
        output=each,
        largest=each,
    )


class Site(msgspec.Struct, frozen=True, kw_only=True):
    """A device with memory of its own, and how much of it an engine may take."""

    device: str
    room: int
    learned: int = 0
    """What engines of this kind were measured to hold there beyond their parts; negative when less."""


class Division(msgspec.Struct, frozen=True, kw_only=True):
    """Layers on devices, and what is reserved for them in each pool."""

    layers: int
    """All of the model, the output included."""
    placement: tuple[LayersOn, ...]
    """The first layers first."""
    devices: tuple[Reservation, ...]
    """One for each device of the placement, in the same order."""
    memory: Reservation

    @property
    def on_devices(self) -> int:
        return sum(one.layers for one in self.placement)

    @property
    def is_whole(self) -> bool:
        """Nothing but the input is left to the processor."""
        return self.on_devices == self.layers

    @property
    def main(self) -> Reservation | None:
        """On the device with the most layers, the first of equal ones."""
        pairs = zip(self.devices, self.placement, strict=True)
        return max(pairs, key=lambda pair: pair[1].layers, default=(None, None))[0]


class Demand:
    """What an engine of one model, context and capacity needs, wherever its layers lie."""

    def __init__(self, model: Model, context_size: int, capacity: Capacity, facts: BackendFacts) -> None:
        self._model = model
        self._parts = parts_of(model)
        self._context_size = context_size
        self._capacity = capacity
        self._facts = facts
        self._context = context_reckoned(context_size, model.context_length)
        self._slots = 1 if capacity.shares_cache else max(1, capacity.slots)
        self.layers = self._parts.count
        self._weights = _sums([*self._parts.weights, self._parts.output])
        self._cache = _sums([*self._parts.cache, 0])

    def divided(self, placement: Sequence[LayersOn], sites: Sequence[Site] = ()) -> Division:
        """What this placement takes; `sites` say what was learned about its devices."""
        learned = {site.device: site.learned for site in sites}
        first = self.layers - sum(one.layers for one in placement)
        whole, several = first == 0, len(placement) > 1
        reservations: list[Reservation] = []
        begin = first
        for number, one in enumerate(placement):
            end = begin + one.layers
            reservation = self._on_device(
                one.device, begin, end, main=number == 0, whole=whole, several=several
            )
            reservations.append(_with_learned(reservation, learned.get(one.device, 0)))
            begin = end
        return Division(
            layers=self.layers,
            placement=tuple(placement),
            devices=tuple(reservations),
            memory=self._in_memory(first),
        )

    def on_processor(self) -> Division:
        return self.divided(())

    def filled(self, sites: Sequence[Site], most: int | None = None) -> Division | None:
        """As many layers as these devices take, in their order, `most` at most; None for none.

        The last device is filled first, from the output backwards, then the one before it. A device that
        would get no layer is left out.
        """
        most = self.layers if most is None else min(most, self.layers)
        if most == self.layers and (whole := self._fill(sites, 0, whole=True)) is not None:
            if sum(one.layers for one in whole) == self.layers:
                return self.divided(whole, sites)
            most -= 1
        part = self._fill(sites, self.layers - most, whole=False)
        return self.divided(part, sites) if part else None

    def _fill(self, sites: Sequence[Site], first: int, *, whole: bool) -> list[LayersOn]:
        """Layers from `first` on; fewer where they do not fit."""
        placed: list[LayersOn] = []
        end = self.layers
        several = len(sites) > 1
        for number in range(len(sites) - 1, -1, -1):
            site, begin = sites[number], end
            while begin > first:
                wider = self._on_device(site.device, begin - 1, end, main=True, whole=whole, several=several)
                if _with_learned(wider, site.learned).total > site.room:
                    break
                begin -= 1
            if begin < end:
                placed.insert(0, LayersOn(device=site.device, layers=end - begin))
            end = begin
        return placed

    def _on_device(
        self, device: str, begin: int, end: int, *, main: bool, whole: bool, several: bool
    ) -> Reservation:
        """Layers from `begin` up to `end`. The main device has the projector too."""
        parts = self._parts
        batch = self._capacity.batch or BATCH
        # Only the last token of each slot goes through the output, unless all of them make one vector.
        logits = (self._capacity.batch or self._slots) * parts.logits if end == self.layers else 0
        mask = MASK * self._context * (_COPIES if several and whole else 1)
        computed = batch * (parts.activations + mask) + logits
        return Reservation(
            device=device,
            weights=self._weights[end] - self._weights[begin],
            projector=self._model.projector_size if main else 0,
            cache=self._context * (self._cache[end] - self._cache[begin]),
            slots=self._slots,
            batch=computed if self._capacity.batch else 0,
            compute=self._facts.device_overhead
            + (0 if self._capacity.batch else computed)
            # To read long prompts, a device computes with copies of what lies in memory.
            + (0 if whole else 2 * parts.largest),
        )

    def _in_memory(self, count: int) -> Reservation:
        """The first layers, and what is beside a device; without a device, all of the model."""
        if count == self.layers:
            return reservation_for(self._model, self._context_size, self._facts.overhead, self._capacity)
        return Reservation(
            weights=self._parts.input + self._weights[count],
            cache=self._context * self._cache[count],
            slots=self._slots,
            prompt_cache=self._capacity.prompt_cache or 0,
            compute=self._facts.overhead
            + ((self._capacity.batch or BATCH) * self._parts.activations if count else 0),
        )


def asked_layers(flags: Sequence[str], names: Sequence[str]) -> int | None:
    """The number of layers that the user's flags ask for; None for as many as fit."""
    words = [part for flag in flags for part in flag.split("=", 1)]
    asked = [after for word, after in pairwise(words) if word in names]
    return int(asked[-1]) if asked and asked[-1].isdigit() else None


def wholes(demand: Demand, sites: Sequence[Site]) -> Iterator[Division]:
    """All layers on devices: on each alone that can take them, else on as few as possible together."""
    alone = [
        division for site in sites if (division := demand.filled([site])) is not None and division.is_whole
    ]
    yield from alone
    largest_last = sorted(sites, key=lambda site: site.room)
    for count in range(2, len(sites) + 1) if not alone else ():
        together = demand.filled(largest_last[-count:])
        if together is not None and together.is_whole:
            yield together
            return


def most_of(demand: Demand, sites: Sequence[Site], most: int | None = None) -> Division:
    """As many layers on devices as fit now: all on one, all on several, some, or none; `most` at most."""
    if most is None or most >= demand.layers:
        for division in wholes(demand, sites):
            return division
    found = [demand.filled([site], most) for site in sites]
    found.append(demand.filled(sorted(sites, key=lambda site: site.room), most))
    # Of equal ones the first, which is on one device.
    return max(
        (one for one in found if one is not None),
        key=lambda one: one.on_devices,
        default=demand.on_processor(),
    )


def context_that_fits(
    model: Model, capacity: Capacity, facts: BackendFacts, sites: Sequence[Site], below: int
) -> int:
    """The largest context, of half of `below`, a quarter and so on, with which all layers fit; 0 for none."""
    size = below // 2
    while size >= 512:
        demand = Demand(model, size, capacity, facts)
        if next(wholes(demand, sites), None) is not None:
            return size
        size //= 2
    return 0


def _with_learned(reservation: Reservation, learned: int) -> Reservation:
    """Never less than its weights and cache, which an engine may claim at any time."""
    return msgspec.structs.replace(reservation, learned=max(learned, -reservation.compute))


def _sums(sizes: Sequence[int]) -> list[int]:
    """The sum of the first n, for each n."""
    found = [0]
    for size in sizes:
        found.append(found[-1] + size)
    return found
