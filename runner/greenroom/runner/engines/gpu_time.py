"""Graphics processor time that processes use: read only when an engine is suspected to be dead, since it may
cost some milliseconds.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection
from pathlib import Path

from greenroom.runner.devices.children import Children
from greenroom.runner.systems import here

PROC = Path("/proc")
_BUSY_PERCENT = 2
_children = Children()

_FDINFO = re.compile(
    rb"^(drm-client-id|drm-pdev|drm-(?:engine|cycles)-(?!capacity)[\w-]+):\s*(\S+)", re.MULTILINE
)
_CREATOR = re.compile(r'"IOUserClientCreator" = "pid (\d+),')
_USED = re.compile(r'"accumulatedGPUTime"\s*=\s*(\d+)')


def gpu_seconds(pids: Collection[int]) -> float | None:
    """Seconds of graphics processor time used since the processes started; None if there may be some that
    cannot be measured.

    Linux: each open file of a DRM driver counts for its client, in `/proc/<pid>/fdinfo` (kernel docs:
    "DRM client usage stats"). NVIDIA's driver does not, hence `gpu_busy`. macOS: the accelerator's user
    clients count in the I/O registry, by pid (`AppUsage`, nanoseconds).

    Drivers that count cycles are read as if each took a nanosecond: only growth matters.
    """
    told = here.graphics_registry()
    if told is not None:
        return registry_seconds(told, pids) if told else None
    if (PROC / "driver/nvidia/version").exists():
        return None
    return drm_seconds(pids)


def gpu_busy(pids: Collection[int]) -> bool:
    """Whether NVIDIA's driver reports them at work right now."""
    if not (PROC / "driver/nvidia/version").exists():
        return False
    told = _children.run(("nvidia-smi", "pmon", "-c", "1", "-s", "u"))
    return told.is_whole and pmon_busy(told.output, pids)


def drm_seconds(pids: Collection[int]) -> float:
    """From the open files of DRM drivers; 0.0 without any."""
    used: dict[tuple[bytes, bytes, bytes], int] = {}
    for pid in pids:
        with contextlib.suppress(OSError):
            for file in (PROC / str(pid) / "fdinfo").iterdir():
                with contextlib.suppress(OSError):
                    fields = dict(_FDINFO.findall(file.read_bytes()))
                    client = (fields.get(b"drm-pdev", b""), fields.get(b"drm-client-id", b""))
                    for name, value in fields.items():
                        # Several files may belong to one client and repeat its numbers.
                        if name.startswith((b"drm-engine-", b"drm-cycles-")) and value.isdigit():
                            used[*client, name] = int(value)
    return sum(used.values()) / 1e9


def registry_seconds(told: str, pids: Collection[int]) -> float:
    """From the output of `ioreg`: one node per user client, each beginning with `+-o`."""
    used = 0
    for node in told.split("+-o "):
        creator = _CREATOR.search(node)
        if creator is not None and int(creator[1]) in pids:
            used += sum(int(number) for number in _USED.findall(node))
    return used / 1e9


def pmon_busy(told: str, pids: Collection[int]) -> bool:
    """From the output of `nvidia-smi pmon`: gpu, pid, type and the load of its multiprocessors in per
    cent.
    """
    for line in told.splitlines():
        words = [*line.split(), "", "", "", ""]
        pid, load = words[1], words[3]
        if pid.isdigit() and int(pid) in pids and load.isdigit() and int(load) > _BUSY_PERCENT:
            return True
    return False
