"""A program that asks the Vulkan loader for all devices and prints them as one JSON object.

    python -I -S vulkan_child.py [LIBRARY]

Run in a process of its own, since the loader loads every driver that is installed: one may crash or hang. It
uses only the standard library. Sizes are bytes. Names and numbers are those of `vulkan_core.h`.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from ctypes import c_char, c_char_p, c_int32, c_ubyte, c_uint32, c_uint64, c_void_p
from typing import Any

_HEAPS = 16
_TYPES = ("other", "integrated", "discrete", "virtual", "cpu")
_DEVICE_LOCAL = 1
_PCI, _BUDGET = "VK_EXT_pci_bus_info", "VK_EXT_memory_budget"


class _ApplicationInfo(ctypes.Structure):
    _fields_ = [
        ("kind", c_uint32),
        ("following", c_void_p),
        ("name", c_char_p),
        ("version", c_uint32),
        ("engine", c_char_p),
        ("engine_version", c_uint32),
        ("api", c_uint32),
    ]


class _InstanceCreateInfo(ctypes.Structure):
    _fields_ = [
        ("kind", c_uint32),
        ("following", c_void_p),
        ("flags", c_uint32),
        ("application", ctypes.POINTER(_ApplicationInfo)),
        ("layers", c_uint32),
        ("layer_names", c_void_p),
        ("extensions", c_uint32),
        ("extension_names", c_void_p),
    ]


class _Properties(ctypes.Structure):
    """`VkPhysicalDeviceProperties2`; of the limits behind the name only the size matters: there is room."""

    _fields_ = [
        ("kind", c_uint32),
        ("following", c_void_p),
        ("api", c_uint32),
        ("driver_version", c_uint32),
        ("vendor", c_uint32),
        ("device", c_uint32),
        ("type", c_int32),
        ("name", c_char * 256),
        ("rest", c_uint64 * 256),
    ]


class _Driver(ctypes.Structure):
    """`VkPhysicalDeviceDriverProperties`"""

    _fields_ = [
        ("kind", c_uint32),
        ("following", c_void_p),
        ("id", c_int32),
        ("name", c_char * 256),
        ("info", c_char * 256),
        ("conformance", c_ubyte * 4),
    ]


class _Ids(ctypes.Structure):
    """`VkPhysicalDeviceIDProperties`"""

    _fields_ = [
        ("kind", c_uint32),
        ("following", c_void_p),
        ("device", c_ubyte * 16),
        ("driver", c_ubyte * 16),
        ("luid", c_ubyte * 8),
        ("nodes", c_uint32),
        ("luid_valid", c_uint32),
    ]


class _Bus(ctypes.Structure):
    """`VkPhysicalDevicePCIBusInfoPropertiesEXT`"""

    _fields_ = [
        ("kind", c_uint32),
        ("following", c_void_p),
        ("domain", c_uint32),
        ("bus", c_uint32),
        ("device", c_uint32),
        ("function", c_uint32),
    ]


class _MemoryType(ctypes.Structure):
    _fields_ = [("flags", c_uint32), ("heap", c_uint32)]


class _Heap(ctypes.Structure):
    _fields_ = [("size", c_uint64), ("flags", c_uint32)]


class _MemoryProperties(ctypes.Structure):
    """`VkPhysicalDeviceMemoryProperties2`"""

    _fields_ = [
        ("kind", c_uint32),
        ("following", c_void_p),
        ("types", c_uint32),
        ("type", _MemoryType * 32),
        ("heaps", c_uint32),
        ("heap", _Heap * _HEAPS),
    ]


class _Budget(ctypes.Structure):
    """`VkPhysicalDeviceMemoryBudgetPropertiesEXT`"""

    _fields_ = [
        ("kind", c_uint32),
        ("following", c_void_p),
        ("budget", c_uint64 * _HEAPS),
        ("usage", c_uint64 * _HEAPS),
    ]


class _Extension(ctypes.Structure):
    _fields_ = [("name", c_char * 256), ("version", c_uint32)]


class _Refused(Exception):
    def __init__(self, call: str, code: int) -> None:
        super().__init__(call)
        self.fields = {"call": call, "code": code}


def main() -> None:
    # What drivers and layers print themselves must not come between.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        told = _everything(ctypes.CDLL(sys.argv[1] if len(sys.argv) > 1 else "libvulkan.so.1"))
    except OSError as problem:
        told = {"error": {"call": "dlopen", "code": 0, "text": str(problem)}}
    except _Refused as refused:
        told = {"error": refused.fields}
    json.dump(told, out)
    out.flush()
    os._exit(0)  # without the drivers' own ends, in which some crash


def _everything(vulkan: Any) -> dict[str, Any]:
    version = c_uint32(1 << 22)
    if hasattr(vulkan, "vkEnumerateInstanceVersion"):
        vulkan.vkEnumerateInstanceVersion(ctypes.byref(version))
    if version.value < (1 << 22 | 1 << 12):
        return {"version": _version(version.value), "devices": []}  # 1.0 lacks the questions below
    application = _ApplicationInfo(kind=0, name=b"greenroom", api=1 << 22 | 2 << 12)
    info = _InstanceCreateInfo(kind=1, application=ctypes.pointer(application))
    instance = c_void_p()
    _checked("vkCreateInstance", vulkan.vkCreateInstance(ctypes.byref(info), None, ctypes.byref(instance)))
    count = c_uint32()
    list_devices = vulkan.vkEnumeratePhysicalDevices
    _checked("vkEnumeratePhysicalDevices", list_devices(instance, ctypes.byref(count), None))
    handles = (c_void_p * count.value)()
    _checked("vkEnumeratePhysicalDevices", list_devices(instance, ctypes.byref(count), handles))
    devices = [
        _device(vulkan, index, c_void_p(handle)) for index, handle in enumerate(handles[: count.value])
    ]
    return {"version": _version(version.value), "devices": devices}


def _device(vulkan: Any, index: int, handle: Any) -> dict[str, Any]:
    extensions = _extensions(vulkan, handle)
    ids, driver, bus = _Ids(kind=1000071004), _Driver(kind=1000196000), _Bus(kind=1000212000)
    properties = _Properties(kind=1000059001, following=ctypes.addressof(ids))
    ids.following = ctypes.addressof(driver)
    if _PCI in extensions:
        driver.following = ctypes.addressof(bus)
    vulkan.vkGetPhysicalDeviceProperties2(handle, ctypes.byref(properties))
    memory, budget = _MemoryProperties(kind=1000059006), _Budget(kind=1000237000)
    if _BUDGET in extensions:
        memory.following = ctypes.addressof(budget)
    vulkan.vkGetPhysicalDeviceMemoryProperties2(handle, ctypes.byref(memory))
    heaps = []
    for place in range(min(memory.heaps, _HEAPS)):
        heap = memory.heap[place]
        one = {"size": heap.size, "local": bool(heap.flags & _DEVICE_LOCAL)}
        if _BUDGET in extensions:
            one |= {"budget": budget.budget[place], "usage": budget.usage[place]}
        heaps.append(one)
    told = {
        "index": index,
        "name": _text(properties.name),
        "api": _version(properties.api),
        "vendor": properties.vendor,
        "device": properties.device,
        "type": _TYPES[properties.type] if 0 <= properties.type < len(_TYPES) else "other",
        "driver": _text(driver.name),
        "driver_info": _text(driver.info),
        "uuid": bytes(ids.device).hex(),
        "heaps": heaps,
    }
    if _PCI in extensions:
        told["bus"] = f"{bus.domain:04x}:{bus.bus:02x}:{bus.device:02x}.{bus.function:x}"
    return told


def _extensions(vulkan: Any, handle: Any) -> frozenset[str]:
    count, name = c_uint32(), "vkEnumerateDeviceExtensionProperties"
    ask = getattr(vulkan, name)
    _checked(name, ask(handle, None, ctypes.byref(count), None))
    found = (_Extension * count.value)()
    _checked(name, ask(handle, None, ctypes.byref(count), found))
    return frozenset(_text(one.name) for one in found)


def _checked(call: str, code: int) -> None:
    if code < 0:
        raise _Refused(call, code)


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")


def _version(number: int) -> str:
    return f"{number >> 22 & 0x7F}.{number >> 12 & 0x3FF}.{number & 0xFFF}"


if __name__ == "__main__":
    main()
