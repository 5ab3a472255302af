"""One writer a journal: a lock the kernel gives back when its holder dies, however it dies."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from pathlib import Path

from greenroom.actors.fork import on_fork

PATIENCE = 10.0
"""Seconds to wait for a lock whose holder is dead, or which is only checked: each lasts for a moment."""
_LOOK_EVERY = 0.005


def lock_exclusively(descriptor: int) -> None:
    """Lock an open file that holds its holder's pid as text. Raises BlockingIOError when it is held.

    The lock belongs to the open file, which a forked child shares: a child that unlocks it takes it from its
    parent, and one that keeps it open still holds it when the parent has long ended. So holders register with
    `on_fork` and close the file there.

    Two things are waited for, `PATIENCE` at most:

    - A dead holder's lock. A child the holder has just forked shares the lock until it begins a program of
      its own, and may live on for that moment when the holder is killed.
    - A shared lock. A process that only checks who holds the lock takes it shared, for a moment.
    """
    deadline = time.monotonic() + PATIENCE
    while not _try_lock(descriptor, fcntl.LOCK_EX):
        if time.monotonic() >= deadline or (is_held(descriptor) and _has_living_holder(descriptor)):
            raise BlockingIOError
        time.sleep(_LOOK_EVERY)  # flock has no wait with a bound


def is_held(descriptor: int) -> bool:
    """Whether another process, or another open file of this one, holds the lock."""
    if _try_lock(descriptor, fcntl.LOCK_SH):
        unlock(descriptor)
        return False
    return True


def _try_lock(descriptor: int, kind: int) -> bool:
    """Whether the lock could be taken at once."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def unlock(descriptor: int) -> None:
    """Give the lock back before the file is closed: a child that was just forked has it open, too."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)


def read_pid(descriptor: int) -> int:
    """The pid in a lock file; 0 when there is none yet."""
    text = os.pread(descriptor, 32, 0).strip()
    return int(text) if text.isdigit() else 0


class WriterLock:
    """An exclusive lock on a file of its own, held until `release`.

    It is not put on the database file: closing any descriptor of a file drops every POSIX lock this
    process has on it, SQLite's among them.
    """

    def __init__(self, path: Path) -> None:
        """Take the lock; raises JournalBusy with the holder's pid."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            lock_exclusively(descriptor)
        except BlockingIOError:
            # Here, since clients import this module, and nothing else of a journal.
            from greenroom.actors.journal.port import JournalBusy

            pid = read_pid(descriptor)
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
        on_fork(self)

    def forked(self) -> None:
        """Close the file without unlocking it: the lock is the parent's."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def release(self) -> None:
        """Let others write. Idempotent."""
        if self._descriptor >= 0:
            unlock(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1


def _has_living_holder(descriptor: int) -> bool:
    """Also while the holder has not recorded its pid yet."""
    pid = read_pid(descriptor)
    if not pid:
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    try:
        # Dead, and not waited for by its parent yet (proc(5)).
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] != b"Z"
    except (OSError, IndexError):
        return True
