"""A program that asks NVIDIA's management library (NVML) for everything and prints it as one JSON object.

    python -I -S nvml_child.py [LIBRARY]

Run in a process of its own, since the library belongs to the driver: it may crash or hang. It uses only the
standard library. Functions that an older driver lacks leave their fields out. Sizes are bytes.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from collections.abc import Iterator
from typing import Any

_NOT_SUPPORTED, _TOO_SMALL = 3, 7
_UNKNOWN = 2**64 - 1
"""What NVML says of a process whose memory it cannot see."""
_MOST_PROCESSES = 1024


class _Pci(ctypes.Structure):
    """`nvmlPciInfo_t`."""

    _fields_ = [
        ("legacy", ctypes.c_char * 16),
        ("domain", ctypes.c_uint),
        ("bus", ctypes.c_uint),
        ("device", ctypes.c_uint),
        ("ids", ctypes.c_uint),
        ("subsystem", ctypes.c_uint),
        ("name", ctypes.c_char * 32),
    ]


class _Memory(ctypes.Structure):
    """`nvmlMemory_t`: `used` includes what the driver reserves."""

    _fields_ = [("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong)]


class _Process(ctypes.Structure):
    """`nvmlProcessInfo_v2_t`, of the functions `…_v3` too."""

    _fields_ = [
        ("pid", ctypes.c_uint),
        ("used", ctypes.c_ulonglong),
        ("instance", ctypes.c_uint),
        ("compute_instance", ctypes.c_uint),
    ]


class _Refused(Exception):
    """NVML's answer is an error."""

    def __init__(self, call: str, code: int, text: str) -> None:
        super().__init__(text)
        self.fields = {"call": call, "code": code, "text": text}


class _Nvml:
    def __init__(self, library: str) -> None:
        self._library = ctypes.CDLL(library)

    def call(self, name: str, *arguments: Any) -> None:
        """Raises AttributeError if this driver has no such function, else _Refused if it fails."""
        code = getattr(self._library, name)(*arguments)
        if code:
            raise _Refused(name, code, self._words(code))

    def _words(self, code: int) -> str:
        function = self._library.nvmlErrorString
        function.restype = ctypes.c_char_p
        return str((function(code) or b"").decode("utf-8", "replace"))

    def text(self, name: str, *arguments: Any) -> str:
        buffer = ctypes.create_string_buffer(128)
        self.call(name, *arguments, buffer, ctypes.c_uint(len(buffer)))
        return buffer.value.decode("utf-8", "replace")

    def number(self, name: str, *arguments: Any) -> int:
        found = ctypes.c_uint()
        self.call(name, *arguments, ctypes.byref(found))
        return found.value

    def memory(self, device: Any) -> dict[str, int]:
        found = _Memory()
        self.call("nvmlDeviceGetMemoryInfo", device, ctypes.byref(found))
        return {"total": found.total, "free": found.free}

    def processes(self, kind: str, device: Any) -> dict[str, int | None]:
        name = f"nvmlDeviceGet{kind}RunningProcesses"
        if hasattr(self._library, f"{name}_v3"):
            name = f"{name}_v3"
        else:
            raise AttributeError(name)  # the struct of earlier ones has changed between drivers
        count, found = ctypes.c_uint(_MOST_PROCESSES), (_Process * _MOST_PROCESSES)()
        self.call(name, device, ctypes.byref(count), found)
        return {str(one.pid): None if one.used == _UNKNOWN else one.used for one in found[: count.value]}


def main() -> None:
    # What the library prints itself must not come between.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    library = sys.argv[1] if len(sys.argv) > 1 else "libnvidia-ml.so.1"
    try:
        told = _everything(_Nvml(library))
    except OSError as problem:
        told = {"error": {"call": "dlopen", "code": 12, "text": str(problem)}}
    except _Refused as refused:
        told = {"error": refused.fields}
    json.dump(told, out)
    out.flush()
    os._exit(0)  # without the library's own end, in which old drivers crash


def _everything(nvml: _Nvml) -> dict[str, Any]:
    told: dict[str, Any] = {}
    try:
        nvml.call("nvmlInit_v2")
    except _Refused as refused:
        return {"error": refused.fields}
    _try(told, "driver", lambda: nvml.text("nvmlSystemGetDriverVersion"))
    version = ctypes.c_int()

    def cuda() -> int:
        nvml.call("nvmlSystemGetCudaDriverVersion_v2", ctypes.byref(version))
        return version.value

    _try(told, "cuda", cuda)
    told["devices"] = list(_devices(nvml))
    return told


def _devices(nvml: _Nvml) -> Iterator[dict[str, Any]]:
    for index in range(nvml.number("nvmlDeviceGetCount_v2")):
        handle = ctypes.c_void_p()
        one: dict[str, Any] = {"index": index}
        try:
            nvml.call("nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(index), ctypes.byref(handle))
        except _Refused as refused:
            yield {**one, "error": refused.fields}
            continue
        _describe(nvml, handle, one)
        yield one


def _describe(nvml: _Nvml, handle: Any, one: dict[str, Any]) -> None:
    def bus() -> str:
        pci = _Pci()
        nvml.call("nvmlDeviceGetPciInfo_v3", handle, ctypes.byref(pci))
        return f"{pci.domain:04x}:{pci.bus:02x}:{pci.device:02x}.0"

    def capability() -> str:
        major, minor = ctypes.c_int(), ctypes.c_int()
        nvml.call("nvmlDeviceGetCudaComputeCapability", handle, ctypes.byref(major), ctypes.byref(minor))
        return f"{major.value}.{minor.value}"

    def processes() -> dict[str, int | None]:
        return {**nvml.processes("Graphics", handle), **nvml.processes("Compute", handle)}

    def mig() -> int:
        current, pending = ctypes.c_uint(), ctypes.c_uint()
        nvml.call("nvmlDeviceGetMigMode", handle, ctypes.byref(current), ctypes.byref(pending))
        return current.value

    def faulty_rows() -> int:
        """Whether rows of its memory failed for which it has no spare ones left."""
        found = [ctypes.c_uint() for _ in range(4)]
        nvml.call("nvmlDeviceGetRemappedRows", handle, *(ctypes.byref(number) for number in found))
        return found[3].value

    _try(one, "uuid", lambda: nvml.text("nvmlDeviceGetUUID", handle))
    _try(one, "name", lambda: nvml.text("nvmlDeviceGetName", handle))
    _try(one, "bus", bus)
    _try(one, "capability", capability)
    _try(one, "memory", lambda: nvml.memory(handle))
    _try(one, "processes", processes)
    _try(one, "mig", mig)
    _try(one, "faulty_rows", faulty_rows)
    if one.get("mig"):
        _try(one, "instances", lambda: list(_instances(nvml, handle)))


def _instances(nvml: _Nvml, card: Any) -> Iterator[dict[str, Any]]:
    """The parts of a card that is divided (MIG), each a device of its own to CUDA."""
    for index in range(nvml.number("nvmlDeviceGetMaxMigDeviceCount", card)):
        handle = ctypes.c_void_p()
        try:
            nvml.call("nvmlDeviceGetMigDeviceHandleByIndex", card, ctypes.c_uint(index), ctypes.byref(handle))
        except _Refused:
            continue  # there is no part at this index
        one: dict[str, Any] = {}
        _try(one, "uuid", lambda handle=handle: nvml.text("nvmlDeviceGetUUID", handle))
        _try(one, "name", lambda handle=handle: nvml.text("nvmlDeviceGetName", handle))
        _try(one, "memory", lambda handle=handle: nvml.memory(handle))
        yield one


def _try(into: dict[str, Any], field: str, ask: Any) -> None:
    """One question; what its driver does not answer is left out, and a lost card says so."""
    try:
        into[field] = ask()
    except AttributeError:
        return
    except _Refused as refused:
        if refused.fields["code"] != _NOT_SUPPORTED:
            into.setdefault("errors", {})[field] = refused.fields


if __name__ == "__main__":
    main()
