"""What the processes of an engine use together: processor time and memory, as the system counts them.

An engine is a process group; its leader's pid is the group's number.
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
    """Processor time they have used, in seconds; a process that has gone counts no more."""
    import psutil

    used = 0.0
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            times = psutil.Process(pid).cpu_times()
            used += times.user + times.system
    return used


def memory_of(pids: Sequence[int]) -> int:
    """Bytes they hold in memory, what they share counted once where the system says so; 0 when unknown."""
    if len(pids) > 1:
        # Workers of one engine share libraries and often weights: each page counts in parts.
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
    """Linux's proportional set size; None where it may not be read."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith(b"Pss:"))
    except (OSError, StopIteration, ValueError):
        return None
