"""The vital signs of engines: their memory, and whether those that are ready still do anything.

An engine is dead, whatever its health path says, when somebody is inside and

1. no byte has come out of it for `stall_after`,
2. its processes have used neither processor nor graphics time meanwhile,
3. and a completion of one token, asked for now, is not answered in time.

A prefill of minutes uses a processor, so it is never taken for dead; and nobody waits for the watch: it has
a thread of its own, the canary another, and neither holds a lock while it waits.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from greenroom.actors.facts import Failure, Measured
from greenroom.actors.gates import GateReading
from greenroom.runner.engines import graphics, processes
from greenroom.runner.engines.handle import EngineListener, Handle
from greenroom.runner.engines.readiness import CPU_SHARE, Probe

_log = logging.getLogger(__name__)

EVERY = 2.0
"""Seconds between two looks."""
CANARY_SECONDS = 30.0
"""The longest wait for one token."""
CANARY_SECONDS_IN_THE_DARK = 120.0
"""The same where an engine may be computing on something whose time cannot be read."""
_NOTICED = 2**20
"""Bytes by which memory must have changed to be told."""

Readings = Callable[[], Mapping[str, GateReading]]
DeviceUsage = Callable[[Sequence[int]], int | None]


LADDER = (("SIGTERM", 2.0), ("SIGKILL", 0.0))
"""How an engine that does nothing is ended: it will hardly answer, and its successor waits for its memory."""


def _stalled(reason: str) -> Failure:
    return Failure(kind="permanent", code="engine_stalled", message=reason, blame="engine")


class Vital:
    """What is known of one engine."""

    def __init__(self, now: float) -> None:
        self.told = Measured(now=0, peak=0)
        self.peak = 0
        self.device_peak = 0
        self.cpu = -1.0
        self.looked_at = now
        self.moved_at = now
        """Monotonic second at which it was last seen to compute, or answered a canary."""
        self.canary = False
        """One is under way."""

    def measure(self, size: int, device: int | None = None) -> Measured | None:
        """Take in its memory, and its device's; what to tell, when it has changed noticeably."""
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

    def look(self, cpu: float, now: float) -> None:
        """Take in the processor time it has used in all. A member that has gone makes that less: it moved."""
        used, elapsed = cpu - self.cpu, now - self.looked_at
        if self.cpu < 0 or used < 0 or used > CPU_SHARE * elapsed:
            self.moved_at = now
        self.cpu, self.looked_at = cpu, now

    def silent_for(self, reading: GateReading, now: float) -> float:
        """Seconds for which those inside have got nothing and it has done nothing."""
        return now - max(reading.quiet_since, self.moved_at) if reading.inside else 0.0


class Vitals:
    """Watches all engines of a host, on one thread that sleeps while there are none."""

    def __init__(
        self,
        handles: Callable[[], Sequence[Handle]],
        listener: EngineListener,
        readings: Readings,
        *,
        stall_after: float,
        every: float = EVERY,
        device_usage: DeviceUsage | None = None,
    ) -> None:
        """`readings` tells who is inside which engine, and since when nothing has come out of it;
        `device_usage` how much of a device's memory processes hold, None where nobody can tell.
        """
        self._device_usage: DeviceUsage = device_usage or (lambda _: None)
        self._handles = handles
        self._listener = listener
        self._readings = readings
        self._stall_after = stall_after
        self._every = min(every, stall_after / 4)
        self._vitals: dict[str, Vital] = {}
        self._news = threading.Event()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="engine-vitals", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """There may be an engine now."""
        self._news.set()

    def close(self) -> None:
        """End the thread."""
        self._closed.set()
        self._news.set()
        self._thread.join(5.0)

    def _run(self) -> None:
        while not self._closed.is_set():
            self._news.clear()
            handles = list(self._handles())
            if not handles:
                self._vitals = {}
                self._news.wait()
                continue
            try:
                self._look([one for one in handles if one.pid and not one.over.is_set()])
            except Exception:  # noqa: BLE001 - one odd process must not end the watch over all others
                _log.exception("the engines could not be looked at")
            self._closed.wait(self._every)

    def _look(self, handles: Sequence[Handle]) -> None:
        members = processes.groups({one.pid for one in handles})
        readings = self._readings()
        measured: dict[str, Measured] = {}
        now = time.monotonic()
        vitals = {one.engine_id: self._vitals.get(one.engine_id) or Vital(now) for one in handles}
        self._vitals = vitals
        for handle in handles:
            vital, pids = vitals[handle.engine_id], members[handle.pid]
            size = processes.memory_of(pids)
            # A group that is just ending holds nothing; that is for its exit to say.
            device = self._device_usage(pids) if handle.spec.device else None
            news = vital.measure(size, device) if size else None
            if news is not None:
                measured[handle.engine_id] = news
            vital.look(processes.cpu_seconds(pids), now)
            reading = readings.get(handle.engine_id)
            if reading is None or not handle.serves or vital.canary:
                continue
            if vital.silent_for(reading, now) >= self._stall_after:
                vital.canary = True
                threading.Thread(
                    target=self._send_canary,
                    args=(handle, vital, pids),
                    name=f"canary-{handle.engine_id}",
                    daemon=True,
                ).start()
        if measured:
            self._listener.measured(measured)

    def _send_canary(self, handle: Handle, vital: Vital, pids: Sequence[int]) -> None:
        try:
            reason = self._examine(handle, vital, pids)
            # Answered or not: it is examined again, should it be silent for as long once more.
            vital.moved_at = time.monotonic()
            if reason:
                handle.tell_stalled(_stalled(reason), LADDER)
        finally:
            vital.canary = False

    def _examine(self, handle: Handle, vital: Vital, pids: Sequence[int]) -> str:
        """Why it must be dead; empty when it may be alive."""
        graphics_before = graphics.seconds(pids)
        longest = CANARY_SECONDS_IN_THE_DARK if graphics_before is None else CANARY_SECONDS
        bound = min(longest, max(1.0, self._stall_after))
        probe = Probe(
            handle.endpoint,
            handle.readiness,
            model_name=handle.model_name,
            leader=handle.pid,
            mode=handle.spec.mode,
        )
        began = time.monotonic()
        if probe.canary(bound) or not handle.serves:
            return ""
        now = time.monotonic()
        vital.look(processes.cpu_seconds(pids), now)
        reading = self._readings().get(handle.engine_id)
        # It may have come back to life, or been left by everybody, while the canary waited.
        if reading is None or vital.silent_for(reading, now) < self._stall_after:
            return ""
        used = (graphics.seconds(pids) or 0.0) - (graphics_before or 0.0)
        if used > CPU_SHARE * (now - began) or graphics.computing(pids):
            return ""
        silent = vital.silent_for(reading, now)
        return (
            f"it sent nothing and used no processor for {silent:.0f} s, and did not answer a request "
            f"for one token within {now - began:.0f} s"
        )
