"""Monitors all engines of a host: their memory, whether they can be reached, and whether they work.

It has two threads, so that measuring many processes does not delay socket checks, and `memory_watch` has a
third. Requests that an engine may leave unanswered run on threads of their own, one at a time per engine and
kind, and no lock is held meanwhile. Problems are reported to the runner and end nothing. `liveness` judges
when an engine must be replaced.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from greenroom.actors.gates import GateReading
from greenroom.actors.values import Failure, Measured
from greenroom.runner.engines import gpu_time, liveness, reachability
from greenroom.runner.engines.handle import CPU_SHARE, Handle, Ladder, Vitality
from greenroom.runner.engines.liveness import ASK_AFTER, LIMIT, EngineObservations
from greenroom.runner.engines.memory_watch import MemoryWatch, OnOver
from greenroom.runner.engines.reachability import Reachability
from greenroom.runner.systems import processes
from greenroom.runner.threads import start_thread

_log = logging.getLogger(__name__)

EVERY = 2.0
"""Seconds between two checks of memory and work."""
REACH_EVERY = 0.5
"""Seconds between two socket checks: an unreachable engine is reported within one second."""
_UNKNOWN = Path()
"""The endpoint of an engine of an earlier daemon that its keeper has not told yet."""
_SUSPECT_EVERY = 0.2
"""The same while there is a suspicion, which must be confirmed once."""
_HALTED_FOR = 0.25
"""Seconds for which an engine must have been stopped: some tools stop a process for a moment."""
_HEALTH_EVERY = 4.0
"""Seconds between two health requests to an engine without requests inside."""
_HEALTH_SECONDS = 3.0
_COUNTER_SECONDS = 1.0
_SLEPT = 3.0
"""Seconds by which a check must be late to mean that this process, or the machine, was not running."""
_NOTICED = 2**20
"""Bytes by which memory must change to be reported."""
KILL: Ladder = (("SIGKILL", 0.0),)
"""How to end a stopped process: it reacts to no other signal."""
HURRY: Ladder = (("SIGTERM", 2.0), ("SIGKILL", 0.0))
"""How to end an engine that does not work: its successor needs its memory."""

Readings = Callable[[], Mapping[str, GateReading]]
DeviceUsage = Callable[[Sequence[int]], int | None]
WatchMemory = Callable[[Callable[[], Sequence[Handle]], Readings, OnOver], MemoryWatch]


class ReportedMemory:
    def __init__(self) -> None:
        self.told = Measured(now=0, peak=0)
        self.peak = 0
        self.device_peak = 0

    def measure(self, size: int, device: int | None = None) -> Measured | None:
        """Record the memory of the engine and its device; returns what to report, if it changed
        noticeably.
        """
        self.peak, self.device_peak = max(self.peak, size), max(self.device_peak, device or 0)
        told = self.told
        same = abs(size - told.now) < _NOTICED and self.peak - told.peak < _NOTICED
        there = abs((device or 0) - (told.device or 0)) < _NOTICED and (device is None) == (
            told.device is None
        )
        if same and there and self.device_peak - told.device_peak < _NOTICED:
            return None
        self.told = Measured(now=size, peak=self.peak, device=device, device_peak=self.device_peak)
        return self.told


class Watched:
    def __init__(self, handle: Handle, now: float) -> None:
        self.memory = ReportedMemory()
        self.life = EngineObservations(now, handle.batch)
        self.doubted: Reachability | None = None
        """The problem found by the last socket check."""
        self.asking: set[str] = set()
        """Requests in progress: `token`, `counters`, `health`."""
        self.health_at = now
        self.ill_since = 0.0
        """Since when the health path has failed; 0 while it succeeds."""
        self.garbled = 0
        """Consecutive responses that were not HTTP."""


class HealthMonitor:
    """Monitors all engines of a host; sleeps while there are none."""

    def __init__(
        self,
        handles: Callable[[], Sequence[Handle]],
        readings: Readings,
        *,
        stall_after: float,
        every: float = EVERY,
        device_usage: DeviceUsage | None = None,
        watch_memory: WatchMemory | None = None,
    ) -> None:
        """`readings` returns which requests are inside which engine, and since when each has been silent;
        `device_usage` how much device memory processes hold, None if unknown. `watch_memory` makes what finds
        engines that take too much memory; without it none is ended for that.
        """
        self._device_usage: DeviceUsage = device_usage or (lambda _: None)
        self._handles = handles
        self._readings = readings
        self._limit = min(LIMIT, stall_after)
        self._every = min(every, self._limit / 6)
        self._watched: dict[str, Watched] = {}
        self._news = threading.Event()
        self._closed = threading.Event()
        self._measuring = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, name="engine-health", daemon=True),
            threading.Thread(target=self._measure, name="engine-measures", daemon=True),
        ]
        for thread in self._threads:
            thread.start()
        self._memory = watch_memory(handles, readings, self._end_growing) if watch_memory else None

    def wake(self) -> None:
        """An engine may have been added or stopped."""
        self._news.set()
        if self._memory is not None:
            self._memory.wake()

    def close(self) -> None:
        if self._memory is not None:
            self._memory.close()
        self._closed.set()
        self._news.set()
        self._measuring.set()
        for thread in self._threads:
            thread.join(5.0)

    def _measure(self) -> None:
        while not self._closed.is_set():
            self._measuring.wait()
            self._measuring.clear()
            watched = self._watched
            living = [one for one in self._handles() if one.engine_id in watched and _lives(one)]
            self._guarded(partial(self._check_work, living, watched))

    def _run(self) -> None:
        seen_at, boot_at, measured_at = time.monotonic(), _since_boot(), 0.0
        pause = 0.0
        while not self._closed.is_set():
            self._news.clear()
            handles = list(self._handles())
            now, boot = time.monotonic(), _since_boot()
            if not handles:
                self._watched = {}
                self._news.wait()
                seen_at, boot_at = time.monotonic(), _since_boot()
                continue
            self._watched = {one.engine_id: self._of(one, now) for one in handles}
            if boot - boot_at > pause + _SLEPT or now - seen_at > pause + _SLEPT:
                # This process was stopped, or the machine slept.
                for one in self._watched.values():
                    one.life.excuse(now)
                    one.life.due, one.ill_since, one.health_at = True, 0.0, now
            seen_at, boot_at = now, boot
            living = [one for one in handles if _lives(one)]
            self._guarded(partial(self._check_sockets, living, now))
            if now - measured_at >= self._every:
                measured_at = now
                self._measuring.set()
            pause = self._pause(living)
            self._news.wait(pause)

    def _of(self, handle: Handle, now: float) -> Watched:
        return self._watched.get(handle.engine_id) or Watched(handle, now)

    def _pause(self, handles: Sequence[Handle]) -> float:
        suspects = any(
            one.wanted and (one.halted_at or self._watched[one.engine_id].doubted) for one in handles
        )
        ready = any(one.answers or one.was_ready for one in handles)
        return _SUSPECT_EVERY if suspects else min(REACH_EVERY, self._every) if ready else self._every

    def _guarded(self, look: Callable[[], None]) -> None:
        try:
            look()
        except Exception:  # noqa: BLE001 - one odd process must not end the watch over all others
            _log.exception("the engines could not be checked")

    # reachability

    def _check_sockets(self, handles: Sequence[Handle], now: float) -> None:
        listening: frozenset[bytes] | None = None
        readings: Mapping[str, GateReading] = {}
        for handle in handles:
            if not handle.wanted:
                continue
            watched = self._watched[handle.engine_id]
            halted = handle.halted_at and now - handle.halted_at >= _HALTED_FOR
            if self._memory is not None and self._memory.is_ending(handle.engine_id):
                continue  # that is why it is stopped
            if halted and not processes.traced([handle.pid]):
                self._give_up(handle, liveness.HALTED, KILL)
                continue
            if not handle.was_ready or handle.endpoint == _UNKNOWN:
                continue
            if listening is None:
                listening, readings = reachability.listeners(), self._readings()
            before = watched.doubted
            found = reachability.check(
                handle.endpoint, leader=handle.pid, inode=handle.inode, listening=listening
            )
            watched.doubted = None if found is Reachability.REACHED else found
            reading = readings.get(handle.engine_id)
            if reading is not None:
                watched.life.read(reading)
            if watched.doubted is None or before is None or processes.traced([handle.pid]):
                continue
            failure = {
                Reachability.GONE: liveness.SOCKET_GONE,
                Reachability.REFUSED: liveness.CLOSED,
                Reachability.STRANGER: liveness.SOCKET_TAKEN,
            }[found]
            self._give_up(handle, failure, HURRY, may_finish=True)

    def _end_growing(self, handle: Handle, failure: Failure) -> None:
        """It takes too much memory. What it held is reported first: as much is reserved for its next load."""
        watched = self._watched.get(handle.engine_id)
        size = processes.memory_of(processes.groups([handle.pid])[handle.pid])
        if watched is not None and size:
            news = watched.memory.measure(size, watched.memory.told.device)
            if news is not None:
                handle.tell_measured(news)
        handle.tell_stalled(failure, KILL)

    def _give_up(self, handle: Handle, failure: Failure, ladder: Ladder, *, may_finish: bool = False) -> None:
        _log.warning("engine %s must be replaced: %s", handle.engine_id, failure.message)
        handle.tell_stalled(failure, ladder, may_finish=may_finish)

    # work

    def _check_work(self, handles: Sequence[Handle], all_watched: Mapping[str, Watched]) -> None:
        members = processes.groups({one.pid for one in handles})
        readings = self._readings()
        now = time.monotonic()
        for handle in handles:
            watched, pids = all_watched[handle.engine_id], members[handle.pid]
            size = processes.memory_of(pids)
            # A group that is just ending holds nothing; its exit will report that.
            device = self._device_usage(pids) if handle.spec.device else None
            if not device and handle.loaded is not None:
                # In a container drivers tell nothing, or nothing about our processes.
                device = handle.loaded.size or None
            news = watched.memory.measure(size, device) if size else None
            if news is not None:
                handle.tell_measured(news)
            watched.life.use(processes.cpu_seconds(pids), now)
            reading = readings.get(handle.engine_id)
            if handle.serves and not handle.halted_at:
                self._ask(handle, watched, reading or _NO_READING, pids, now)

    def _ask(
        self, handle: Handle, watched: Watched, reading: GateReading, pids: Sequence[int], now: float
    ) -> None:
        life = watched.life
        in_vain = life.at_work_in_vain(reading, now) if handle.readiness.rests else 0.0
        if in_vain > life.patience_in_vain(reading, self._limit) and not processes.traced(pids):
            self._give_up(handle, liveness.abandoned(in_vain), HURRY)
            return
        quiet = life.quiet_for(reading, now)
        if quiet >= self._limit * ASK_AFTER:
            self._begin("counters", handle, watched, partial(self._read_counters, since=now - quiet))
        still = life.still_for(reading, now) >= self._limit * ASK_AFTER
        # A whole answer may take longer to compute. Many engines serve other requests meanwhile.
        if still or life.is_doubted(reading) or quiet >= life.patience(self._limit) / 2:
            self._begin("token", handle, watched, partial(self._ask_for_a_token, pids=pids))
        if quiet >= life.patience(self._limit) and not processes.traced(pids):
            text = f"it used a processor but sent nothing for {quiet:.0f}s, longer than any batch takes"
            self._give_up(handle, liveness.stalled(text), HURRY)
        if not reading.inside and now - watched.health_at >= min(_HEALTH_EVERY, self._limit):
            self._begin("health", handle, watched, partial(self._ask_for_health, pids=pids))

    def _begin(
        self, question: str, handle: Handle, watched: Watched, ask: Callable[[Handle, Watched], None]
    ) -> None:
        if question in watched.asking:
            return
        watched.asking.add(question)

        def run() -> None:
            try:
                ask(handle, watched)
            finally:
                watched.asking.discard(question)

        try:
            start_thread(run, f"{question}-{handle.engine_id}")
        except RuntimeError:
            watched.asking.discard(question)  # no thread left: retried at the next check

    def _read_counters(self, handle: Handle, watched: Watched, since: float) -> None:
        told = handle.probe().counters(_COUNTER_SECONDS)
        if told is not None:
            watched.life.count(told, time.monotonic(), since)

    def _ask_for_a_token(self, handle: Handle, watched: Watched, pids: Sequence[int]) -> None:
        """The last resort: an engine that neither answers nor does anything is given up."""
        life = watched.life
        before, began = gpu_time.gpu_seconds(pids), time.monotonic()
        left = self._limit - life.still_for(self._reading(handle), began)
        said = handle.probe().canary(max(1.0, left))
        now = time.monotonic()
        if said is Vitality.WELL:
            life.prove(now)
            watched.garbled = 0
            return
        if said is Vitality.UNASKED:
            life.excuse(now)
            return
        watched.garbled = watched.garbled + 1 if said is Vitality.GARBLED else 0
        life.use(processes.cpu_seconds(pids), now)
        reading = self._reading(handle)
        # It may have recovered, or lost all its clients, meanwhile.
        still = life.still_for(reading, now)
        if not handle.serves or processes.traced(pids) or processes.wants_to_work(pids):
            return
        if watched.garbled >= 2 and life.is_asked(reading):
            self._give_up(handle, liveness.GARBLED, HURRY)
            return
        if still < self._limit:
            return
        after = gpu_time.gpu_seconds(pids)
        if (after or 0.0) - (before or 0.0) > CPU_SHARE * (now - began) or gpu_time.gpu_busy(pids):
            life.worked_at = now
            return
        if after is None and still < life.patience_in_the_dark(self._limit):
            return
        text = (
            f"it sent nothing and used no processor for {still:.0f}s, and did not answer a request "
            f"for one token within {now - began:.0f}s"
        )
        if processes.stopped(pids):
            self._give_up(handle, liveness.HALTED, KILL)
        else:
            self._give_up(handle, liveness.stalled(text), HURRY)

    def _ask_for_health(self, handle: Handle, watched: Watched, pids: Sequence[int]) -> None:
        """For an engine without requests inside: finds a problem before the next request does."""
        began = time.monotonic()
        said = handle.probe().health(min(_HEALTH_SECONDS, self._limit))
        now = time.monotonic()
        if said in (Vitality.WELL, Vitality.UNASKED):
            watched.health_at, watched.ill_since, watched.garbled = now, 0.0, 0
            return
        watched.garbled = watched.garbled + 1 if said is Vitality.GARBLED else 0
        watched.ill_since = watched.ill_since or began
        watched.life.use(processes.cpu_seconds(pids), now)
        ill, idle = now - watched.ill_since, now - watched.life.worked_at
        if not handle.serves or processes.traced(pids) or processes.wants_to_work(pids):
            return
        if watched.garbled >= 2:
            self._give_up(handle, liveness.GARBLED, HURRY)
        elif ill >= self._limit * (1 - ASK_AFTER) and (said is Vitality.ILL or idle >= self._limit / 2):
            text = f"its health path did not answer for {ill:.0f}s"
            if said is Vitality.ILL:
                text = f"its health path has reported an error for {ill:.0f}s"
            failure = liveness.HALTED if processes.stopped(pids) else liveness.stalled(text)
            self._give_up(handle, failure, KILL if processes.stopped(pids) else HURRY)

    def _reading(self, handle: Handle) -> GateReading:
        return self._readings().get(handle.engine_id) or _NO_READING


_NO_READING = GateReading(False, 0, 0.0, 0)


def _lives(handle: Handle) -> bool:
    return bool(handle.pid) and not handle.over.is_set()


def _since_boot() -> float:
    """Seconds on a clock that keeps running while the machine sleeps."""
    # On macOS CLOCK_MONOTONIC does, unlike what `time.monotonic` reads.
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
