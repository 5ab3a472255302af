"""An environment that is there, and how its programs are run."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from greenroom.runner.client.results import Result
from greenroom.runner.environments.errors import NoEnvironment
from greenroom.runner.installations.verification import ENVIRONMENT

_NOT_THEIRS = ("PYTHONHOME", "PYTHONPATH", "__PYVENV_LAUNCHER__")
"""Variables that would have a Python take another one's packages."""


class InstalledEnvironment(Result, frozen=True):
    """A Python environment on this machine, complete and verified. It may be used without the installer."""

    name: str
    """Of its declaration: `remove` and `why` take it."""
    requirement: str
    """Such as `black>=26,<27`."""
    version: str
    """Of the distribution that was asked for; of a lock without it, the beginning of its SHA-256."""
    python_version: str
    """Such as `3.12.9`."""
    root: Path
    """The environment's folder, as `python -m venv` makes it."""
    packages: tuple[str, ...]
    """All that is in it: `name==version`."""
    size: int
    """Bytes on disk. Other environments share many of them."""
    built_at: float
    """Seconds since 1970."""
    already: bool = False
    """It was installed before."""

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.root / "bin" / "python"

    def bin(self, program: str) -> Path:
        """One of its programs, such as `black`. Raises NoEnvironment if it has none of this name."""
        path = self.root / "bin" / program
        if os.sep in program or not path.is_file():
            raise NoEnvironment(
                f"{self.requirement} {self.version} has no program {program!r}.",
                f"It has: {', '.join(self.programs) or 'none'}.",
                code="no_such_program",
                kind="not_found",
            )
        return path

    @property
    def programs(self) -> tuple[str, ...]:
        """The names of its programs, without those of every environment."""
        with os.scandir(self.root / "bin") as entries:
            names = sorted(one.name for one in entries if one.is_file())
        return tuple(
            one for one in names if not one.startswith(("activate", "deactivate", "python", "pydoc"))
        )

    @property
    def variables(self) -> Mapping[str, str]:
        """The variables of this process, changed so that programs find those of the environment first:
        for `env=` of `subprocess` and `asyncio.create_subprocess_exec`.
        """
        own = {name: value for name, value in os.environ.items() if name not in _NOT_THEIRS}
        path = os.pathsep.join(filter(None, (str(self.root / "bin"), own.get("PATH", os.defpath))))
        return {**own, "VIRTUAL_ENV": str(self.root), "PATH": path}

    def run(
        self, program: str, *args: str | os.PathLike[str], **options: Any
    ) -> subprocess.CompletedProcess[Any]:
        """Run one of its programs and wait: `subprocess.run`, which takes `options`.

        Raises NoEnvironment if it has none of this name, and what `subprocess.run` raises.
        """
        return subprocess.run([self.bin(program), *args], **{"env": self.variables, **options})  # noqa: PLW1510


def root_of(folder: Path) -> Path:
    """The environment inside an installation's folder."""
    return folder / ENVIRONMENT
