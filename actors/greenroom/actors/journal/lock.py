"""One writer a journal: a lock the kernel gives back when its holder dies, however it dies."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from pathlib import Path
from typing import Protocol
from weakref import WeakSet

from greenroom.actors.journal.port import JournalBusy

PATIENCE = 10.0
"""Seconds to wait for a lock whose holder is dead: far more than a child needs to begin its own program."""
_LOOK_EVERY = 0.005


class Holder(Protocol):
    """Something that has locked a file."""

    def forked(self) -> None:
        """This is a copy in a forked child: close the file without unlocking it."""
        ...


_holders: WeakSet[Holder] = WeakSet()


def note_holder(holder: Holder) -> None:
    """Have it told of forks. The lock belongs to the open file, which a child shares: a child that unlocks it
    takes it from its parent, and one that keeps it open holds it when the parent has long ended.
    """
    _holders.add(holder)


def _after_fork() -> None:
    for holder in tuple(_holders):
        holder.forked()


os.register_at_fork(after_in_child=_after_fork)


def lock_exclusively(descriptor: int) -> None:
    """Lock an open file that holds its holder's pid as text. Raises BlockingIOError when somebody holds it.

    A child the holder has just forked shares the lock until it begins a program of its own, and may live on
    for that moment when the holder is killed. So a dead holder's lock is waited for, `PATIENCE` at most.
    """
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = read_pid(descriptor)
            if not pid or _lives(pid) or time.monotonic() >= deadline:
                raise
        else:
            return
        time.sleep(_LOOK_EVERY)  # nothing tells us but looking


def unlock(descriptor: int) -> None:
    """Give the lock back before the file is closed: a child that was just forked has it open, too."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)


def read_pid(descriptor: int) -> int:
    """Whom a lock file names; 0 when it names nobody yet."""
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
        note_holder(self)

    def forked(self) -> None:
        """In a child there is nothing to give back."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def release(self) -> None:
        """Let others write. Idempotent."""
        if self._descriptor >= 0:
            unlock(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    try:
        # Dead, and nobody has asked what became of it (proc(5)).
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] != b"Z"
    except (OSError, IndexError):
        return True
