"""Reports how far a download, upload or installation is, with its rate and its stalls."""

from __future__ import annotations

import hashlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress

import msgspec

from greenroom.actors.values import Part, Progress
from greenroom.runner.threads import start_thread

_REPORT_EVERY = 0.1
_WINDOW = 4.0
"""Seconds over which the rate is measured."""
_TICK = 1.0
STALL = 5.0
"""Seconds without a byte after which a stall is reported."""


class FileProgress:
    """Progress of one file."""

    def __init__(self, digest: str, name: str, size: int) -> None:
        """`digest` may be empty: then the name identifies the file."""
        self._id = digest or f"sha256:{hashlib.sha256(name.encode()).hexdigest()}"
        self._name = name
        self._size = size
        self.done = 0

    def part(self) -> Part:
        return Part(id=self._id, name=self._name, size=self._size, done=self.done)


class ProgressReport:
    """Reports progress: throttled, with a rate, and nothing after the end. Thread-safe."""

    def __init__(
        self, job: str, listener: Callable[[Progress], None], now: Callable[[], float] = time.monotonic
    ) -> None:
        self.job = job
        self._now = now
        self._listener = listener
        self._lock = threading.Lock()
        self._ended = False
        self._last = Progress(job=job, phase="")
        self._at = 0.0
        self._marks: deque[tuple[float, int]] = deque()
        """Recent (time, bytes) in this phase."""
        self._moved_at = 0.0
        self._stalled = False
        self._said = ""
        self._moving: tuple[FileProgress, ...] = ()

    @property
    def last(self) -> Progress:
        """The last report."""
        return self._last

    def report(
        self, phase: str, done: int, total: int, message: str = "", moving: Iterable[FileProgress] = ()
    ) -> None:
        """Report progress; may be called at any rate, from any thread."""
        with self._lock:
            now, last, said, moved = self._now(), self._last, message, tuple(moving)
            begun = phase != last.phase
            resumed = self._stalled and done > last.done
            due = begun or resumed or now - self._at >= _REPORT_EVERY or (total and done >= total)
            if self._ended or not due:
                return
            if begun or done < last.done:
                self._marks.clear()
            if not self._marks or done > self._marks[-1][1]:
                self._moved_at = now
            self._marks.append((now, done))
            while len(self._marks) > 2 and now - self._marks[1][0] >= _WINDOW:
                self._marks.popleft()
            (then, before), (_, after) = self._marks[0], self._marks[-1]
            rate = (after - before) / (now - then) if now > then else 0.0
            still = now - self._moved_at
            self._stalled = still >= STALL and done < total
            if self._stalled:
                words = f"nothing received for {still:.0f}s"
                message = f"{message}: {words}" if message else words
                rate = 0.0
            self._last = Progress(
                job=self.job,
                phase=phase,
                message=message,
                done=done,
                total=total,
                rate=round(rate, 1),
                parts=tuple(one.part() for one in moved),
            )
            self._at = now
            self._said, self._moving = said, moved
            self._listener(self._last)

    def phase(self, phase: str, message: str) -> None:
        """Report a phase of an installation, which keeps the bytes counted so far."""
        with self._lock:
            self._last = msgspec.structs.replace(self._last, phase=phase, message=message, rate=0.0)
            self._listener(self._last)

    def bytes(self, message: str, done: int, total: int) -> None:
        """Report the bytes of an installation that are present; they never fall."""
        self.report("downloading", max(done, self._last.done), total, message)

    @contextmanager
    def ticking(self) -> Iterator[None]:
        """Meanwhile, repeat the last report each second, so that the rate falls and a stall shows."""
        over = threading.Event()

        def tick() -> None:
            while not over.wait(_TICK):
                last = self._last
                if last.total and last.done < last.total and self._now() - self._at >= _TICK:
                    self.report(last.phase, last.done, last.total, self._said, self._moving)

        with suppress(RuntimeError):  # without a thread for it, the pull still works
            start_thread(tick, "progress")
        try:
            yield
        finally:
            over.set()

    def end(self) -> None:
        """Report nothing more: the outcome comes last."""
        with self._lock:
            self._ended = True
