"""File systems of a test's own: small ones, and folders that cannot be written to."""

from __future__ import annotations

import subprocess
from pathlib import Path


class NotPermitted(Exception):
    """This process may not mount anything."""


class Mounts:
    """Real mounts, which `close` takes away."""

    def __init__(self) -> None:
        self._made: list[Path] = []

    def small(self, where: Path, megabytes: int) -> None:
        """An empty file system of that size. Raises NotPermitted."""
        where.mkdir(exist_ok=True)
        self._mount(where, "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs")

    def read_only(self, where: Path) -> None:
        """The same folder, which not even root can write to. Raises NotPermitted."""
        self._mount(where, "--bind", str(where))
        _run("mount", "-o", "remount,bind,ro", str(where))

    def writable(self, where: Path) -> None:
        """Undo the last `read_only` of this folder."""
        _run("umount", str(where))
        self._made.remove(where)

    def close(self) -> None:
        """Unmount all, even those in use."""
        while self._made:
            _run("umount", "--lazy", str(self._made.pop()))

    def _mount(self, where: Path, *arguments: str) -> None:
        try:
            _run("mount", *arguments, str(where))
        except (subprocess.CalledProcessError, FileNotFoundError) as error:
            raise NotPermitted from error
        self._made.append(where)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
