"""What an engine's processes use together, and what state they are in.

An engine is a process group; its leader's pid is the group's number. The state is only read when an engine is
under suspicion, so it may cost some milliseconds; if it cannot be read, the answer is the one that ends no
engine.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Sequence

from greenroom.runner.systems import here


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
        parts = [_proportional(pid) for pid in pids]
        if all(part is not None for part in parts):
            return sum(part for part in parts if part is not None)
    return sum(here.resident(pid) for pid in pids)


def _pids() -> list[int]:
    with contextlib.suppress(FileNotFoundError):
        return [int(name) for name in os.listdir("/proc") if name.isdigit()]
    import psutil

    return psutil.pids()


def _proportional(pid: int) -> int | None:
    """Linux's proportional set size; None if it may not be read."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith(b"Pss:"))
    except (OSError, StopIteration, ValueError):
        return None


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
