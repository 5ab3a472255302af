"""How much memory an engine may take, and when it has taken so much more than was reserved that it must end.

Pure. Only memory that the system cannot drop counts: what a process holds alone, in memory or swapped out,
never pages of files, such as weights that are mapped.

1. An engine must end when it holds more than its bound: what it may hold, times `factor`, plus `EXTRA`.
2. It must end before that when the machine, or the container, has used up half of its headroom, and this
   engine holds noticeably more than it may. Of several it is the one with the largest excess.

What it may hold is what was reserved for it, less the weights that it had mapped when it was ready; and never
less than what it held then. An engine that loads may hold its weights twice, and those for devices too.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from greenroom.actors.scheduler.state import OVER_MEMORY
from greenroom.actors.sizes import format_size
from greenroom.actors.values import EngineSpec, Failure

FACTOR = 1.5
"""The default of the setting."""
EXTRA = 2**30
"""Bytes above that; so much may libraries and allocators take that no estimate knows of."""
_NOTICEABLE = 1.1
_NOTICEABLE_EXTRA = 256 * 2**20
_LEAST_RESERVE = 128 * 2**20
"""Bytes of the machine that are kept free even if no headroom is configured."""

_UNTOUCHED = 2**30
_A_PROCESSOR = 64 * 2**20
"""Bytes of address space, and of stacks and heaps for each processor, that are never touched."""

FASTEST = 10e9
"""Bytes a second at which an engine is expected to grow at most; one thread touches 2 to 5 GB/s."""
SHORTEST, LONGEST = 0.02, 0.5
"""Seconds between two looks."""


@dataclass(frozen=True)
class MemoryLeft:
    """What the machine has, in bytes."""

    available: int
    """What new programs can use."""
    headroom: int
    """What should be left to the rest of the machine."""

    @property
    def left(self) -> int:
        """Bytes until so little is free that an engine with too much must end."""
        return self.available - max(self.headroom // 2, _LEAST_RESERVE)


class MemoryBound:
    """What one engine may hold, in bytes."""

    def __init__(self, spec: EngineSpec, factor: float = FACTOR) -> None:
        machine = [one for one in spec.reservations if not one.device]
        self._reserved = spec.memory
        self._weights = sum(one.weights + one.projector for one in machine)
        everything = [one.total + one.weights for one in spec.reservations]
        self._loading = max(sum(everything), spec.memory)
        self._factor = factor
        self._at_ready: int | None = None

    def note_ready(self, held: int) -> None:
        """What it held when it was first seen ready."""
        if self._at_ready is None:
            self._at_ready = held

    @property
    def is_known(self) -> bool:
        """Whether there is anything to compare with."""
        return bool(self._loading) or self._at_ready is not None

    @property
    def allowed(self) -> int:
        if self._at_ready is None:
            return self._loading
        rest = max(0, self._reserved - self._weights)
        return max(self._at_ready, min(self._reserved, self._at_ready + rest))

    @property
    def noticeable(self) -> int:
        """More than this is too much when memory is short."""
        return int(self.allowed * _NOTICEABLE) + _NOTICEABLE_EXTRA

    @property
    def most(self) -> int:
        return int(self.allowed * self._factor) + EXTRA


def hard_limit(spec: EngineSpec, factor: float) -> int:
    """Bytes beyond which the system is to refuse an engine more: it counts what is never touched as well."""
    return MemoryBound(spec, factor).most + _UNTOUCHED + _A_PROCESSOR * (os.cpu_count() or 1)


def overstepping(held: Mapping[str, tuple[int, MemoryBound]], room: MemoryLeft | None) -> str:
    """The engine that must end, by id; empty if none. `room` may be None while none holds too much."""
    over = {one: size - bound.most for one, (size, bound) in held.items() if size > bound.most}
    if not over and room is not None and room.left <= 0:
        over = {
            one: size - bound.noticeable for one, (size, bound) in held.items() if size > bound.noticeable
        }
    return max(over, key=lambda one: over[one], default="")


def next_look(held: Mapping[str, tuple[int, MemoryBound]], room: MemoryLeft | None) -> float:
    """Seconds until the fastest growth could have taken an engine half of the way to a limit."""
    ways = [LONGEST * FASTEST]
    for size, bound in held.values():
        if size <= bound.noticeable:
            ways.append(bound.noticeable - size)
        else:
            way = bound.most - size
            ways.append(way if room is None else min(way, room.left))
    return max(SHORTEST, min(ways) / FASTEST)


def over_memory(spec: EngineSpec, held: int, bound: MemoryBound, room: MemoryLeft | None) -> Failure:
    """Why it was ended, with the numbers."""
    if held > bound.most or room is None:
        limit = f"its limit was {format_size(bound.most)}"
    else:
        limit = f"the machine had only {format_size(room.available)} left"
    return Failure(
        kind="permanent",
        code=OVER_MEMORY,
        message=(
            f"it held {format_size(held)} of memory, mapped files not counted, and {limit} "
            f"({format_size(spec.memory)} was reserved for it, weights included)"
        ),
        advice="More is reserved for its next load. If it needs that much, raise engine_memory_limit.",
        blame="engine",
    )
