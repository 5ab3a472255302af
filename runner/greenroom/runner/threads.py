"""Threads whose start cannot hang, and calls on them that can be abandoned.

`threading.Thread.start` waits without limit for the new thread to report that it runs. A thread that finds no
memory for its first call ends before that, and its starter waits forever, with every lock it holds.

Python cannot interrupt a thread that looks up a name, connects, or reads from a hung file system. A caller
whose wait is over, or cancelled, abandons the thread; it ends when the call returns.
"""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from functools import partial
from typing import Generic, Protocol, TypeVar

from greenroom.runner.errors import JobCancelled

BEGINS_WITHIN = 10.0
"""Seconds within which a new thread must have begun, even on a busy machine."""


class NoThread(RuntimeError, OSError):
    """The machine has no thread or no memory for one. The work is not done, and never will be."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.errno, self.strerror = errno.EAGAIN, text


class _Begun(threading.Event):
    def __init__(self) -> None:
        super().__init__()
        self.guard = threading.Lock()
        self.given_up = False

    def wait(self, timeout: float | None = None) -> bool:
        if super().wait(BEGINS_WITHIN if timeout is None else timeout):
            return True
        with self.guard:
            if not self.is_set():
                self.given_up = True
                raise NoThread(f"a thread did not begin within {BEGINS_WITHIN:g}s")
        return True

    def set(self) -> None:
        with self.guard:
            if not self.given_up:
                super().set()


class Thread(threading.Thread):
    """A daemon thread for one piece of work.

    `start` raises NoThread.
    """

    def __init__(self, work: Callable[[], object], name: str) -> None:
        super().__init__(name=name, daemon=True)
        self._work = work
        # The event that `start` waits for. It has no public name; the tests fail if it is renamed.
        self._started = _Begun()

    def start(self) -> None:
        """Begin. Raises NoThread."""
        try:
            super().start()
        except NoThread:
            raise
        except RuntimeError as error:  # the system's limit of threads
            raise NoThread(str(error)) from error

    def run(self) -> None:
        """Do the work, unless `start` has given up."""
        if not self._started.given_up:
            self._work()


def start_thread(work: Callable[[], object], name: str) -> Thread:
    """Begin work on a thread of its own. Raises NoThread."""
    thread = Thread(work, name)
    thread.start()
    return thread


T = TypeVar("T")

_TICK = 0.1


class Flag(Protocol):
    """A cancel flag; `threading.Event` is one."""

    def is_set(self) -> bool: ...


def stop_if(cancel: Flag | None) -> None:
    if cancel is not None and cancel.is_set():
        raise JobCancelled


class TookTooLong(Exception):
    """The call did not finish in time."""


class Beside(Generic[T]):
    """A call that runs beside other work and need not be waited for.

    Unlike a pool's, its thread blocks neither the caller nor the program's exit.
    """

    def __init__(self, call: Callable[[], T], name: str) -> None:
        self.future: Future[T] = Future()
        start_thread(partial(settle, self.future, call), name)

    def result(self, *, cancel: Flag | None = None, seconds: float | None = None) -> T:
        """Wait for the call and return or raise what it does.

        Raises:
            TookTooLong: The time is over.
            JobCancelled: `cancel` was set.
        """
        deadline = None if seconds is None else time.monotonic() + seconds
        while not wait([self.future], _TICK).done:
            stop_if(cancel)
            if deadline is not None and time.monotonic() >= deadline:
                raise TookTooLong
        return self.future.result()


def settle(future: Future[T], call: Callable[[], T]) -> None:
    """Make a call, and give its outcome to a future."""
    try:
        future.set_result(call())
    except BaseException as error:  # noqa: BLE001 - raised where the result is asked for
        future.set_exception(error)


def bounded(
    call: Callable[[], T],
    *,
    name: str,
    seconds: float | None,
    cancel: Flag | None = None,
    drop: Callable[[T], object] | None = None,
    left: Callable[[], object] | None = None,
) -> T:
    """Run a call on a thread of its own and return or raise what it does.

    Args:
        call: May block indefinitely.
        name: The thread's name.
        seconds: How long to wait; None for no limit.
        cancel: Stops the wait when set.
        drop: Receives a result that arrives after the wait, on any thread.
        left: Called when the wait ends before the call does, to wake the call where possible.

    Raises:
        TookTooLong: The time is over.
        JobCancelled: `cancel` was set.
    """
    work = Beside(call, name)
    try:
        return work.result(seconds=seconds, cancel=cancel)
    except BaseException:
        if left is not None and not work.future.done():
            left()
        if drop is not None:
            work.future.add_done_callback(lambda done: done.exception() or drop(done.result()))
        raise


@contextmanager
def repeating(call: Callable[[], None], every: float, name: str) -> Iterator[None]:
    """Meanwhile, make a call every so many seconds; not where the machine has no thread for it."""
    over = threading.Event()

    def run() -> None:
        while not over.wait(every):
            call()

    with suppress(RuntimeError):
        start_thread(run, name)
    try:
        yield
    finally:
        over.set()
