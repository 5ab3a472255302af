"""Apple's graphics processors: each Apple silicon has one, which shares the machine's memory."""

from __future__ import annotations

from greenroom.actors.graphics import GraphicsDevice
from greenroom.runner.devices.found import Probed
from greenroom.runner.devices.host_view import HostView


def look(view: HostView) -> tuple[Probed, ...]:
    if (view.system, view.processor) != ("darwin", "arm64"):
        return ()
    name = view.sysctl("machdep.cpu.brand_string").rstrip(b"\0").decode("utf-8", "replace") or "Apple silicon"
    total = int.from_bytes(view.sysctl("hw.memsize"), "little")
    wired = int.from_bytes(view.sysctl("iogpu.wired_limit_mb"), "little")
    version = view.sysctl("kern.osproductversion").rstrip(b"\0").decode("ascii", "replace")
    device = GraphicsDevice(
        id=f"apple:{name}",
        maker="apple",
        name=name,
        total=metal_limit(total, wired),
        is_shared=True,
        driver=f"macOS {version}".strip(),
        runtimes=(("metal", ""),),
    )
    return (Probed(device),)


def metal_limit(total: int, configured_mib: int) -> int:
    """Bytes Metal lets programs keep resident, by `iogpu.wired_limit_mb`; 0 there means the default rule:

    two thirds of up to 36 GiB of memory, and three quarters of more.
    """
    if configured_mib > 0:
        return configured_mib * 2**20
    return total * 2 // 3 if total <= 36 * 2**30 else total * 3 // 4
