"""Who a process is: pid, kernel start time and boot together. A pid alone may by now be somebody else."""

from __future__ import annotations

import contextlib
import os
import signal
from dataclasses import dataclass
from pathlib import Path

from greenroom.runner.engines.keeper import boot_id, start_time

__all__ = ["ProcessIdentity", "boot_id", "of_folder", "start_time"]


@dataclass(frozen=True)
class ProcessIdentity:
    """One process of one boot, and no other that gets its number later."""

    pid: int
    started: float
    """As `start_time` reads it; 0.0 is unknown, and the unknown is never signalled."""
    boot: str
    """As `boot_id` reads it; "" where the system does not say, and then only the start time counts."""

    @classmethod
    def of(cls, pid: int) -> ProcessIdentity | None:
        """Of a living process; None when there is none."""
        started = start_time(pid)
        return cls(pid, started, boot_id()) if started else None

    def alive(self) -> bool:
        """True while this very process runs (a zombie does not)."""
        return (
            self.pid > 1
            and self.started > 0
            and self.boot == boot_id()
            and start_time(self.pid) == self.started
        )

    def send(self, number: signal.Signals) -> bool:
        """Signal this very process, or nobody; True when it was sent."""
        if not self.alive():
            return False
        if not hasattr(os, "pidfd_open"):
            return _signal_by_number(os.kill, self.pid, number)
        try:
            fd = os.pidfd_open(self.pid)
        except OSError:
            return False
        try:
            # The descriptor holds whoever has the number now; asked again, it is ours or nobody.
            if not self.alive():
                return False
            signal.pidfd_send_signal(fd, number)
        except ProcessLookupError:
            return False
        finally:
            os.close(fd)
        return True

    def send_group(self, number: signal.Signals) -> bool:
        """Signal the process group this process leads; nobody when it does not live or leads none."""
        if not self.alive():
            return False
        try:
            if os.getpgid(self.pid) != self.pid:
                return self.send(number)
        except ProcessLookupError:
            return False
        return _signal_by_number(os.killpg, self.pid, number)


def of_folder(folder: Path) -> list[ProcessIdentity]:
    """Living processes of this user that were started for an engine folder, by their environment.

    Finds what is left of an engine whose keeper and leader are dead: nothing else knows its pids then.
    """
    import psutil

    found = []
    for process in psutil.process_iter(["pid"]):
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get("GREENROOM_ENGINE_FOLDER") == str(folder):
                identity = ProcessIdentity.of(process.pid)
                if identity is not None and process.pid != os.getpid():
                    found.append(identity)
    return found


def _signal_by_number(send: object, pid: int, number: signal.Signals) -> bool:
    assert callable(send)
    try:
        send(pid, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True
