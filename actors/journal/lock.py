"""One writer a journal: a lock the kernel gives back when its holder dies, however it dies."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

from greenroom.actors.journal.port import JournalBusy


class WriterLock:
    """An exclusive lock on a file of its own, held until `release`.

    It is not put on the database file: closing any descriptor of a file drops every POSIX lock this
    process has on it, SQLite's among them.
    """

    def __init__(self, path: Path) -> None:
        """Take the lock; raises JournalBusy with the holder's pid."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = _read_pid(descriptor)
            os.close(descriptor)
            holder = f"process {pid}" if pid else "another process"
            raise JournalBusy(
                f"{holder} is writing to the journal in {path.parent}; stop it first", pid
            ) from None
        except BaseException:
            os.close(descriptor)
            raise
        # On a full disk the lock holds all the same, only its holder stays unnamed.
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)
        self._descriptor = descriptor

    def release(self) -> None:
        """Let others write. Idempotent."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _read_pid(descriptor: int) -> int:
    text = os.pread(descriptor, 32, 0).strip()
    return int(text) if text.isdigit() else 0
