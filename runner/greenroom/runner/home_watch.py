"""Notices when the data directory is removed under the daemon, or its disk stops answering."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

_log = logging.getLogger(__name__)

_EVERY = 1.0
_PATIENCE = 5.0
"""Seconds a check may take before the disk counts as hung."""


class HomeWatch:
    """Checks regularly, on a thread of its own: a check may hang as long as the disk does."""

    def __init__(self, home: Path, is_in_place: Callable[[], bool], *, every: float = _EVERY) -> None:
        self._home = home
        self._is_in_place = is_in_place
        self._every = every
        self._closed = threading.Event()
        self._looking_since = 0.0
        """When the current check began; 0 between checks."""
        self._is_gone = False

    def start(self) -> None:
        threading.Thread(target=self._run, name="home-watch", daemon=True).start()

    def close(self) -> None:
        """Stop checking. Does not wait for a check that hangs."""
        self._closed.set()

    @property
    def problem(self) -> str:
        """What is wrong with the data directory; empty if nothing is."""
        if self._is_gone:
            return (
                f"The data directory {self._home} was removed, replaced or unmounted while the daemon runs: "
                "nothing it stores is kept. Put it back, or stop the daemon: greenroom stop"
            )
        since = self._looking_since
        if since and time.monotonic() - since > _PATIENCE:
            return (
                f"The disk of the data directory {self._home} has not answered for "
                f"{time.monotonic() - since:.0f}s."
            )
        return ""

    def _run(self) -> None:
        while not self._closed.wait(self._every):
            self._looking_since = time.monotonic()
            is_gone = not self._is_in_place()
            self._looking_since = 0.0
            if is_gone != self._is_gone and not self._closed.is_set():
                self._is_gone = is_gone
                _log.error("%s", self.problem or f"The data directory {self._home} is back.")
