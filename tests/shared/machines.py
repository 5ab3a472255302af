"""Machines with graphics devices as they are found in the wild, as values."""

from __future__ import annotations

from collections.abc import Mapping

from greenroom.actors.graphics import Graphics, GraphicsDevice, Maker
from greenroom.actors.values import Failure
from greenroom.runner.backends.base import Platform

GIB = 2**30


def platform(system: str = "linux", machine: str = "x86_64", *, cuda: bool = False) -> Platform:
    macos = (15, 0) if system == "darwin" else None
    return Platform(system=system, machine=machine, python=(3, 12), macos=macos, cuda=cuda)


def device(maker: Maker, name: str, gib: float, target: str = "", **more: object) -> GraphicsDevice:
    fields = {"id": f"{maker}:{name}", "total": int(gib * GIB), "target": target} | more
    return GraphicsDevice(maker=maker, name=name, **fields)  # type: ignore[arg-type]


def nvidia(
    name: str, gib: float, target: str, driver: str, cuda: str, *, vulkan: bool = True
) -> GraphicsDevice:
    runtimes = (("cuda", cuda), *((("vulkan", "1.3.290"),) if vulkan else ()))
    return device("nvidia", f"NVIDIA {name}", gib, target, driver=driver, runtimes=runtimes)


MISMATCH = Failure(
    kind="permanent",
    code="driver_mismatch",
    message="NVIDIA's driver library is 580.95.05 and its kernel module 580.82.07.",
    advice="Reboot.",
)
NO_DEVICE_FILE = Failure(
    kind="permanent",
    code="not_passed",
    message="This container has no /dev/kfd.",
    advice="Start it with --device /dev/kfd --device /dev/dri.",
)

MACHINES: Mapping[str, tuple[Platform, Graphics]] = {
    "no device": (platform(), Graphics(glibc="2.36")),
    "RTX 4070, driver 580": (
        platform(cuda=True),
        Graphics(devices=(nvidia("GeForce RTX 4070", 12, "8.9", "580.95.05", "13.0"),), glibc="2.39"),
    ),
    "RTX 3060, driver 535": (
        platform(cuda=True),
        Graphics(devices=(nvidia("GeForce RTX 3060", 12, "8.6", "535.104", "12.2"),), glibc="2.36"),
    ),
    "GTX 1080, driver 535": (
        platform(cuda=True),
        Graphics(devices=(nvidia("GeForce GTX 1080", 8, "6.1", "535.104", "12.2"),), glibc="2.36"),
    ),
    "GTX 1080, driver 570": (
        platform(cuda=True),
        Graphics(devices=(nvidia("GeForce GTX 1080", 8, "6.1", "570.86", "12.8"),), glibc="2.36"),
    ),
    "H100, driver 580, container without Vulkan": (
        platform(cuda=True),
        Graphics(
            devices=(nvidia("H100 80GB HBM3", 80, "9.0", "580.82.07", "13.0", vulkan=False),), glibc="2.35"
        ),
    ),
    "H100, driver 595": (
        platform(cuda=True),
        Graphics(
            devices=(nvidia("H100 80GB HBM3", 80, "9.0", "595.45.04", "13.2", vulkan=False),), glibc="2.39"
        ),
    ),
    "RTX 4090, updated driver before a reboot": (
        platform(cuda=True),
        Graphics(devices=(device("nvidia", "NVIDIA GeForce RTX 4090", 24, problem=MISMATCH),), glibc="2.39"),
    ),
    "RX 7900 XTX, ROCm 6.4": (
        platform(),
        Graphics(
            devices=(
                device(
                    *("amd", "AMD Radeon RX 7900 XTX", 24, "gfx1100"),
                    runtimes=(("rocm", "6.4.1"), ("vulkan", "1.4.305")),
                ),
            ),
            glibc="2.39",
        ),
    ),
    "RX 9070 XT, no ROCm": (
        platform(),
        Graphics(
            devices=(
                device("amd", "AMD Radeon RX 9070 XT", 16, "gfx1201", runtimes=(("vulkan", "1.4.305"),)),
            ),
            glibc="2.41",
        ),
    ),
    "Radeon 780M, which shares memory, ROCm 7.2": (
        platform(),
        Graphics(
            devices=(
                device(
                    *("amd", "AMD Radeon 780M", 16, "gfx1103"),
                    is_shared=True,
                    runtimes=(("rocm", "7.2.4"), ("vulkan", "1.4.305")),
                ),
            ),
            glibc="2.39",
        ),
    ),
    "RX 7600 in a container without its device": (
        platform(),
        Graphics(problems=(NO_DEVICE_FILE,), glibc="2.36"),
    ),
    "Intel UHD 770, which shares memory": (
        platform(),
        Graphics(
            devices=(
                device(
                    "intel", "Intel UHD Graphics 770", 15, is_shared=True, runtimes=(("vulkan", "1.3.230"),)
                ),
            ),
            glibc="2.36",
        ),
    ),
    "Intel Arc A770 and UHD 770": (
        platform(),
        Graphics(
            devices=(
                device(
                    "intel", "Intel UHD Graphics 770", 15, is_shared=True, runtimes=(("vulkan", "1.4.305"),)
                ),
                device("intel", "Intel Arc A770", 16, runtimes=(("vulkan", "1.4.305"),)),
            ),
            glibc="2.39",
        ),
    ),
    "RTX 3060 on Debian 11": (
        platform(cuda=True),
        Graphics(devices=(nvidia("GeForce RTX 3060", 12, "8.6", "570.86", "12.8"),), glibc="2.31"),
    ),
    "RTX 4070 on Alpine": (
        platform(cuda=True),
        Graphics(devices=(nvidia("GeForce RTX 4070", 12, "8.9", "580.95.05", "13.0"),)),
    ),
    "GB10 on arm64, driver 580": (
        platform(machine="arm64", cuda=True),
        Graphics(
            devices=(
                device(
                    *("nvidia", "NVIDIA GB10", 120, "12.1"),
                    is_shared=True,
                    driver="580.95.05",
                    runtimes=(("cuda", "13.0"), ("vulkan", "1.4.312")),
                ),
            ),
            glibc="2.39",
        ),
    ),
    "Apple M3": (
        platform("darwin", "arm64"),
        Graphics(devices=(device("apple", "Apple M3", 16, is_shared=True, runtimes=(("metal", "3"),)),)),
    ),
}
"""By what they are, each the platform and what one look at its devices found."""
