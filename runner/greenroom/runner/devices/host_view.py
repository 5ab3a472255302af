"""What the probes see of the machine: files, programs, variables. Tests play recorded machines through it."""

from __future__ import annotations

import grp
import os
import platform
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from greenroom.runner.devices.children import Children, Told
from greenroom.runner.systems import macos

Run = Callable[[Sequence[str], Mapping[str, str] | None], Told]

WSL = "/usr/lib/wsl/lib"
"""Where WSL 2 has the libraries and tools of Windows' drivers."""
_LIBRARIES = (
    *("/usr/lib/{triplet}", "/usr/lib64", "/usr/lib", "/lib/{triplet}", "/lib64", "/usr/local/lib"),
    *("/usr/lib/{triplet}/nvidia", "/usr/lib/{triplet}/tegra", "/usr/local/nvidia/lib64"),
    *("/run/opengl-driver/lib", WSL),
)


def glibc_version() -> str:
    """Of the running process; empty on macOS and with musl."""
    try:
        told = os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (AttributeError, ValueError, OSError):
        return ""
    return told.removeprefix("glibc ").strip()


def access(name: str) -> tuple[bool, str]:
    try:
        group = grp.getgrgid(os.stat(name).st_gid).gr_name
    except (OSError, KeyError):
        group = ""
    return os.access(name, os.R_OK | os.W_OK), group


@dataclass(frozen=True)
class HostView:
    """The machine, or a recorded one."""

    root: Path = Path("/")
    env: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    run: Run = field(default_factory=lambda: Children().run)
    system: str = field(default_factory=lambda: platform.system().lower())
    """`linux` or `darwin`."""
    processor: str = field(default_factory=platform.machine)
    """As the system names it: `x86_64`, `aarch64`, `arm64`."""
    glibc: str = field(default_factory=glibc_version)
    access: Callable[[str], tuple[bool, str]] = access
    """Whether this process may read and write a file, and the name of its group."""
    sysctl: Callable[[str], bytes] = macos.sysctl_by_name
    """A value of macOS's kernel; empty if there is none of that name."""

    def path(self, name: str) -> Path:
        """A file of the machine, by its absolute name."""
        return self.root / name.lstrip("/")

    def exists(self, name: str) -> bool:
        return os.path.lexists(self.path(name))

    def text(self, name: str | Path) -> str:
        """The file, stripped; empty if it cannot be read."""
        try:
            return self._placed(name).read_text("utf-8", "replace").strip()
        except OSError:
            return ""

    def number(self, name: str | Path) -> int | None:
        """The decimal or `0x…` number in a file; None if there is none."""
        try:
            return int(self.text(name), 0)
        except ValueError:
            return None

    def link(self, name: str) -> str:
        """The last part of what a symbolic link points to; empty if it is none."""
        try:
            return os.readlink(self.path(name)).rstrip("/").rpartition("/")[2]
        except OSError:
            return ""

    def names(self, folder: str | Path) -> tuple[str, ...]:
        """What is in a folder, sorted; empty if it cannot be read."""
        try:
            return tuple(sorted(os.listdir(self._placed(folder))))
        except OSError:
            return ()

    def program(self, name: str, *more: str) -> str:
        """Where a program is, in PATH or in the folders of `more`; empty if it is nowhere."""
        places = [*self.env.get("PATH", "").split(os.pathsep), *(str(self.path(one)) for one in more)]
        return shutil.which(name, path=os.pathsep.join(places)) or ""

    def library(self, name: str) -> str:
        """Where the loader would find a library, as far as folders tell; empty if nowhere."""
        own = self.env.get("LD_LIBRARY_PATH", "").split(os.pathsep)
        triplet = f"{self.processor}-linux-gnu"
        for folder in (*filter(None, own), *(one.format(triplet=triplet) for one in _LIBRARIES)):
            if self.exists(f"{folder}/{name}"):
                return f"{folder}/{name}"
        return ""

    def script(self, name: str, *arguments: str, env: Mapping[str, str] | None = None) -> Told:
        """Run a script beside this module in a Python of its own, with nothing but the standard library."""
        script = Path(__file__).with_name(name)
        return self.run([sys.executable, "-I", "-S", str(script), *arguments], env)

    def _placed(self, name: str | Path) -> Path:
        return name if isinstance(name, Path) else self.path(name)
