"""The ledger: what memory is promised to engines and to loads in flight, and what is left."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from greenroom.actors.facts import Model

DEFAULT_CONTEXT = 8_192
"""Tokens of key/value cache reckoned with when neither the user nor the model says how many."""


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """What the machine has, in bytes."""

    budget: int
    """What engines may use in all."""
    available: int
    """What is free right now, by measurement, less the head-room."""


class Holding(msgspec.Struct, frozen=True, kw_only=True):
    """An engine that holds memory and could be made to give it back."""

    engine_id: str
    memory: int
    idle_since: float


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """The ledger at one moment."""

    memory: Memory
    promised: int
    """To engines that run and loads in flight."""
    unclaimed: int
    """The part of `promised` whose engines are still loading, so not yet in `available`."""

    @property
    def free(self) -> int:
        """What can be promised now: the smaller of what is not promised and what is really there."""
        return max(0, min(self.memory.budget - self.promised, self.memory.available - self.unclaimed))


def memory_needed(model: Model, context_size: int, overhead: int) -> int:
    """Weights, key/value cache at the configured context, and the backend's own overhead, in bytes."""
    context = context_size or min(model.context_length or DEFAULT_CONTEXT, DEFAULT_CONTEXT)
    return model.size + context * model.kv_bytes_per_token + overhead


def fewest_victims(needed: int, idle: Sequence[Holding]) -> tuple[Holding, ...]:
    """The least recently used idle engines that together free `needed` bytes, as few as possible.

    Empty when all of them together do not suffice: then nobody is evicted in vain.
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
