"""One daemon per data directory: a lock held for the process's lifetime, which names its holder."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from greenroom.actors.fork import on_fork
from greenroom.actors.journal.writer_lock import is_held, lock_exclusively, read_pid, unlock

_SHOWN = 80
"""Characters of a command line to show."""


class HomeLocked(Exception):
    """Another process holds the data directory; `pid` is 0 if it has not recorded it yet."""

    def __init__(self, home: Path, pid: int) -> None:
        holder = DaemonHolder.of(pid)
        advice = "Stop it with `greenroom stop`" if holder.is_daemon else "Stop that program"
        in_use = f"{holder}. {advice}, or choose another directory with GREENROOM_HOME."
        if pid == os.getpid():
            in_use = (
                "this very process, in which another Greenroom has it open. Use that one, or stop it first."
            )
        super().__init__(f"The data directory {home} is in use by {in_use}")
        self.pid = pid
        self.by_daemon = holder.is_daemon


@dataclass(frozen=True)
class DaemonHolder:
    pid: int
    """0 if not recorded yet, or not visible from here."""
    command: str = ""
    """Its command line, if available."""
    is_stopped: bool = False
    """By SIGSTOP, Ctrl-Z or a debugger: it does nothing until continued."""
    is_daemon: bool = True
    """False for another program with Greenroom embedded."""

    @classmethod
    def of(cls, pid: int) -> DaemonHolder:
        """From what the system reports about a process."""
        import psutil

        try:
            process = psutil.Process(pid) if pid else None
            if process is None:
                return cls(0)
            words = process.cmdline()
            stopped = process.status() in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)
        except psutil.Error:
            return cls(pid)
        command = "".join(letter if letter.isprintable() else " " for letter in " ".join(words))
        if len(command) > _SHOWN:
            command = f"{command[:_SHOWN]}…"
        return cls(pid, command, stopped, is_daemon=not words or "serve" in words)

    def __str__(self) -> str:
        if not self.pid:
            return "another process"
        return f"process {self.pid}{f' ({self.command})' if self.command else ''}"


def holder_of(home: Path) -> DaemonHolder | None:
    """The current holder of a data directory; None if there is none, or it may not be checked."""
    pid = holding_pid(home)
    return None if pid is None else DaemonHolder.of(pid)


def holding_pid(home: Path) -> int | None:
    """Like `holder_of`, without asking the system what that process is; 0 if it has not recorded its pid."""
    try:
        descriptor = os.open(home / "daemon.lock", os.O_RDONLY)
    except OSError:
        return None
    try:
        return read_pid(descriptor) if is_held(descriptor) else None
    except OSError:
        return None
    finally:
        os.close(descriptor)


class DaemonLock:
    """`daemon.lock` in the data directory. The kernel releases it when the process ends."""

    def __init__(self, home: Path) -> None:
        """Raises HomeLocked, OSError."""
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
        # On a full disk the lock still holds, only its holder is not recorded.
        with contextlib.suppress(OSError):
            os.ftruncate(self._file.fileno(), 0)
            os.pwrite(self._file.fileno(), str(os.getpid()).encode(), 0)
        on_fork(self)

    def is_in_place(self) -> bool:
        """Whether the data directory is still the one that was locked. Blocks as long as the disk does."""
        try:
            status = os.stat(self._path)
        except PermissionError:
            return True  # it exists, whatever its mode is now
        except OSError:
            return False
        return (status.st_dev, status.st_ino) == self._identity

    def release(self) -> None:
        """Idempotent."""
        if not self._file.closed:
            unlock(self._file.fileno())
            self._file.close()

    def forked(self) -> None:
        """A child holds nothing to release."""
        self._file.close()
