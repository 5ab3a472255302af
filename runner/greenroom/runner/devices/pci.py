"""Display controllers on the PCI bus, as the kernel lists them whether or not a driver is loaded."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from greenroom.actors.graphics import Maker
from greenroom.runner.devices.host_view import HostView

_DEVICES = "/sys/bus/pci/devices"
_DISPLAY = 0x03
"""The class of VGA, 3D and other display controllers."""
_ACCELERATOR = 0x12
"""The class of AMD's Instinct and other processing accelerators."""
_MAKERS: dict[int, Maker] = {0x10DE: "nvidia", 0x1002: "amd", 0x8086: "intel"}
"""Vendors whose controllers compute. Others are a server's console or a virtual machine's screen."""
_NAMES = ("/usr/share/misc/pci.ids", "/usr/share/hwdata/pci.ids", "/var/lib/pciutils/pci.ids")
_WORDS: dict[str, str] = {"nvidia": "NVIDIA", "amd": "AMD", "intel": "Intel", "apple": "Apple"}
_BRACKETED = re.compile(r"\[([^\]]+)\]\s*$")


@dataclass(frozen=True)
class Controller:
    """A display controller that could compute."""

    bus: str
    """`0000:03:00.0`"""
    maker: Maker
    vendor: int
    device: int
    revision: int
    driver: str
    """Name of the kernel driver that holds it; empty if none does."""
    asleep: bool = False
    """Its driver has switched it off, since no program uses it; asking its driver would wake it."""


def controllers(view: HostView) -> tuple[Controller, ...]:
    return tuple(_controllers(view))


def _controllers(view: HostView) -> Iterator[Controller]:
    for bus in view.names(_DEVICES):
        folder = f"{_DEVICES}/{bus}"
        kind, vendor = view.number(f"{folder}/class") or 0, view.number(f"{folder}/vendor") or 0
        maker = _MAKERS.get(vendor)
        if maker is None or (kind >> 16) not in (_DISPLAY, _ACCELERATOR):
            continue
        if (kind >> 16) == _ACCELERATOR and maker != "amd":
            continue  # Intel's and others' are for other programs than ours
        yield Controller(
            bus=bus,
            maker=maker,
            vendor=vendor,
            device=view.number(f"{folder}/device") or 0,
            revision=view.number(f"{folder}/revision") or 0,
            driver=view.link(f"{folder}/driver"),
            asleep=view.text(f"{folder}/power/runtime_status") == "suspended",
        )


def name_of(view: HostView, controller: Controller) -> str:
    """As the system's list of PCI devices has it, else by its numbers."""
    maker = _WORDS[controller.maker]
    for file in _NAMES:
        if name := listed_name(view.text(file), controller.vendor, controller.device):
            return f"{maker} {name}"
    return f"{maker} graphics device {controller.vendor:04x}:{controller.device:04x}"


def listed_name(text: str, vendor: int, device: int) -> str:
    """The name in a `pci.ids` file: of `AD104 [GeForce RTX 4070]` what stands in brackets; empty if none."""
    _, found_vendor, after = f"\n{text}".partition(f"\n{vendor:04x}  ")
    for line in after.split("\n")[1:] if found_vendor else ():
        if line and not line.startswith(("\t", "#")):
            break
        if line.startswith(f"\t{device:04x}  "):
            found = line[7:].strip()
            inner = _BRACKETED.search(found)
            return inner[1] if inner else found
    return ""
