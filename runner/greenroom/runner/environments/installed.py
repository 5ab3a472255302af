"""An installed environment, and how to run its programs."""

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
"""Variables that would make a Python use another one's packages."""


class InstalledEnvironment(Result, frozen=True):
    """A complete, verified Python environment on this machine. It does not need the installer to run."""

    name: str
    """Its unique name, which `remove` and `why` accept."""
    requirement: str
    """Such as `black>=26,<27`."""
    version: str
    """Of the required distribution; if the lock does not contain it, the start of the lock's SHA-256."""
    python_version: str
    """Such as `3.12.9`."""
    root: Path
    """The environment's folder, laid out as by `python -m venv`."""
    packages: tuple[str, ...]
    """Everything installed in it: `name==version`."""
    size: int
    """Bytes on disk, many of them shared with other environments."""
    built_at: float
    """Seconds since 1970."""
    already: bool = False
    """It was installed before."""

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.root / "bin" / "python"

    def bin(self, program: str) -> Path:
        """The path of one of its programs, such as `black`. Raises NoEnvironment if there is none."""
        if not isinstance(program, str):
            raise TypeError(f"program must be text, not {type(program).__name__}")
        path = self.root / "bin" / program
        if os.sep in program or not os.path.isfile(path):
            if not self.python.exists():
                raise NoEnvironment(
                    f"{self.requirement} {self.version} is gone from {self.root}: it was removed since.",
                    "Call ensure again.",
                    code="not_installed",
                    kind="not_found",
                )
            raise NoEnvironment(
                f"{self.requirement} {self.version} has no program {program!r}.",
                f"It has: {', '.join(self.programs) or 'none'}.",
                code="no_such_program",
                kind="not_found",
            )
        return path

    @property
    def programs(self) -> tuple[str, ...]:
        """The names of its programs, except those that every environment has; none if it was removed."""
        try:
            with os.scandir(self.root / "bin") as entries:
                names = sorted(one.name for one in entries if one.is_file())
        except (FileNotFoundError, NotADirectoryError):
            return ()
        return tuple(
            one for one in names if not one.startswith(("activate", "deactivate", "python", "pydoc"))
        )

    @property
    def variables(self) -> Mapping[str, str]:
        """This process's environment variables, with the environment's programs first in `PATH`: for the
        `env` argument of `subprocess` and `asyncio.create_subprocess_exec`.
        """
        own = {name: value for name, value in os.environ.items() if name not in _NOT_THEIRS}
        path = os.pathsep.join(filter(None, (str(self.root / "bin"), own.get("PATH", os.defpath))))
        return {**own, "VIRTUAL_ENV": str(self.root), "PATH": path}

    def run(
        self, program: str, *args: str | os.PathLike[str], **options: Any
    ) -> subprocess.CompletedProcess[Any]:
        """Run one of its programs and wait. `options` go to `subprocess.run`.

        Raises NoEnvironment if there is no such program, and whatever `subprocess.run` raises.
        """
        return subprocess.run([self.bin(program), *args], **{"env": self.variables, **options})  # noqa: PLW1510


def root_of(folder: Path) -> Path:
    """The environment inside an installation's folder."""
    return folder / ENVIRONMENT
