"""NVIDIA's Jetson boards, whose graphics processor is part of the chip and shares its memory."""

from __future__ import annotations

import re

from greenroom.actors.graphics import GraphicsDevice
from greenroom.runner.devices import problems
from greenroom.runner.devices.containers import in_container, machine_memory
from greenroom.runner.devices.found import Probed
from greenroom.runner.devices.host_view import HostView

_TARGETS = (
    ("Thor", "11.0"),
    ("Orin", "8.7"),
    ("Xavier", "7.2"),
    ("TX2", "6.2"),
    ("Nano", "5.3"),
    ("TX1", "5.3"),
)
_RELEASE = re.compile(r"R(\d+) \(release\), REVISION: ([\d.]+)")
_CUDA = (((38, 0), "13.0"), ((36, 4), "12.6"), ((36, 0), "12.2"), ((34, 0), "11.4"), ((32, 0), "10.2"))
"""The CUDA of each release of its Linux (JetPack's release notes)."""
_FILES = ("/dev/nvmap", "/dev/nvhost-gpu", "/dev/nvgpu")


def look(view: HostView) -> tuple[Probed, ...]:
    model = view.text("/proc/device-tree/model").rstrip("\0")
    target = next((target for word, target in _TARGETS if word in model), "")
    if "Jetson" not in model and not (model.startswith("NVIDIA") and target):
        return ()
    release = _RELEASE.search(view.text("/etc/nv_tegra_release"))
    version = f"{release[1]}.{release[2]}" if release else ""
    numbers = (int(release[1]), int(float(release[2].partition(".")[0]))) if release else (0, 0)
    cuda = next((cuda for least, cuda in _CUDA if numbers >= least), "")
    problem = None
    if not any(view.exists(file) for file in _FILES):
        problem = (
            problems.no_device_files(("/dev/nvmap",), "--runtime nvidia")
            if in_container(view)
            else problems.driver_not_loaded("NVIDIA", "nvgpu", in_container=False)
        )
    device = GraphicsDevice(
        id=f"nvidia:{model}",
        maker="nvidia",
        name=model,
        total=machine_memory(view),
        is_shared=True,
        driver=f"R{version}" if version else "",
        runtimes=(("cuda", cuda),),
        target=target,
        problem=problem,
    )
    return (Probed(device, {"cuda": "0"}),)
