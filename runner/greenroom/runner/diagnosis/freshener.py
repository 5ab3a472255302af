"""Keeps what `why` needs of a long journal on disk, so that even the first question is answered quickly.

A process of its own reads the journal, at the lowest priority: in the daemon's it would take the interpreter
from requests. As a program, `python -m greenroom.runner.diagnosis.freshener JOURNAL`, this is that process.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from greenroom.runner.threads import NoThread, start_thread

_log = logging.getLogger(__name__)

LOOK_EVERY = 20.0
"""Seconds after the start, and between two looks at whether there is much to read."""
MANY = 4_000
"""New events that are read again: they would add 50 ms to a question."""
_BOUND = 300
"""Seconds after which the process ends, whatever it hangs on."""


class Freshener:
    """Looks at a journal from time to time, and has it read while nothing else is done."""

    def __init__(
        self,
        journal: Path,
        last: Callable[[], int],
        is_idle: Callable[[], bool],
        program: Sequence[str] = (sys.executable, "-P", "-m", __name__),
    ) -> None:
        """`last` gives the number of the last event. Both are called on a thread of its own.

        `program` reads the journal that it gets as its argument.
        """
        self._argv = [*program, str(journal)]
        self._last = last
        self._is_idle = is_idle
        self._read = 0
        """The last event when the journal was last read."""
        self._over = threading.Event()
        self._child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Begin to look. Without a thread for it, the first question takes longer."""
        try:
            start_thread(self._run, "why-cache")
        except NoThread as error:
            _log.warning("the cache of why is not kept up to date: %s", error)

    def stop(self) -> None:
        """Look no more, and kill the process that reads. Waits for nothing; idempotent."""
        self._over.set()
        if (child := self._child) is not None:
            child.kill()

    def _run(self) -> None:
        while not self._over.wait(LOOK_EVERY):
            last = self._last()
            if last - self._read >= MANY and self._is_idle():
                # Even if it fails: it would fail again until something has changed.
                self._read = last
                self._refresh()

    def _refresh(self) -> None:
        try:
            child = subprocess.Popen(
                self._argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                start_new_session=True,  # Ctrl-C is for the daemon, which then ends it
            )
        except OSError as error:
            _log.info("the cache of why was not brought up to date: %s", error)
            return
        self._child = child
        if self._over.is_set():
            # `stop` may have come before there was anything to kill.
            child.kill()
        code = child.wait()
        self._child = None
        if code and not self._over.is_set():
            _log.info("the cache of why was not brought up to date: its process ended with %d", code)


def main() -> None:
    """Read the journal that the command line names, and write the cache beside it."""
    os.nice(19)
    signal.alarm(_BOUND)
    gc.disable()  # events make many objects but no cycles
    from greenroom.actors.journal.reader import JournalReader
    from greenroom.runner.diagnosis.checkpoint import refresh

    with JournalReader(sys.argv[1]) as reader:
        refresh(reader)


if __name__ == "__main__":
    main()
