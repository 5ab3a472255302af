"""`with` and `async with` for what blocks while it starts and stops."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Self


class Startable(ABC):
    """A context manager, plain and asynchronous: starts on entry, stops on exit.

    `async with` blocks no loop, and what a cancelled caller had started is stopped again.
    """

    @abstractmethod
    def start(self) -> None: ...

    @abstractmethod
    def stop(self) -> None: ...

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        await start_in_thread(self.start, self.stop)
        return self

    async def __aexit__(self, *_: object) -> None:
        await stop_in_thread(self.stop)


async def start_in_thread(start: Callable[[], None], stop: Callable[[], None]) -> None:
    """Run `start` in a thread; if the caller is cancelled meanwhile, wait for it and run `stop`.

    A thread cannot be cancelled: left alone it would leave something running.
    """
    starting = asyncio.ensure_future(asyncio.to_thread(start))
    try:
        await asyncio.shield(starting)
    except asyncio.CancelledError:
        await asyncio.wait([starting])
        if not starting.cancelled() and starting.exception() is None:
            await stop_in_thread(stop)
        raise


async def stop_in_thread(stop: Callable[[], None]) -> None:
    """Run `stop` in a thread to its end, also when the caller is cancelled."""
    stopping = asyncio.ensure_future(asyncio.to_thread(stop))
    try:
        await asyncio.shield(stopping)
    except asyncio.CancelledError:
        await asyncio.wait([stopping])
        raise
