"""The ledger: what memory is reserved for engines and loads in flight, and what is left."""

from __future__ import annotations

import msgspec

from greenroom.actors.values import Model, Reservation

DEFAULT_CONTEXT = 8_192
"""Tokens of key/value cache to reserve when neither the user nor the model says how many."""


GROWTH = 0.25
"""More slots and a prompt cache take at most this share of the memory that an engine's first slot leaves
free, so that two models that fit side by side do not evict each other for slots that no request needs."""
_LEAST_PROMPT_CACHE = 64 * 2**20
_MOST_PROMPT_CACHE = 1_000_000_000

MASK = 2
"""Bytes in a batch's mask for each token of context that a token may see."""
PROVEN_BY = 3
"""Requests an engine must have served before its measured peak may be less than what was reserved for it."""


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """A graphics device with memory of its own, in bytes."""

    id: str
    """Stable over restarts of the machine."""
    name: str
    """For people."""
    total: int
    budget: int
    """What engines may use of it in all."""
    available: int | None = None
    """What is free right now, by measurement, less the head-room; None where it cannot be measured."""
    runtimes: tuple[str, ...] = ()
    """Through what programs can compute on it; empty if that is not known, and then anything can."""
    is_shared: bool = False
    """It computes in the machine's memory, which alone counts then; `budget` is the part it can reach."""

    @property
    def memory(self) -> Memory:
        """As a pool. If it cannot be measured, only reservations limit it."""
        return Memory(
            budget=self.budget, available=2 * self.budget if self.available is None else self.available
        )


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """What the machine has, in bytes; or one pool of it."""

    budget: int
    """What engines may use in all."""
    available: int
    """What is free right now, by measurement, less the head-room."""
    devices: tuple[Device, ...] = ()
    """Pools of their own, beside the machine's."""


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """The ledger at one moment."""

    memory: Memory
    reserved: int
    """For running engines and loads in flight."""
    unclaimed: int
    """The part of `reserved` whose engines are still loading, so not yet in `available`."""

    @property
    def free(self) -> int:
        """What can be reserved now: the smaller of what is not reserved and what is measured as free."""
        return max(0, min(self.memory.budget - self.reserved, self.memory.available - self.unclaimed))


def context_reckoned(context_size: int, context_length: int) -> int:
    """Tokens of key/value cache to reserve.

    Args:
        context_size: As configured; 0 leaves it open, less is as much as the model can take.
        context_length: What the model was trained for; 0 when unknown.
    """
    trained_for = context_length or DEFAULT_CONTEXT
    if context_size < 0:
        return trained_for
    return context_size or min(trained_for, DEFAULT_CONTEXT)


class Capacity(msgspec.Struct, frozen=True, kw_only=True):
    """How many requests an engine takes at once, and how much of earlier prompts it keeps."""

    slots: int = 0
    """0 leaves it to the engine."""
    prompt_cache: int | None = None
    """Bytes; None leaves it to the engine."""
    batch: int = 0
    """Tokens it must compute at once; 0 leaves it to the engine."""
    shares_cache: bool = False
    """The engine's slots share one context's cache, and it makes requests wait for it: none is cut off."""


def reservation_for(
    model: Model, context_size: int, compute: int, capacity: Capacity, device: str = ""
) -> Reservation:
    """What an engine needs where its weights are. Every slot has the whole context."""
    context = context_reckoned(context_size, model.context_length)
    return Reservation(
        device=device,
        weights=model.size - model.projector_size,
        projector=model.projector_size,
        cache=context * model.kv_bytes_per_token,
        slots=1 if capacity.shares_cache else max(1, capacity.slots),
        prompt_cache=capacity.prompt_cache or 0,
        batch=batch_memory(model, capacity.batch, context),
        compute=compute,
    )


def batch_memory(model: Model, batch: int, context: int) -> int:
    """Bytes an engine needs to compute this many tokens at once.

    For each there is what a layer computes, its row of the mask, and its output if the model writes text.
    """
    parts = model.layers
    if not batch or parts is None:
        return 0
    return batch * (parts.activations + parts.logits + MASK * context)


def larger(smallest: Capacity, slots: int, prompt_cache: int, *, alone: bool = False) -> list[Capacity]:
    """What a capacity may grow to, the largest first. More slots come before a prompt cache.

    Args:
        slots: The most there may be.
        prompt_cache: Bytes it may have where it has none; 0 leaves it as it is.
        alone: It may only with one slot.
    """
    caches = [prompt_cache, smallest.prompt_cache] if prompt_cache else [smallest.prompt_cache]
    return [
        msgspec.structs.replace(smallest, slots=count, prompt_cache=size)
        for count in range(max(slots, smallest.slots), smallest.slots - 1, -1)
        for size in (caches if count == 1 or not alone else caches[-1:])
    ][:-1]


def default_prompt_cache(model: Model, context_size: int) -> int:
    """Bytes of prompts that an engine keeps after their requests: two whole contexts, within bounds."""
    context = context_reckoned(context_size, model.context_length)
    return min(_MOST_PROMPT_CACHE, max(_LEAST_PROMPT_CACHE, 2 * context * model.kv_bytes_per_token))


def reckoned(reservation: int, least: int, peak: int, served: int) -> int:
    """What an engine is reckoned to hold, in bytes.

    A measured peak above its reservation counts at once. One below it counts only once the engine has served
    several requests, and never less than `least`, its weights and cache: those it may claim at any time.
    """
    if not peak or (peak < reservation and served < PROVEN_BY):
        return reservation
    return max(peak, min(least, reservation))


def expected(estimate: int, least: int, footprint: int, account: Account) -> int:
    """What a load is reckoned to need, in bytes, when engines like it were measured at `footprint` (or 0).

    A measurement never keeps the model itself out: where the estimate would let it in and no other engine has
    a reservation, it is let in.
    """
    if not footprint:
        return estimate
    need = max(least, footprint)
    if not account.reserved:
        need = min(need, max(estimate, account.free))
    return min(need, max(estimate, account.memory.budget))
