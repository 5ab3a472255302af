"""Time as a port: cores are given a moment, timers are set on a clock."""

from __future__ import annotations

import heapq
import itertools
import math
import random
import threading
import time
from collections.abc import Callable
from typing import NamedTuple, Protocol


class Moment(NamedTuple):
    """One reading of both clocks."""

    wall: float
    """Seconds since the epoch; may jump. For what is stored and shown."""
    monotonic: float
    """Seconds since some start; never jumps. For deadlines."""
    draw: float = 0.5
    """A random number in [0, 1) for jitter: cores are pure, so chance is given to them like time."""


class Timer(Protocol):
    """A call that a clock will make."""

    def cancel(self) -> None:
        """Make it not happen. Idempotent; harmless when it has."""


class Clock(Protocol):
    """What time it is, and calls at a later time. Any thread may use it. Times are in seconds."""

    def now(self) -> Moment:
        """Read both clocks."""
        ...

    def call_at(self, monotonic: float, call: Callable[[], None]) -> Timer:
        """Run `call` once the monotonic clock has reached that second; at infinity, never.

        It must be quick and not raise. Raises ValueError for what is no number.
        """
        ...

    def close(self) -> None:
        """Drop all timers. Idempotent."""


class _Call:
    __slots__ = ("call",)

    def __init__(self, call: Callable[[], None]) -> None:
        self.call: Callable[[], None] | None = call

    def cancel(self) -> None:
        self.call = None


_COMPACT_FROM = 256
_LONGEST_WAIT = 3_600.0


def _check(monotonic: float) -> None:
    if math.isnan(monotonic):
        # It is neither before nor after any other, so all timers would fall into disorder.
        raise ValueError("a timer must be due at a number of seconds, not NaN")


class SystemClock:
    """The machine's clocks, with one timer thread that starts with the first timer."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        """`monotonic` may stand still now and then; it never goes back."""
        self._monotonic = monotonic
        self._heap: list[tuple[float, int, _Call]] = []
        self._order = itertools.count()
        self._compact_at = _COMPACT_FROM
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False

    def now(self) -> Moment:
        return Moment(time.time(), self._monotonic(), random.random())  # noqa: S311 - jitter, not secrets

    def call_at(self, monotonic: float, call: Callable[[], None]) -> Timer:
        entry = _Call(call)
        _check(monotonic)
        with self._changed:
            if self._closed:
                return entry
            if len(self._heap) >= self._compact_at:
                # Most timers are deadlines that are cancelled long before they fall due.
                self._heap = [waiting for waiting in self._heap if waiting[2].call is not None]
                heapq.heapify(self._heap)
                self._compact_at = max(_COMPACT_FROM, 2 * len(self._heap))
            heapq.heappush(self._heap, (monotonic, next(self._order), entry))
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="timers", daemon=True)
                thread.start()
                self._thread = thread
            elif self._heap[0][2] is entry:
                self._changed.notify()
        return entry

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._heap.clear()
            self._changed.notify()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout=5)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._closed and (not self._heap or self._heap[0][0] > self._monotonic()):
                    wait = self._heap[0][0] - self._monotonic() if self._heap else None
                    # The system takes no wait of centuries; one that is cut short is waited for again.
                    self._changed.wait(None if wait is None else min(wait, _LONGEST_WAIT))
                if self._closed:
                    return
                call = heapq.heappop(self._heap)[2].call
            if call is None:
                continue
            try:
                call()
            except BaseException:
                # One bad timer, be it a SystemExit, must not stop every other timer of the system.
                import logging  # commands import this module and log nothing

                logging.getLogger(__name__).exception("a timer raised")


class ManualClock:
    """A clock that stands still until a test moves it. Timers run in the thread that moves it."""

    def __init__(self, wall: float = 1_700_000_000.0, monotonic: float = 1_000.0) -> None:
        self._now = Moment(wall, monotonic)
        self._heap: list[tuple[float, int, _Call]] = []
        self._order = itertools.count()
        self._lock = threading.Lock()

    def now(self) -> Moment:
        return self._now

    def call_at(self, monotonic: float, call: Callable[[], None]) -> Timer:
        entry = _Call(call)
        _check(monotonic)
        with self._lock:
            heapq.heappush(self._heap, (monotonic, next(self._order), entry))
        return entry

    def close(self) -> None:
        with self._lock:
            self._heap.clear()

    @property
    def waiting(self) -> int:
        """Timers that have not been run or dropped, cancelled ones included."""
        return len(self._heap)

    @property
    def due(self) -> float:
        """The monotonic second of the next timer; infinite when there is none."""
        with self._lock:
            while self._heap and self._heap[0][2].call is None:
                heapq.heappop(self._heap)
            return self._heap[0][0] if self._heap else math.inf

    def advance(self, seconds: float) -> None:
        """Move both clocks and run what falls due, in order, each at its own second."""
        self.advance_to(self._now.monotonic + seconds)

    def advance_to(self, monotonic: float) -> None:
        """Go on to this time, in seconds, and fire every timer on the way."""
        while True:
            with self._lock:
                if not self._heap or self._heap[0][0] > monotonic:
                    break
                due, _, entry = heapq.heappop(self._heap)
            self._move_to(max(due, self._now.monotonic))
            if entry.call is not None:
                entry.call()
        self._move_to(monotonic)

    def set(self, now: Moment) -> None:
        """Set both clocks; no timer runs."""
        self._now = Moment(now.wall, now.monotonic)

    def jump(self, seconds: float) -> None:
        """Move the wall clock alone, as a correction of the system's time does."""
        self._now = Moment(self._now.wall + seconds, self._now.monotonic)

    def _move_to(self, monotonic: float) -> None:
        self._now = Moment(self._now.wall + monotonic - self._now.monotonic, monotonic)
