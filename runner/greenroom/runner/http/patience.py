"""How long a client is waited for: only time in which we could have noticed it counts."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

_STEP = 1.0
"""Seconds between two looks; of a longer gap, in which this process was stopped, no more counts than two."""


class Patience:
    """Like `asyncio.timeout`, but a process that was stopped, or a machine that slept, ends nobody's time.

    The block raises TimeoutError.
    """

    def __init__(self, seconds: float) -> None:
        self.used = 0.0
        """Seconds that have counted so far."""
        self._seconds = seconds
        self._bound = asyncio.timeout(None)
        self._loop = asyncio.get_running_loop()
        self._seen = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Self:
        await self._bound.__aenter__()
        self._wait()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._count()
        await self._bound.__aexit__(kind, error, trace)

    def _wait(self) -> None:
        self._timer = self._loop.call_later(max(0.0, min(_STEP, self._seconds - self.used)), self._look)

    def _look(self) -> None:
        self._count()
        if self.used >= self._seconds:
            self._bound.reschedule(self._loop.time())
        else:
            self._wait()

    def _count(self) -> None:
        now = self._loop.time()
        self.used += min(now - self._seen, 2 * _STEP)
        self._seen = now
