"""How far jobs are: the board with the latest progress of each, and reports with a rate and stalls.

None of it is stored.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable

import msgspec

from greenroom.actors.fork import on_fork
from greenroom.actors.values import Part, Progress

Listener = Callable[[Progress], None]


def install_job(backend: str) -> str:
    return f"install/{backend}"


def pull_job(reference: str) -> str:
    return f"pull/{reference}"


def push_job(reference: str) -> str:
    return f"push/{reference}"


def load_job(engine_id: str) -> str:
    return f"load/{engine_id}"


def request_job(request_id: str) -> str:
    return f"request/{request_id}"


class ProgressBoard:
    """Thread-safe. Effects publish, the front door reads and listens."""

    def __init__(self) -> None:
        self._latest: dict[str, Progress] = {}
        self._listeners: dict[str, list[Listener]] = {}
        self._lock = threading.Lock()
        on_fork(self)

    def forked(self) -> None:
        self._lock = threading.Lock()

    def publish(self, progress: Progress) -> None:
        """Make this the latest of its job, and call its listeners in this thread."""
        with self._lock:
            self._latest[progress.job] = progress
            listeners = tuple(self._listeners.get(progress.job, ()))
        for listener in listeners:
            listener(progress)

    def clear(self, job: str) -> None:
        with self._lock:
            self._latest.pop(job, None)

    def latest(self, job: str) -> Progress | None:
        return self._latest.get(job)

    def running(self) -> dict[str, Progress]:
        with self._lock:
            return dict(self._latest)

    def listen(self, job: str, listener: Listener) -> Callable[[], None]:
        """Call `listener`, which must be quick, for each progress of a job; returns what stops that."""
        with self._lock:
            self._listeners.setdefault(job, []).append(listener)

        def stop() -> None:
            with self._lock, contextlib.suppress(ValueError):
                self._listeners.get(job, []).remove(listener)
                if not self._listeners.get(job):
                    self._listeners.pop(job, None)

        return stop


_REPORT_EVERY = 0.1
_WINDOW = 4.0
"""Seconds over which the rate is measured."""
TICK = 1.0
STALL = 5.0
"""Seconds without a byte after which a stall is reported."""


def _digest_of(name: str) -> str:
    import hashlib  # commands that read a journal import this module and hash nothing

    return f"sha256:{hashlib.sha256(name.encode()).hexdigest()}"


class FileProgress:
    def __init__(self, digest: str, name: str, size: int) -> None:
        """`digest` may be empty: then the name identifies the file."""
        self._id = digest or _digest_of(name)
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

    def phase(self, phase: str, message: str, percent: int | None = None) -> None:
        """Report a phase of an installation, which keeps the bytes counted so far."""
        with self._lock:
            self._last = msgspec.structs.replace(
                self._last, phase=phase, message=message, rate=0.0, percent=percent
            )
            self._listener(self._last)

    def bytes(self, message: str, done: int, total: int) -> None:
        """Report the bytes of an installation that are present; they never fall."""
        self.report("downloading", max(done, self._last.done), total, message)

    def tick(self) -> None:
        """Repeat the last report if it is a second old, so that the rate falls and a stall shows."""
        last = self._last
        if last.total and last.done < last.total and self._now() - self._at >= TICK:
            self.report(last.phase, last.done, last.total, self._said, self._moving)

    def end(self) -> None:
        """Report nothing more: the outcome comes last."""
        with self._lock:
            self._ended = True
