"""One daemon a data directory: a lock held for life, which names its holder."""

from __future__ import annotations

import os
from pathlib import Path

from greenroom.actors.journal.lock import lock_exclusively, read_pid, unlock


class HomeLocked(Exception):
    """Another process holds the data directory; `pid` is that process, 0 when it has not said so yet."""

    def __init__(self, home: Path, pid: int) -> None:
        who = f"process {pid}" if pid else "another process"
        super().__init__(
            f"The data directory {home} is in use by {who}. "
            "Stop it with `greenroom stop`, or choose another directory with GREENROOM_HOME."
        )
        self.pid = pid


class DaemonLock:
    """`daemon.lock` in the data directory. The kernel lets go of it when the process ends."""

    def __init__(self, home: Path) -> None:
        """Take it. Raises HomeLocked, OSError."""
        self._file = (home / "daemon.lock").open("a+")
        try:
            lock_exclusively(self._file.fileno())
        except BlockingIOError:
            pid = read_pid(self._file.fileno())
            self._file.close()
            raise HomeLocked(home, pid) from None
        self._file.truncate(0)
        self._file.write(str(os.getpid()))
        self._file.flush()

    def release(self) -> None:
        """Let go. Idempotent."""
        if not self._file.closed:
            unlock(self._file.fileno())
            self._file.close()
