"""The future of an ask: Pykka's, but awaiting it does not block the loop.

Pykka's own `await future` yields once and then blocks in `get()` (jodal/pykka, `_future.py`); awaiting a
job of half a second freezes the event loop for half a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import queue
import threading
from collections.abc import Callable, Generator
from typing import Any, TypeVar

import pykka

from greenroom.actors.kernel.errors import Forked

_log = logging.getLogger(__name__)
_thread = threading.local()


def never_wait_here() -> None:
    """Declare that the running thread belongs to an actor, which must not wait for another's answer."""
    _thread.is_actor = True


class NoAnswerYet(pykka.Timeout, TimeoutError):
    """The timeout of `Reply.get` has passed; the answer may still come."""


R = TypeVar("R")


class Reply(pykka.ThreadingFuture[R]):
    """A slot for one answer, readable from threads (`get`) and loops (`await`)."""

    def __init__(self) -> None:
        super().__init__()
        self._callbacks: list[Callable[[], None]] = []
        self._callbacks_lock = threading.Lock()
        self._done = False
        self._pid = os.getpid()

    def done(self) -> bool:
        """True once there is an answer or an error."""
        return self._done

    def get(self, *, timeout: float | None = None) -> R:
        """Wait for the answer and return or raise it. Raises NoAnswerYet after `timeout` seconds."""
        if not self._done and getattr(_thread, "is_actor", False):
            # Two actors that wait for each other never return; neither does one that waits for itself.
            raise RuntimeError(
                "an actor must not wait for an answer inside a handler: use `tell` and a report"
            )
        self._expect_an_answer()
        if timeout is not None:
            timeout = min(timeout, threading.TIMEOUT_MAX)
        try:
            answer: R = super().get(timeout=timeout)
        except pykka.Timeout:
            raise NoAnswerYet(f"no answer within {timeout:g} seconds") from None
        return answer

    def set_get_hook(self, func: Any) -> None:  # noqa: ARG002 - Pykka's signature
        """Not offered: Pykka's `map` and its kin compute inside `get`, so the result could not be awaited."""
        raise TypeError("`map` and similar methods cannot be awaited: await the answer, then map it")

    def set(self, value: Any = None) -> None:
        """Give the answer. A second answer is ignored."""
        # queue.Full is how Pykka says that there is one already; an expiry and the real answer may race.
        try:
            super().set(value)
        except queue.Full:
            return
        self._fire()

    def fail(self, error: BaseException) -> bool:
        """Give an error instead of an answer; False when there is one already."""
        try:
            super().set_exception((type(error), error, error.__traceback__))
        except queue.Full:
            return False
        self._fire()
        return True

    def on_done(self, callback: Callable[[], None]) -> None:
        """Call back once, from whichever thread answers, or at once when there is an answer already."""
        with self._callbacks_lock:
            if not self._done:
                self._callbacks.append(callback)
                return
        callback()

    def __await__(self) -> Generator[Any, None, R]:
        self._expect_an_answer()
        loop = asyncio.get_running_loop()
        answered = loop.create_future()

        def settle() -> None:
            if not answered.done():
                answered.set_result(None)

        def wake() -> None:
            # The loop may have been closed meanwhile; then nothing waits.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(settle)

        self.on_done(wake)
        yield from answered.__await__()
        return self.get(timeout=0)

    def _expect_an_answer(self) -> None:
        if not self._done and os.getpid() != self._pid:
            raise Forked("this was asked before the fork, so only the parent process gets the answer")

    def _fire(self) -> None:
        with self._callbacks_lock:
            self._done = True
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            try:
                callback()
            except Exception:  # noqa: BLE001 - the caller failed, not the actor that answers
                _log.exception("a callback of an answer failed")
