"""Who a process is: pid, kernel start time and boot together. A pid alone may by now be somebody else."""

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
        """True while this very process runs (a zombie does not), and while the system does not say."""
        if self.pid <= 1 or self.started <= 0 or self.boot != boot_id():
            return False
        try:
            return start_time(self.pid) == self.started
        except OSError as problem:
            _log.warning("process %s cannot be checked: %s", self.pid, problem)
            return True

    def send(self, number: signal.Signals) -> bool:
        """Signal this very process, or nobody; True when it was sent."""
        return self.alive() and here.send_signal(self.pid, self.started, number)

    def reap(self) -> None:
        """Let go of it, should it be a dead child of ours: orphans of the machine's first process are."""
        if self.pid > 1:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self.pid, os.WNOHANG)

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
