"""Devices with one of the kernel's own drivers (DRM): their files in `/dev/dri`, who uses their memory."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection
from pathlib import Path

from greenroom.actors.values import Failure
from greenroom.runner.devices import problems
from greenroom.runner.devices.containers import in_container
from greenroom.runner.devices.host_view import HostView
from greenroom.runner.devices.pci import Controller

_UNITS = {b"": 1, b"KiB": 2**10, b"MiB": 2**20, b"GiB": 2**30}
_FACTS = re.compile(
    rb"^drm-(client-id|pdev|(?:memory|resident)-(?:vram|local)\d*):\s*(\S+)[ \t]*(KiB|MiB|GiB)?", re.MULTILINE
)


def device_files_problem(view: HostView, one: Controller, maker: str, option: str) -> Failure | None:
    """Why this process cannot open the file through which programs compute on a device."""
    nodes = [name for name in view.names(f"/sys/bus/pci/devices/{one.bus}/drm") if name.startswith("renderD")]
    files = [f"/dev/dri/{name}" for name in nodes]
    if not any(view.exists(file) for file in files):
        if in_container(view):
            missing = [name for name in option.split() if name.startswith("/dev/") and not view.exists(name)]
            return problems.no_device_files(missing or files or ["/dev/dri"], option)
        return problems.no_render_node(one.driver)
    denied = [(file, group) for file in files for ok, group in [view.access(file)] if not ok]
    if not denied:
        return None
    return problems.no_permission(maker, [file for file, _ in denied], sorted({group for _, group in denied}))


def kernel_driver(view: HostView, name: str) -> str:
    """Name and version: its own if it came separately, else the kernel's."""
    if not name:
        return ""
    version = view.text(f"/sys/module/{name}/version") or view.text("/proc/sys/kernel/osrelease")
    return f"{name} {version}".strip()


def held_by(pids: Collection[int], proc: Path = Path("/proc")) -> dict[str, int]:
    """Bytes of memory of their own that processes hold on each device, by PCI address.

    Each open file of a driver counts for its client, in `/proc/<pid>/fdinfo` (kernel docs: "DRM client usage
    stats"). Drivers have two names for what is in memory; the larger number counts.
    """
    held: dict[tuple[str, bytes, bytes], int] = {}
    for pid in pids:
        with contextlib.suppress(OSError):
            for file in (proc / str(pid) / "fdinfo").iterdir():
                with contextlib.suppress(OSError):
                    _count(file.read_bytes(), held)
    by_bus: dict[str, int] = {}
    for (bus, _, _), size in held.items():
        by_bus[bus] = by_bus.get(bus, 0) + size
    return by_bus


def _count(text: bytes, held: dict[tuple[str, bytes, bytes], int]) -> None:
    if b"drm-client-id" not in text:
        return
    found = {name: (value, unit) for name, value, unit in _FACTS.findall(text)}
    bus = found.pop(b"pdev", (b"", b""))[0].decode("ascii", "replace")
    client = found.pop(b"client-id", (b"", b""))[0]
    for name, (value, unit) in found.items():
        # Several files may belong to one client and repeat its numbers.
        key = (bus, client, name.partition(b"-")[2])
        if bus and value.isdigit():
            held[key] = max(held.get(key, 0), int(value) * _UNITS[unit])
