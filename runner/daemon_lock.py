"""One daemon a data directory: a lock held for life, which names its holder."""

from __future__ import annotations

import contextlib
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
        self._path = home / "daemon.lock"
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        self._file = os.fdopen(descriptor, "r+b", buffering=0)
        try:
            lock_exclusively(self._file.fileno())
        except BlockingIOError:
            pid = read_pid(self._file.fileno())
            self._file.close()
            raise HomeLocked(home, pid) from None
        status = os.fstat(self._file.fileno())
        self._identity = (status.st_dev, status.st_ino)
        # On a full disk the lock holds all the same, only its holder stays unnamed.
        with contextlib.suppress(OSError):
            os.ftruncate(self._file.fileno(), 0)
            os.pwrite(self._file.fileno(), str(os.getpid()).encode(), 0)

    def is_in_place(self) -> bool:
        """Whether the data directory is still the one that was locked. Blocks as long as the disk does."""
        try:
            status = os.stat(self._path)
        except PermissionError:
            return True  # it is there, whatever its mode is now
        except OSError:
            return False
        return (status.st_dev, status.st_ino) == self._identity

    def release(self) -> None:
        """Let go. Idempotent."""
        if not self._file.closed:
            unlock(self._file.fileno())
            self._file.close()
