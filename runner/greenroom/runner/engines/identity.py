"""Identifies a process by pid, start time and boot together; a pid alone may have been reused."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from dataclasses import dataclass
from pathlib import Path

from greenroom.runner.systems import here

__all__ = ["ProcessIdentity", "boot_id", "of_folder", "start_time"]

_log = logging.getLogger(__name__)

boot_id = here.boot_id
start_time = here.start_time


@dataclass(frozen=True)
class ProcessIdentity:
    """One process of one boot; a later process with the same pid is another."""

    pid: int
    started: float
    """As `start_time` reads it; 0.0 if unknown, and then the process is never signalled."""
    boot: str
    """As `boot_id` reads it; "" where the system has none, and then only the start time counts."""

    @classmethod
    def of(cls, pid: int) -> ProcessIdentity | None:
        """Of a living process; None if there is none."""
        started = start_time(pid)
        return cls(pid, started, boot_id()) if started else None

    def alive(self) -> bool:
        """True while this very process runs (a zombie does not), and while that cannot be read."""
        if self.pid <= 1 or self.started <= 0 or self.boot != boot_id():
            return False
        try:
            return start_time(self.pid) == self.started
        except OSError as problem:
            _log.warning("process %s cannot be checked: %s", self.pid, problem)
            return True

    def send(self, number: signal.Signals) -> bool:
        """Signal this very process, or none; True if it was sent."""
        return self.alive() and here.send_signal(self.pid, self.started, number)

    def reap(self) -> None:
        """Reap it if it is a dead child of ours: as the machine's first process we inherit orphans."""
        if self.pid > 1:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self.pid, os.WNOHANG)

    def send_group(self, number: signal.Signals) -> bool:
        """Signal the process group this process leads; just the process if it leads none."""
        if not self.alive():
            return False
        try:
            if os.getpgid(self.pid) != self.pid:
                return self.send(number)
            os.killpg(self.pid, number)
        except (ProcessLookupError, PermissionError):
            return False
        return True


def of_folder(folder: Path) -> list[ProcessIdentity]:
    """This user's living processes that were started for an engine folder, found by their environment.

    Finds what is left of an engine whose keeper and leader are dead, and whose pids are otherwise unknown.
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
