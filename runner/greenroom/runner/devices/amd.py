"""AMD's devices: from sysfs and the topology of the compute driver (KFD), which need no library."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from greenroom.actors.graphics import GraphicsDevice, Runtime
from greenroom.actors.values import Failure
from greenroom.runner.devices import problems
from greenroom.runner.devices.containers import in_container
from greenroom.runner.devices.drm import device_files_problem, kernel_driver
from greenroom.runner.devices.found import Probed
from greenroom.runner.devices.host_view import HostView
from greenroom.runner.devices.pci import Controller, name_of

_MAKER, _MODULE = "AMD", "amdgpu"
_NODES = "/sys/class/kfd/kfd/topology/nodes"
_OPTION = "--device /dev/kfd --device /dev/dri"
_SHARED = frozenset(
    "gfx801 gfx902 gfx909 gfx90c gfx1013 gfx1033 gfx1035 gfx1036 gfx1037 gfx1103 gfx1150 gfx1151 gfx1152 "
    "gfx1153".split()
)
"""Targets of graphics processors that are part of a processor and use its memory."""
_LIBRARY = re.compile(r"\.so\.(\d+)\.(\d+)\.(\d+)$")


@dataclass(frozen=True)
class _Node:
    index: int
    """Among those that ROCm counts."""
    target: str


def look(view: HostView, controllers: Sequence[Controller]) -> tuple[tuple[Probed, ...], tuple[Failure, ...]]:
    """All of them, and why ROCm, which is installed, can use none."""
    ours = [one for one in controllers if one.maker == "amd"]
    if not ours:
        return (), ()
    nodes, rocm = _nodes(view), rocm_version(view)
    trouble = _kfd_trouble(view) if rocm else None
    found = tuple(_probed(view, one, nodes.get(one.bus), rocm if trouble is None else "") for one in ours)
    usable = [one for one in found if one.device.problem is None]
    return found, (trouble,) if trouble is not None and usable else ()


def memory(view: HostView, bus: str, *, is_shared: bool) -> tuple[int, int | None]:
    """Bytes in all and free, read in microseconds; of a shared one with the part of the machine's memory."""
    folder = f"/sys/bus/pci/devices/{bus}/mem_info"
    kinds = ("vram", "gtt") if is_shared else ("vram",)
    totals = [view.number(f"{folder}_{kind}_total") for kind in kinds]
    used = [view.number(f"{folder}_{kind}_used") for kind in kinds]
    total = sum(one or 0 for one in totals)
    free = None if None in used else max(0, total - sum(one or 0 for one in used))
    return total, free


def rocm_version(view: HostView) -> str:
    """Of the ROCm libraries that are installed, such as `6.4.1`; empty without them."""
    for folder in ("rocm", *(name for name in view.names("/opt") if name.startswith("rocm-"))):
        if text := view.text(f"/opt/{folder}/.info/version"):
            return text.partition("-")[0]
    for name in ("libamdhip64.so.7", "libamdhip64.so.6", "libamdhip64.so.5"):
        if place := view.library(name):
            found = _LIBRARY.search(view.link(place))
            if found is None:
                return f"{name[-1]}.0"
            # `6.4.60401` is 6.4.1.
            return f"{found[1]}.{found[2]}.{int(found[3]) % 100}"
    return ""


def target_of(number: int) -> str:
    """`gfx_target_version` as compilers name it: 110000 is gfx1100, 90402 is gfx942, 90010 is gfx90a."""
    return f"gfx{number // 10000}{number // 100 % 100:x}{number % 100:x}"


def _probed(view: HostView, one: Controller, node: _Node | None, rocm: str) -> Probed:
    target = node.target if node is not None else ""
    is_shared = target in _SHARED
    total, free = memory(view, one.bus, is_shared=is_shared)
    problem = _driver_problem(view, one) or device_files_problem(view, one, _MAKER, _OPTION)
    has_rocm = rocm != "" and node is not None and problem is None
    runtimes: tuple[tuple[Runtime, str], ...] = (("rocm", rocm),) if has_rocm else ()
    device = GraphicsDevice(
        id=f"pci:{one.bus}",
        maker="amd",
        name=_name(view, one),
        total=total,
        free=free,
        is_shared=is_shared,
        driver=kernel_driver(view, one.driver),
        runtimes=runtimes,
        target=target,
        bus=one.bus,
        problem=problem,
    )
    return Probed(device, {"rocm": str(node.index)} if has_rocm and node is not None else {})


def _driver_problem(view: HostView, one: Controller) -> Failure | None:
    if not one.driver:
        return problems.driver_not_loaded(_MAKER, _MODULE, in_container=in_container(view))
    if one.driver.startswith(("vfio", "xen", "pci-stub")):
        return problems.device_reserved(one.driver)
    return problems.too_old_for_driver(one.driver) if one.driver != _MODULE else None


def _kfd_trouble(view: HostView) -> Failure | None:
    if not view.exists("/dev/kfd"):
        if in_container(view):
            return problems.no_device_files(("/dev/kfd, so ROCm cannot be used",), _OPTION)
        return problems.no_compute_driver()
    can_open, group = view.access("/dev/kfd")
    return (
        None
        if can_open
        else problems.no_permission(_MAKER, ("/dev/kfd",), (group,), ", so ROCm cannot be used")
    )


def _nodes(view: HostView) -> dict[str, _Node]:
    """The nodes of the compute driver that are graphics processors, by PCI address."""
    return {bus: _Node(index, target) for index, (bus, target) in enumerate(_listed(view))}


def _listed(view: HostView) -> Iterator[tuple[str, str]]:
    for name in sorted(view.names(_NODES), key=lambda name: int(name) if name.isdigit() else 0):
        lines = (line.split() for line in view.text(f"{_NODES}/{name}/properties").splitlines())
        facts = {words[0]: int(words[1]) for words in lines if len(words) == 2 and words[1].isdigit()}
        if facts.get("gfx_target_version") and facts.get("simd_count"):
            place = facts.get("location_id", 0)
            bus = f"{facts.get('domain', 0):04x}:{place >> 8:02x}:{place >> 3 & 31:02x}.{place & 7}"
            yield bus, target_of(facts["gfx_target_version"])


def _name(view: HostView, one: Controller) -> str:
    if name := view.text(f"/sys/bus/pci/devices/{one.bus}/product_name"):
        return name if name.startswith(("AMD", "Radeon")) else f"{_MAKER} {name}"
    wanted = (f"{one.device:04x}", f"{one.revision:x}")
    for line in view.text("/usr/share/libdrm/amdgpu.ids").splitlines():
        words = [word.strip() for word in line.split(",", 2)]
        if len(words) == 3 and (words[0].lower(), words[1].lower().lstrip("0") or "0") == wanted:
            return words[2]
    return name_of(view, one)
