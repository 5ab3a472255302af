"""Time that processes have used on a graphics processor, as far as the system says so.

Asked for only when an engine is suspected to be dead, so it may cost some milliseconds.

* Linux: each open file of a DRM driver counts for its client, in `/proc/<pid>/fdinfo` (kernel documentation:
  "DRM client usage stats"). NVIDIA's driver is none of them; `nvidia-smi pmon` gives its load of this moment.
* macOS: the accelerator's user clients count in the I/O registry, by pid (`AppUsage`, nanoseconds).
"""

from __future__ import annotations

import contextlib
import re
import subprocess
from collections.abc import Collection
from pathlib import Path

from greenroom.runner.systems import here

PROC = Path("/proc")
_TOOL_SECONDS = 5.0
_BUSY_PERCENT = 2

_FDINFO = re.compile(
    rb"^(drm-client-id|drm-pdev|drm-(?:engine|cycles)-(?!capacity)[\w-]+):\s*(\S+)", re.MULTILINE
)
_CREATOR = re.compile(r'"IOUserClientCreator" = "pid (\d+),')
_USED = re.compile(r'"accumulatedGPUTime"\s*=\s*(\d+)')


def seconds(pids: Collection[int]) -> float | None:
    """Used since they started; None where a graphics processor may be at work and nobody counts.

    Drivers that count in cycles are read as if each took a nanosecond: only growth is of interest.
    """
    told = here.graphics_registry()
    if told is not None:
        return registry_seconds(told, pids) if told else None
    if (PROC / "driver/nvidia/version").exists():
        return None
    return drm_seconds(pids)


def computing(pids: Collection[int]) -> bool:
    """Whether NVIDIA's driver sees them at work right now."""
    if not (PROC / "driver/nvidia/version").exists():
        return False
    told = _told_by("nvidia-smi", "pmon", "-c", "1", "-s", "u")
    return told is not None and pmon_busy(told, pids)


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
                        # Several files may belong to one client, and each then says the same.
                        if name.startswith((b"drm-engine-", b"drm-cycles-")) and value.isdigit():
                            used[*client, name] = int(value)
    return sum(used.values()) / 1e9


def registry_seconds(told: str, pids: Collection[int]) -> float:
    """From the text of `ioreg`: one node for each user client, begun by `+-o`."""
    used = 0
    for node in told.split("+-o "):
        creator = _CREATOR.search(node)
        if creator is not None and int(creator[1]) in pids:
            used += sum(int(number) for number in _USED.findall(node))
    return used / 1e9


def pmon_busy(told: str, pids: Collection[int]) -> bool:
    """From the text of `nvidia-smi pmon`: gpu, pid, type and the load of its multiprocessors in per cent."""
    for line in told.splitlines():
        words = [*line.split(), "", "", "", ""]
        pid, load = words[1], words[3]
        if pid.isdigit() and int(pid) in pids and load.isdigit() and int(load) > _BUSY_PERCENT:
            return True
    return False


def _told_by(*argv: str) -> str | None:
    try:
        done = subprocess.run(argv, capture_output=True, timeout=_TOOL_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode("utf-8", "replace")
