"""A clock that excludes the time during which this process did not run.

When a process was suspended, or the machine slept, all its deadlines have passed when it continues. That time
must not count: requests have not waited, engines have not been idle, a drain has not begun.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from greenroom.actors.kernel.clock import SystemClock

_log = logging.getLogger(__name__)

EVERY = 0.5
"""Seconds between two readings, so that a gap is noticed."""
GAP = 2.0
"""Seconds without a reading that mean the process did not run; a busy machine delays readings by less."""


class AwakeTime:
    """Monotonic seconds without those in which this process did not run."""

    def __init__(self, source: Callable[[], float] = time.monotonic) -> None:
        self._source = source
        self._lock = threading.Lock()
        self._seen = source()
        self._lost = 0.0

    def __call__(self) -> float:
        """The time now. The first call after a gap notices it."""
        with self._lock:
            now = self._source()
            gap, self._seen = now - self._seen, now
            if gap > GAP:
                self._lost += gap - EVERY
                _log.warning("this process did not run for %.0f s; timeouts do not count that time", gap)
            return now - self._lost


class AwakeClock(SystemClock):
    """The system's clocks, with a monotonic one that stands still while this process does."""

    def __init__(self, awake: AwakeTime) -> None:
        super().__init__(awake)
        self._look()

    def _look(self) -> None:
        self.call_at(self.now().monotonic + EVERY, self._look)
