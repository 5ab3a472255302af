"""Ends several things within one bound: what hangs is left behind, and holds up nothing else."""

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


class Ending:
    """One bound for everything that a stop ends."""

    def __init__(self, seconds: float) -> None:
        self._deadline = time.monotonic() + seconds

    def left(self, *, spare: float = 0.0, most: float | None = None) -> float:
        """Seconds that something may take now, so that `spare` are left for what comes after it."""
        left = max(_LEAST, self._deadline - spare - time.monotonic())
        return left if most is None else min(left, most)

    def all_of(self, work: Mapping[str, Callable[[], None]], *, spare: float = 0.0) -> None:
        """Do all of it at once, each on a thread of its own; leave `spare` seconds of the bound.

        What raises is logged, what does not end is named in the log and left behind.
        """
        threads: dict[str, Thread] = {}
        for name, do in work.items():
            try:
                threads[name] = start_thread(partial(_one, name, do), f"ending {name}")
            except RuntimeError:  # no thread left: one after the other, and the last resort if it hangs
                _one(name, do)
        deadline = time.monotonic() + self.left(spare=spare)
        for name, thread in threads.items():
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                _log.error("%s did not end in time and is abandoned", name)


class LastResort:
    """Ends the process when a stop hangs on what can be neither ended nor left behind.

    Python waits for the threads of its executors before it exits, for ever.
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
        # Now, since there may be no memory for a thread when it is needed.
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
        time.sleep(0.5)  # for the log's own thread
        os._exit(self._code)


def _one(name: str, do: Callable[[], None]) -> None:
    try:
        do()
    except Exception:  # noqa: BLE001 - the others shall be ended all the same
        _log.exception("ending %s failed", name)
