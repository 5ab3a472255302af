"""One daemon a data directory: a lock held for life, which names its holder."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


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
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.seek(0)
            text = self._file.read().strip()
            self._file.close()
            raise HomeLocked(home, int(text) if text.isdigit() else 0) from None
        self._file.truncate(0)
        self._file.write(str(os.getpid()))
        self._file.flush()

    def release(self) -> None:
        """Let go. Idempotent."""
        self._file.close()
