"""What Vulkan's drivers offer: Intel's devices, all others once more, and software that looks like one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import msgspec
from msgspec.structs import replace as changed

from greenroom.actors.graphics import GraphicsDevice, Maker
from greenroom.actors.values import Failure
from greenroom.runner.devices import problems
from greenroom.runner.devices.children import SECONDS
from greenroom.runner.devices.found import Probed
from greenroom.runner.devices.host_view import HostView
from greenroom.runner.devices.visible import VULKAN

LIBRARY = "libvulkan.so.1"
_MAKERS: dict[int, Maker] = {0x10DE: "nvidia", 0x1002: "amd", 0x8086: "intel", 0x106B: "apple"}
_BETTER = ("radv", "NVIDIA", "Intel open-source Mesa driver")
"""Of two drivers for one device, these are the ones that programs use."""
_NO_DRIVER = -9
"""VK_ERROR_INCOMPATIBLE_DRIVER: the loader has found no driver."""
_ON_WINDOWS = re.compile(r"^Microsoft Direct3D12 \((.*)\)$")
_BEHIND = re.compile(r"\s*\((?:RADV|LLVM|[A-Z0-9_-]+)\b[^()]*\)$")
_MARKS = re.compile(r"\((?:R|TM|tm)\)")
_PASSED_ON = ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH")
_PREFIXES = ("VK_", "XDG_")


class _Heap(msgspec.Struct, frozen=True):
    size: int
    local: bool
    budget: int | None = None
    usage: int = 0


class _Device(msgspec.Struct, frozen=True):
    index: int
    name: str
    api: str
    vendor: int
    type: str
    driver: str = ""
    driver_info: str = ""
    uuid: str = ""
    bus: str = ""
    heaps: tuple[_Heap, ...] = ()


class _Error(msgspec.Struct, frozen=True):
    call: str = ""
    code: int = 0
    text: str = ""


class _Answer(msgspec.Struct, frozen=True):
    """What `vulkan_child.py` prints."""

    version: str = ""
    devices: tuple[_Device, ...] = ()
    error: _Error | None = None


@dataclass(frozen=True)
class VulkanLook:
    devices: tuple[_Device, ...] = ()
    problem: Failure | None = None
    """Why nothing is known: the loader or a driver hangs or crashes."""
    has_loader: bool = True


def look(view: HostView) -> VulkanLook:
    library = view.library(LIBRARY)
    if not library:
        return VulkanLook(has_loader=False)
    # As engines see it: the desktop's variables change the order of the devices.
    env = {key: value for key, value in view.env.items() if key in _PASSED_ON or key.startswith(_PREFIXES)}
    told = view.script("vulkan_child.py", library, env=env)
    if told.hung:
        return VulkanLook(problem=problems.driver_hangs("Vulkan", SECONDS, told.errors))
    try:
        answer = msgspec.json.decode(told.output, type=_Answer)
    except msgspec.DecodeError:
        return VulkanLook(problem=problems.driver_crashes("Vulkan", told))
    if answer.error is None or answer.error.code == _NO_DRIVER:
        return VulkanLook(_without_twins(answer.devices))
    detail = f"{answer.error.call}: {answer.error.text or answer.error.code}"
    return VulkanLook(problem=problems.unexplained("Vulkan", f"{detail}\n{told.errors}".strip()))


def merged(found: Sequence[Probed], vulkan: VulkanLook, view: HostView) -> tuple[Probed, ...]:
    """The devices that are known already with what Vulkan offers, then those that only Vulkan knows."""
    result = list(found)
    for one in vulkan.devices:
        twin = next((at for at, known in enumerate(result) if _is_same(known, one)), None)
        if twin is None:
            result.append(_new(one, view))
        else:
            result[twin] = _with(result[twin], one)
    return tuple(result)


def _without_twins(devices: tuple[_Device, ...]) -> tuple[_Device, ...]:
    """One entry for each device, by its better driver, where several drivers list it."""

    def key(one: _Device) -> tuple[str, str]:
        return ("bus", one.bus) if one.bus else ("index", str(one.index))

    chosen: dict[tuple[str, str], _Device] = {}
    for one in devices:
        other = chosen.get(key(one))
        if other is None or _rank(one) < _rank(other):
            chosen[key(one)] = one
    return tuple(chosen.values())


def _rank(one: _Device) -> int:
    return next((at for at, name in enumerate(_BETTER) if name in one.driver), len(_BETTER))


def _is_same(known: Probed, one: _Device) -> bool:
    if one.bus:
        return known.device.bus == one.bus and not known.device.id.startswith("MIG-")
    if one.uuid and known.uuid == one.uuid:
        return True
    return known.device.maker != "other" and known.device.name == _name(one)


def _with(known: Probed, one: _Device) -> Probed:
    """Of a device with a problem nothing is taken: what Vulkan lists may still be out of reach."""
    device = known.device
    if device.problem is not None:
        return known
    size, free = _memory(one)
    is_shared = device.is_shared or one.type == "integrated"
    name = device.name if device.maker == "nvidia" else _name(one)
    is_unknown = device.total == 0 or (is_shared and not device.is_shared)
    return replace(
        known,
        indexes={**known.indexes, "vulkan": str(one.index)},
        device=changed(
            device,
            name=name,
            is_shared=is_shared,
            total=size if is_unknown else device.total,
            free=free if is_unknown else device.free,
            driver=device.driver if device.maker == "nvidia" else _driver(device.driver, one),
            runtimes=(*device.runtimes, ("vulkan", one.api)),
        ),
    )


def _new(one: _Device, view: HostView) -> Probed:
    maker = _MAKERS.get(one.vendor, "other")
    is_software = one.type == "cpu"
    total, free = _memory(one)
    device = GraphicsDevice(
        id=f"pci:{one.bus}" if one.bus else f"{maker}:{_name(one)}",
        maker=maker,
        name=_name(one),
        total=total,
        free=None if is_software else free,
        is_shared=one.type in ("integrated", "cpu"),
        driver=_driver("", one),
        runtimes=(("vulkan", one.api),),
        bus=one.bus,
        problem=problems.software(one.index) if is_software and VULKAN not in view.env else None,
    )
    return Probed(device, {"vulkan": str(one.index)}, uuid=one.uuid, is_software=is_software)


def _memory(one: _Device) -> tuple[int, int | None]:
    """Of its largest heap of its own: others are windows into it."""
    local = [heap for heap in one.heaps if heap.local]
    if not local:
        return 0, None
    largest = max(local, key=lambda heap: heap.size)
    if largest.budget is None:
        return largest.size, None
    return largest.size, max(0, min(largest.size, largest.budget) - largest.usage)


def _driver(kernel: str, one: _Device) -> str:
    """Mesa's versions count beside the kernel driver's; others come with it."""
    mesa = re.search(r"Mesa \d[\w.]*", one.driver_info)
    if mesa is None:
        return kernel or one.driver_info
    return f"{kernel}, {mesa[0]}" if kernel else mesa[0]


def _name(one: _Device) -> str:
    """Without marks, and without what drivers put behind it."""
    name = _MARKS.sub("", one.name)
    if windows := _ON_WINDOWS.match(name):
        name = windows[1]
    return " ".join(_BEHIND.sub("", name).split())
