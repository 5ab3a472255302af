"""Processes: which one it is, what a group of them uses, and what state they are in.

A process is identified by pid, start time and boot together; a pid alone may have been reused. An engine is a
process group; its leader's pid is the group's number. The state is only read when an engine is under
suspicion, so it may cost some milliseconds; if it cannot be read, the answer is the one that ends no engine.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from greenroom.runner.systems import here

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


def of_folder(folder: Path, variable: str = "GREENROOM_ENGINE_FOLDER") -> list[ProcessIdentity]:
    """This user's living processes that were started for a folder, found by a variable in their environment.

    Finds what is left of an engine or a build whose leader is dead, and whose pids are otherwise unknown.
    """
    import psutil

    found = []
    for process in psutil.process_iter(["pid"]):
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(variable) == str(folder):
                identity = ProcessIdentity.of(process.pid)
                if identity is not None and process.pid != os.getpid():
                    found.append(identity)
    return found


def groups(leaders: Collection[int]) -> dict[int, list[int]]:
    """The living members of each of these groups."""
    found: dict[int, list[int]] = {leader: [] for leader in leaders}
    for pid in _pids():
        with contextlib.suppress(OSError):
            members = found.get(os.getpgid(pid))
            if members is not None:
                members.append(pid)
    return found


def cpu_seconds(pids: Sequence[int]) -> float:
    """Processor seconds they have used; a process that has ended no longer counts."""
    import psutil

    used = 0.0
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            times = psutil.Process(pid).cpu_times()
            used += times.user + times.system
    return used


def memory_of(pids: Sequence[int]) -> int:
    """Bytes in memory, shared pages counted once where the system says so; 0 if unknown."""
    if len(pids) > 1:
        # Workers of one engine share libraries and often weights: each page counts proportionally.
        parts = [_of_rollup(pid, b"Pss:") for pid in pids]
        if all(part is not None for part in parts):
            return sum(part for part in parts if part is not None)
    return sum(here.resident(pid) for pid in pids)


def own_memory_of(pids: Sequence[int]) -> int | None:
    """Bytes that these processes hold and the system cannot drop, in memory or swapped out; None where that
    is not known. What forked processes still share counts once for each."""
    parts = [here.own_memory(pid) for pid in pids]
    return sum(part or 0 for part in parts) if any(part is not None for part in parts) else None


def own_memory_counted_once(pids: Sequence[int]) -> int | None:
    """The same, and what is shared counts once; costs milliseconds for each process."""
    if len(pids) > 1:
        parts = [_of_rollup(pid, b"Pss_Anon:", b"SwapPss:") for pid in pids]
        if all(part is not None for part in parts):
            return sum(part for part in parts if part is not None)
    return own_memory_of(pids)


def _pids() -> list[int]:
    with contextlib.suppress(FileNotFoundError):
        return [int(name) for name in os.listdir("/proc") if name.isdigit()]
    import psutil

    return psutil.pids()


def _of_rollup(pid: int, *names: bytes) -> int | None:
    """The sum of these of Linux's figures in bytes, such as the proportional set size; None if they may not
    be read, or it lacks one."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            found = [int(line.split()[1]) * 1024 for line in file if line.startswith(names)]
    except (OSError, ValueError):
        return None
    return sum(found) if len(found) == len(names) else None


def traced(pids: Collection[int]) -> bool:
    """Whether a debugger holds any of them: such an engine is left alone, however still it is."""
    return any(here.is_traced(pid) for pid in pids)


def stopped(pids: Collection[int]) -> bool:
    """Whether a signal such as SIGSTOP has stopped any of them."""
    return any(here.is_stopped(pid) for pid in pids)


def is_kept_waiting(leader: int) -> bool:
    """Whether an engine is silent because it waits for a disk or processor, or a debugger holds it."""
    try:
        pids = groups([leader])[leader]
    except OSError:
        return True
    return wants_to_work(pids) or traced(pids)


def wants_to_work(pids: Collection[int]) -> bool:
    """Whether a thread of any of them is ready to run, or waits for a disk."""
    return any(here.wants_to_work(pid) for pid in pids)


def plain(address: str) -> str:
    """An IPv4 address as such, also where the socket is one for IPv6."""
    return address.removeprefix("::ffff:")


def connections(pid: int | None = None) -> Iterator[tuple[int, tuple[tuple[str, int], tuple[str, int]]]]:
    """TCP connections of a process, or of all that the system tells of: the pid and both ends, its own first.

    Raises:
        psutil.Error: The process cannot be read.
    """
    import psutil  # keepers have no use for it

    found = psutil.net_connections("tcp") if pid is None else psutil.Process(pid).net_connections("tcp")
    for one in found:
        owner = getattr(one, "pid", pid)
        if owner and one.laddr and one.raddr:
            yield owner, ((plain(one.laddr.ip), one.laddr.port), (plain(one.raddr.ip), one.raddr.port))
