"""Ends several things within one time limit: what hangs is abandoned, and delays nothing else."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial

from greenroom.runner.threads import Thread, start_thread

_log = logging.getLogger(__name__)

_LEAST = 0.2
"""Seconds that the last part gets even when the time is used up."""


class StopDeadline:
    """One time limit for everything that a stop ends."""

    def __init__(self, seconds: float) -> None:
        self._deadline = time.monotonic() + seconds

    def left(self, *, spare: float = 0.0, most: float | None = None) -> float:
        """Seconds that something may take now, leaving `spare` for what follows."""
        left = max(_LEAST, self._deadline - spare - time.monotonic())
        return left if most is None else min(left, most)

    def all_of(self, work: Mapping[str, Callable[[], None]], *, spare: float = 0.0) -> None:
        """Do all of it concurrently, each on a thread of its own, leaving `spare` seconds.

        Errors are logged; what does not end is logged and abandoned.
        """
        threads: dict[str, Thread] = {}
        for name, do in work.items():
            try:
                threads[name] = start_thread(partial(_one, name, do), f"ending {name}")
            except RuntimeError:  # no thread left: do it in turn; the last resort applies if it hangs
                _one(name, do)
        deadline = time.monotonic() + self.left(spare=spare)
        for name, thread in threads.items():
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                _log.error("%s did not end in time and is abandoned", name)


class LastResort:
    """Ends the process when a stop hangs on something that can be neither ended nor abandoned.

    Python waits without limit for executor threads before it exits.
    """

    def __init__(self, seconds: float, *, code: int = 1) -> None:
        self._seconds = seconds
        self._code = code
        self._begun = threading.Event()
        self._over = threading.Event()
        self._waits = False

    def begin(self) -> None:
        """The stop has begun. Idempotent."""
        self._begun.set()
        self._start()

    def __enter__(self) -> None:
        # Started now, since there may be no memory for a thread later.
        self._start()

    def _start(self) -> None:
        if not self._waits:
            self._waits = True
            start_thread(self._wait, "last-resort")

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._begun.set()

    def _wait(self) -> None:
        self._begun.wait()
        if self._over.wait(self._seconds):
            return
        _log.critical("the stop hangs; the process exits without waiting for it")
        time.sleep(0.5)  # lets the log's own thread finish
        os._exit(self._code)


def _one(name: str, do: Callable[[], None]) -> None:
    try:
        do()
    except Exception:  # noqa: BLE001 - the others must end all the same
        _log.exception("ending %s failed", name)
