"""Tells the scheduler that engines have emptied, but not for each of a thousand quick requests.

A request that enters and leaves the gate of a ready engine costs no message. But an eviction or a stop may be
waiting for it to leave, so that is reported: at once the first time, then in batches every 50 ms. Without
that pause the scheduler's thread competes with requests for the interpreter, which makes each cost half as
much again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from greenroom.actors.kernel.clock import Clock

_PAUSE = 0.05


class Emptied:
    """Called by a `GateBoard` when the last request has left an engine. Thread-safe and quick."""

    def __init__(self, clock: Clock, tell: Callable[[str], None], pause: float = _PAUSE) -> None:
        """`tell` receives an engine's id, on the request's or the clock's thread; it must not raise."""
        self._clock = clock
        self._tell = tell
        self._pause = pause
        self._lock = threading.Lock()
        self._pausing = False
        self._since: dict[str, None] = {}

    def __call__(self, engine_id: str) -> None:
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
