"""Backends of another distribution for a real `greenroom`, installed from an index that can misbehave."""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

from greenroom.runner.installations.lock_file import LockedFile, LockedPackage, render
from package_index import Index

SHARED = Path(__file__).parent


class Workshop:
    """A distribution with an entry point for each backend; the wheels lie on the index."""

    def __init__(self, folder: Path, index: Index) -> None:
        self.folder = folder
        self.index = index
        self._names: list[str] = []

    def add(self, name: str, size: int = 1000, *, companion: int = 0) -> LockedFile:
        """A backend whose wheel holds so many bytes that cannot be compressed; daemons started later know it.

        With `companion` there is a second package, of that size.
        """
        noise = random.Random(name)
        files = {f"{name}/__init__.py": b"VALUE = 1\n", f"{name}/weights.bin": noise.randbytes(size)}
        file = self.index.add(name, "1.0", files)
        packages = [LockedPackage(name, "1.0", "", (file,))]
        if companion:
            other = f"{name}-companion".replace("-", "_")
            second = self.index.add(other, "1.0", {f"{other}.bin": noise.randbytes(companion)})
            packages.append(LockedPackage(other.replace("_", "-"), "1.0", "", (second,)))
        (self.folder / f"{name}.txt").write_text(render(packages, [f"{name} for tests"]))
        self._names.append(name)
        self._declare()
        return file

    def environment(self, user_home: Path) -> dict[str, str]:
        """Of a user who has the distribution, and who gets packages from the index and from nowhere else."""
        return {
            "PYTHONPATH": str(self.folder),
            "HOME": str(user_home),
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_FIND_LINKS": "",
            "PIP_EXTRA_INDEX_URL": "",
            "PIP_INDEX_URL": f"{self.index.url}/simple/",
            "PIP_TIMEOUT": "20",
            "NO_PROXY": "127.0.0.1",
        }

    def furnish(self, home: Path) -> None:
        """Name a llama.cpp of the user's own: nothing is fetched that is not asked for."""
        (home / "config.toml").write_text(f"[backends.'llama.cpp']\nbinary = '{sys.executable}'\n")

    def _declare(self) -> None:
        lines = [f"import sys\nsys.path.insert(0, {str(SHARED)!r})", "from pathlib import Path"]
        lines += ["from toy import toy_backend", f"FOLDER = Path({str(self.folder)!r})"]
        lines += [f"{name} = toy_backend(FOLDER, name={name!r})" for name in self._names]
        (self.folder / "workshop_of_tests.py").write_text("\n".join(lines) + "\n")
        info = self.folder / "workshop_of_tests-1.0.dist-info"
        info.mkdir(exist_ok=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: workshop-of-tests\nVersion: 1.0\n")
        points = [f"{name} = workshop_of_tests:{name}" for name in self._names]
        (info / "entry_points.txt").write_text("\n".join(["[greenroom.backends]", *points]) + "\n")
