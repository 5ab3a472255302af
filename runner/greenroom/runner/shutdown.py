"""Ends several things within one bound: what hangs is left behind, and holds up nothing else."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping

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
        threads = {
            name: threading.Thread(target=_one, args=(name, do), name=f"ending {name}", daemon=True)
            for name, do in work.items()
        }
        for thread in threads.values():
            thread.start()
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
        self._over = threading.Event()
        self._has_begun = False

    def begin(self) -> None:
        """The stop has begun. Idempotent."""
        if not self._has_begun:
            self._has_begun = True
            threading.Thread(target=self._wait, name="last-resort", daemon=True).start()

    def __enter__(self) -> None:
        """Nothing begins yet."""

    def __exit__(self, *_: object) -> None:
        """It has come to its end."""
        self._over.set()

    def _wait(self) -> None:
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
