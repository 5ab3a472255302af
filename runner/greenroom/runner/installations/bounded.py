"""Runs work that may never end: waiting for it has a time limit and ends on a cancel.

Python cannot interrupt a thread that looks up a name, connects, or reads from a file system that hangs. So
such work has a thread of its own that can be abandoned; the thread ends when it can.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from greenroom.runner.errors import JobCancelled

T = TypeVar("T")

_TICK = 0.1


class Flag(Protocol):
    """What tells work to end; an `Event` is one."""

    def is_set(self) -> bool:
        """True when it should."""


class TookTooLong(Exception):
    """It had not ended when its time was over."""


class _Work(Generic[T]):
    """One call on a thread of its own. Its result goes to whoever waits, or is dropped."""

    def __init__(self, call: Callable[[], T], drop: Callable[[T], object] | None) -> None:
        self._call = call
        self._drop = drop
        self._guard = threading.Lock()
        self._left = False
        self._result: list[T] = []
        self._error: BaseException | None = None
        self.ended = threading.Event()

    def run(self) -> None:
        try:
            result = self._call()
        except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
            self._error = error
        else:
            with self._guard:
                self._result.append(result)
                left = self._left
            if left and self._drop is not None:
                self._drop(result)
        finally:
            self.ended.set()

    def leave(self) -> None:
        """Nothing waits for the result any more."""
        with self._guard:
            self._left = True
            late = list(self._result)
        for result in late:
            if self._drop is not None:
                self._drop(result)

    def result(self) -> T:
        if self._error is not None:
            raise self._error
        return self._result[0]


def bounded(
    call: Callable[[], T],
    *,
    name: str,
    seconds: float | None,
    cancel: Flag | None = None,
    drop: Callable[[T], object] | None = None,
    left: Callable[[], object] | None = None,
) -> T:
    """The result of a call, or what it raises.

    Args:
        call: Blocks for as long as it likes.
        name: Of its thread.
        seconds: How long it is waited for; None for as long as it takes.
        cancel: When set, it is not waited for any more.
        drop: Gets a result that came too late, on any thread.
        left: Called when the wait ends before the call: to wake it where that can be done.

    Raises:
        TookTooLong: The time is over.
        JobCancelled: `cancel` was set.
    """
    work = _Work(call, drop)
    threading.Thread(target=work.run, name=name, daemon=True).start()
    try:
        _wait(work.ended, seconds, cancel)
    except BaseException:
        if left is not None:
            left()
        work.leave()
        raise
    return work.result()


class Beside(Generic[T]):
    """A call that is carried out while other work goes on, and that nobody has to wait for in the end.

    Unlike a pool's, its thread holds up neither the caller nor the end of the program.
    """

    def __init__(self, call: Callable[[], T], name: str) -> None:
        """Begin."""
        self._work = _Work(call, None)
        threading.Thread(target=self._work.run, name=name, daemon=True).start()

    def result(self, *, cancel: Flag | None = None, seconds: float | None = None) -> T:
        """What it returned or raised.

        Raises:
            TookTooLong: The time is over.
            JobCancelled: `cancel` was set.
        """
        _wait(self._work.ended, seconds, cancel)
        return self._work.result()


def _wait(ended: threading.Event, seconds: float | None, cancel: Flag | None) -> None:
    deadline = None if seconds is None else time.monotonic() + seconds
    while not ended.wait(_TICK):
        if cancel is not None and cancel.is_set():
            raise JobCancelled
        if deadline is not None and time.monotonic() >= deadline:
            raise TookTooLong
