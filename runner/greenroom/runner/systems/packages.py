"""Which package of this system has what a program misses, and the command that installs it."""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping
from functools import cache

_COMMANDS: Mapping[str, str] = {
    "debian": "sudo apt install {}",
    "fedora": "sudo dnf install {}",
    "suse": "sudo zypper install {}",
    "arch": "sudo pacman -S {}",
    "alpine": "sudo apk add {}",
    "macos": "brew install {}",
}
_LIBRARIES: Mapping[str, Mapping[str, str]] = {
    "libgomp.so.1": {
        "debian": "libgomp1",
        "fedora": "libgomp",
        "suse": "libgomp1",
        "arch": "gcc-libs",
        "alpine": "libgomp",
    },
    "libstdc++.so.6": {
        "debian": "libstdc++6",
        "fedora": "libstdc++",
        "suse": "libstdc++6",
        "arch": "gcc-libs",
        "alpine": "libstdc++",
    },
    "libvulkan.so.1": {
        "debian": "libvulkan1",
        "fedora": "vulkan-loader",
        "suse": "libvulkan1",
        "arch": "vulkan-icd-loader",
        "alpine": "vulkan-loader",
    },
    "libnuma.so.1": {
        "debian": "libnuma1",
        "fedora": "numactl-libs",
        "suse": "libnuma1",
        "arch": "numactl",
        "alpine": "numactl",
    },
}
"""Packages with the libraries that wheels take from the system: slim containers lack some."""
_MISSING = re.compile(r"\b(lib[\w.+-]+\.so(?:\.\d+)*): cannot open shared object file: No such file")
_TOO_OLD = re.compile(r"version [`']GLIBC_(\d+\.\d+)' not found")


@cache
def family() -> str:
    """Which packages this system takes: `debian`, `fedora`, …; empty if that is not known."""
    if platform.system() == "Darwin":
        return "macos"
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        return ""
    names = (release.get("ID", ""), *release.get("ID_LIKE", "").split())
    known = {"ubuntu": "debian", "rhel": "fedora", "centos": "fedora", "opensuse": "suse", "sles": "suse"}
    return next((found for name in names if (found := known.get(name, name)) in _COMMANDS), "")


def install_command(packages: Mapping[str, str], of: str | None = None) -> str:
    """The command that installs a package, given its names by family; empty if this system's is not known.

    Args:
        of: The family; by default this system's.
    """
    of = family() if of is None else of
    return _COMMANDS[of].format(packages[of]) if of in _COMMANDS and of in packages else ""


def missing_library(output: str, of: str | None = None) -> tuple[str, str] | None:
    """What a program's output says of a system library that it misses: a clause, and advice.

    None if it names none. The texts matched are those of glibc's dynamic loader.
    """
    if newer := _TOO_OLD.search(output):
        has = platform.libc_ver()[1]
        return (
            f"it needs glibc {newer[1]} or newer{f', and this system has {has}' if has else ''}",
            "Use a newer release of this system, or a container with one.",
        )
    if (named := _MISSING.search(output)) is None:
        return None
    command = install_command(_LIBRARIES.get(named[1], {}), of)
    advice = f"Install it: {command}" if command else f"Install the package that has {named[1]}."
    return f"this system has no {named[1]}", advice
