"""Finds engines that take far more memory than was reserved for them, in time. `memory_bound` judges.

It looks the more often the nearer an engine is to a limit: fifty times a second at most, twice a second while
engines are idle. An engine that must end is stopped at once by a signal, so that it cannot grow while its end
is decided and stored; only then is it reported.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from greenroom.actors.gates import GateReading
from greenroom.actors.values import Failure
from greenroom.runner.engines import memory_bound
from greenroom.runner.engines.handle import Handle
from greenroom.runner.engines.memory_bound import MemoryBound, MemoryLeft
from greenroom.runner.systems import processes
from greenroom.runner.systems.processes import ProcessIdentity, boot_id

_log = logging.getLogger(__name__)

_MEMBERS_EVERY = 2.0
"""Seconds between two searches for the processes of engines."""
_STEADY = 2**20
"""Bytes by which an idle engine may change and is idle all the same."""

OnOver = Callable[[Handle, Failure], None]


class MemoryWatch:
    """Watches the memory of all engines of a host; sleeps while there are none."""

    def __init__(
        self,
        handles: Callable[[], Sequence[Handle]],
        readings: Callable[[], Mapping[str, GateReading]],
        on_over: OnOver,
        *,
        room: Callable[[], MemoryLeft],
        factor: float = memory_bound.FACTOR,
    ) -> None:
        """`on_over` is called with an engine that must end, which does not run any more."""
        self._handles = handles
        self._readings = readings
        self._on_over = on_over
        self._room = room
        self._factor = factor
        self._bounds: dict[str, MemoryBound] = {}
        self._held: dict[str, int] = {}
        self._members: dict[int, list[int]] = {}
        self._members_at = 0.0
        self._ending: dict[str, Failure] = {}
        self._news = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="engine-memory", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """An engine may have been added."""
        self._news.set()

    def is_ending(self, engine_id: str) -> bool:
        """Whether it was stopped, and reported, for its memory."""
        return engine_id in self._ending

    def close(self) -> None:
        self._closed = True
        self._news.set()
        self._thread.join(5.0)

    def _run(self) -> None:
        while not self._closed:
            self._news.clear()
            handles = [one for one in self._handles() if one.pid and not one.over.is_set()]
            pause: float | None = None
            try:
                pause = self._look(handles) if handles else None
            except Exception:  # noqa: BLE001 - one odd process must not end the watch over all others
                _log.exception("the memory of engines could not be checked")
                pause = memory_bound.LONGEST
            self._news.wait(memory_bound.LONGEST if pause is None and self._handles() else pause)

    def _look(self, handles: Sequence[Handle]) -> float:
        before, self._held = self._held, {}
        known = {one.engine_id: one for one in handles}
        self._bounds = {one: bound for one, bound in self._bounds.items() if one in known}
        self._ending = {one: failure for one, failure in self._ending.items() if one in known}
        for one, failure in self._ending.items():
            self._on_over(known[one], failure)  # in case the last report was lost
        held: dict[str, tuple[int, MemoryBound]] = {}
        for handle in handles:
            size = processes.own_memory_of(self._pids(handle, handles))
            if size is None:
                return memory_bound.LONGEST  # this system does not tell
            one = handle.engine_id
            bound = self._bounds.get(one) or MemoryBound(handle.spec, self._factor)
            self._bounds[one] = bound
            if handle.answers:
                bound.note_ready(size)
            self._held[one] = size
            if handle.wanted and bound.is_known and one not in self._ending:
                held[one] = size, bound
        room = self._room() if any(size > bound.noticeable for size, bound in held.values()) else None
        # While one is ending, what it held is not free yet: no other has to end for that.
        limit = None if self._ending else room
        found = memory_bound.overstepping(held, limit)
        if found and self._is_over(known[found], held[found][1], limit):
            size, bound = self._held[found], held.pop(found)[1]
            self._end(known[found], memory_bound.over_memory(known[found].spec, size, bound, limit))
        busy = self._busy(held, known, before)
        return memory_bound.next_look(busy, room)

    def _pids(self, handle: Handle, handles: Sequence[Handle]) -> list[int]:
        now = time.monotonic()
        if handle.pid not in self._members or now - self._members_at > _MEMBERS_EVERY:
            self._members = processes.groups({one.pid for one in handles})
            self._members_at = now
        return self._members[handle.pid]

    def _is_over(self, handle: Handle, bound: MemoryBound, room: MemoryLeft | None) -> bool:
        """Whether it is too much even if what its processes share counts once, and no debugger holds it."""
        pids = self._members[handle.pid]
        size = processes.own_memory_counted_once(pids)
        if size is None or processes.traced(pids):
            return False
        self._held[handle.engine_id] = size
        return memory_bound.overstepping({handle.engine_id: (size, bound)}, room) != ""

    def _busy(
        self,
        held: Mapping[str, tuple[int, MemoryBound]],
        known: Mapping[str, Handle],
        before: Mapping[str, int],
    ) -> dict[str, tuple[int, MemoryBound]]:
        """Those that could grow at any moment."""
        readings = self._readings()
        found = {}
        for one, (size, bound) in held.items():
            reading = readings.get(one)
            is_idle = known[one].answers and (reading is None or not reading.inside)
            if not is_idle or abs(size - before.get(one, 0)) > _STEADY:
                found[one] = size, bound
        return found

    def _end(self, handle: Handle, failure: Failure) -> None:
        _log.warning("engine %s takes too much memory: %s", handle.engine_id, failure.message)
        self._ending[handle.engine_id] = failure
        ProcessIdentity(handle.pid, handle.started, boot_id()).send_group(signal.SIGSTOP)
        self._on_over(handle, failure)
