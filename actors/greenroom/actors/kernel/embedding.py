"""Starting and stopping what blocks, from a coroutine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


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
