"""An event loop of its own in a thread, for what a program of threads, or its own loop, cannot run."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from greenroom.actors.kernel.errors import Forked
from greenroom.runner.threads import start_thread

T = TypeVar("T")

_END = 3.0
"""Seconds that what still runs in the loop has to end once it is cancelled."""


class LoopThread:
    """Runs until it is closed. For any thread."""

    def __init__(self, name: str) -> None:
        """Raises NoThread."""
        self._loop = asyncio.new_event_loop()
        self._pid = os.getpid()
        try:
            self._thread = start_thread(self._run, name)
        except BaseException:
            self._loop.close()
            raise

    def begin(self, work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Run it in the loop. Cancelling the future cancels it there.

        Raises Forked in a child of the process that has started it, and ConnectionError once it is closed.
        """
        if os.getpid() != self._pid:
            work.close()
            raise Forked(f"this was started in process {self._pid}, and its thread is not in a fork")
        try:
            return asyncio.run_coroutine_threadsafe(work, self._loop)
        except RuntimeError as error:  # the loop is closed
            work.close()
            raise ConnectionResetError("Greenroom has been stopped.") from error

    def is_current(self) -> bool:
        """It is this very thread."""
        return threading.current_thread() is self._thread

    def close(self) -> None:
        """Cancel what runs in it and end the thread, within a bound. Idempotent."""
        if os.getpid() != self._pid:
            return
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._loop.stop)
        if not self.is_current():
            self._thread.join(2 * _END)

    def _run(self) -> None:
        loop = self._loop
        asyncio.set_event_loop(loop)
        try:
            loop.run_forever()
            left = asyncio.all_tasks(loop)
            for task in left:
                task.cancel()
            if left:
                loop.run_until_complete(asyncio.wait(left, timeout=_END))
            loop.run_until_complete(loop.shutdown_asyncgens())
        finally:
            asyncio.set_event_loop(None)
            loop.close()
