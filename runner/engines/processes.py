"""What the processes of an engine use together: processor time and memory, as the system counts them.

An engine is a process group; its leader's pid is the group's number.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Sequence

from greenroom.runner.engines.keeper import SYSTEM

_RUSAGE_INFO_V0 = 0
_PHYS_FOOTPRINT = 7
"""Place of `ri_phys_footprint` among the 64-bit numbers of macOS's `rusage_info_v0`."""


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
    if SYSTEM == "darwin":
        return sum(_footprint(pid) for pid in pids)
    if len(pids) > 1:
        # Workers of one engine share libraries and often weights: each page counts in parts.
        parts = [_proportional(pid) for pid in pids]
        if all(part is not None for part in parts):
            return sum(part for part in parts if part is not None)
    return sum(_resident(pid) for pid in pids)


def _pids() -> list[int]:
    if SYSTEM == "linux":
        return [int(name) for name in os.listdir("/proc") if name.isdigit()]
    import psutil

    return psutil.pids()


def _resident(pid: int) -> int:
    import psutil

    with contextlib.suppress(psutil.Error):
        return int(psutil.Process(pid).memory_info().rss)
    return 0


def _proportional(pid: int) -> int | None:
    """Linux's proportional set size; None where it may not be read."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith(b"Pss:"))
    except (OSError, StopIteration, ValueError):
        return None


def _footprint(pid: int) -> int:
    """macOS's own figure, as Activity Monitor shows it: it includes what Metal has wired for the process."""
    import ctypes
    import ctypes.util

    class Usage(ctypes.Structure):
        _fields_ = (("uuid", ctypes.c_uint8 * 16), ("numbers", ctypes.c_uint64 * 16))

    usage = Usage()
    library = ctypes.CDLL(ctypes.util.find_library("proc") or "/usr/lib/libproc.dylib")
    if library.proc_pid_rusage(pid, _RUSAGE_INFO_V0, ctypes.byref(usage)) != 0:
        return _resident(pid)
    return int(usage.numbers[_PHYS_FOOTPRINT])
