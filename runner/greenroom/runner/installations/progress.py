"""Progress of one installation: phases, rising byte counts, speed, and stalls that are said."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from greenroom.actors.values import Progress

_STALL_SECONDS = 5.0
_WINDOW_SECONDS = 4.0


class ProgressReport:
    """Turns what happens into `Progress` values; `done` never falls, and ends at `total`."""

    def __init__(
        self,
        job: str,
        listener: Callable[[Progress], None] | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.job = job
        self._listener = listener
        self._now = now
        self._done = 0
        self._total = 0
        self._moved_at = now()
        self._marks: deque[tuple[float, int]] = deque()

    def phase(self, phase: str, message: str) -> None:
        """A phase that has no bytes of its own."""
        self._send(phase, message, 0.0)

    def bytes(self, message: str, done: int, total: int) -> None:
        """So many bytes are here."""
        now = self._now()
        if done > self._done:
            self._moved_at = now
        self._done, self._total = max(done, self._done), total
        self._marks.append((now, self._done))
        while len(self._marks) > 2 and now - self._marks[0][0] > _WINDOW_SECONDS:
            self._marks.popleft()
        (then, before), (last, after) = self._marks[0], self._marks[-1]
        rate = (after - before) / (last - then) if last > then else 0.0
        still = now - self._moved_at
        if still >= _STALL_SECONDS and done < total:
            message = f"{message}: nothing has come for {still:.0f} s"
        self._send("downloading", message, rate)

    def _send(self, phase: str, message: str, rate: float) -> None:
        if self._listener is not None:
            self._listener(
                Progress(
                    job=self.job,
                    phase=phase,
                    message=message,
                    done=self._done,
                    total=self._total,
                    rate=rate,
                )
            )
