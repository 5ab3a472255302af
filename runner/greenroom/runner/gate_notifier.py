"""Tells the scheduler that engines have emptied, but not for each of a thousand quick requests.

A request that enters and leaves the gate of a ready engine costs no message. Its leaving may be what
somebody waits for, though (an eviction, a stop), so it is told: at once the first time, then all that
happened since every 50 ms. Without the pause, the scheduler's thread competes with the requests for the
interpreter: half as much work again for each of them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from greenroom.actors.kernel.clock import Clock

_PAUSE = 0.05


class Emptied:
    """What a `GateBoard` calls when the last request has left an engine. Thread-safe, quick."""

    def __init__(self, clock: Clock, tell: Callable[[str], None], pause: float = _PAUSE) -> None:
        """`tell` is called with an engine's id, from the leaving thread or the clock's; it must not raise."""
        self._clock = clock
        self._tell = tell
        self._pause = pause
        self._lock = threading.Lock()
        self._pausing = False
        self._since: dict[str, None] = {}

    def __call__(self, engine_id: str) -> None:
        """An engine has emptied."""
        with self._lock:
            if self._pausing:
                self._since[engine_id] = None
                return
            self._pausing = True
        self._tell(engine_id)
        self._clock.call_at(self._clock.now().monotonic + self._pause, self._go_on)

    def _go_on(self) -> None:
        with self._lock:
            since, self._since = self._since, {}
            self._pausing = bool(since)
        if since:
            for engine_id in since:
                self._tell(engine_id)
            self._clock.call_at(self._clock.now().monotonic + self._pause, self._go_on)
