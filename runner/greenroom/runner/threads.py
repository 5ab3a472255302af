"""Threads whose start cannot hang.

`threading.Thread.start` waits without limit for the new thread to report that it runs. A thread that finds no
memory for its first call ends before that, and its starter waits forever, with every lock it holds.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable

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
