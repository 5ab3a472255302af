"""Installations the user named in the config: checked, used as they are, never changed."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from greenroom.actors.values import Installation
from greenroom.runner.backends.base import Backend, Environment
from greenroom.runner.installations.verification import run_python

EXTERNAL = "external"
"""The id of every installation the user named; a backend has at most one."""

_SECONDS = 30.0
_LOOK = """
import importlib.util, sys
from importlib.metadata import PackageNotFoundError, version
try:
    found = version(sys.argv[1])
except PackageNotFoundError:
    sys.exit(f"it has no {sys.argv[1]}")
for name in sys.argv[2:]:
    # Only the top is looked up: finding a submodule would import everything above it.
    if importlib.util.find_spec(name.partition(".")[0]) is None:
        sys.exit(f"it has no module {name}")
print(found)
"""


def environment(backend: Backend, python: Path) -> Installation:
    """The user's own environment with a backend, such as `greenroom[mlx]` in our own.

    Args:
        python: Its interpreter, or the environment's folder.
    """
    if python.is_dir():
        python = python / "bin" / "python"
    root = python.absolute()
    source = backend.source
    if not isinstance(source, Environment):
        return _broken(
            backend, root, f"{backend.name} is not made of Python packages; do not set `python` for it"
        )
    if not root.exists():
        return _broken(backend, root, f"{root} does not exist")
    if not root.is_file() or not os.access(root, os.X_OK):
        return _broken(backend, root, f"{root} is not a Python interpreter")
    outcome = run_python(root, ["-c", _LOOK, source.distribution, *source.probe], seconds=_SECONDS)
    if outcome.code != 0:
        lines = outcome.output.strip().splitlines()
        return _broken(backend, root, f"{root} cannot be used: {lines[-1] if lines else outcome.ending}")
    return _whole(backend, root, outcome.output.strip())


def binary(backend: Backend, program: Path) -> Installation:
    """The user's own program that speaks a backend's protocol, such as a `llama-server`."""
    root = program.absolute()
    if not root.exists():
        return _broken(backend, root, f"{root} does not exist")
    if not root.is_file() or not os.access(root, os.X_OK):
        return _broken(backend, root, f"{root} is not a program")
    try:
        run = subprocess.run(
            [str(root), "--version"],
            capture_output=True,
            timeout=_SECONDS,
            check=False,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    except subprocess.TimeoutExpired:
        return _broken(backend, root, f"{root} --version did not end within {_SECONDS:.0f}s")
    except OSError as error:
        return _broken(backend, root, f"{root} does not start: {error.strerror}")
    text = (run.stdout + run.stderr).decode("utf-8", "replace")
    if run.returncode != 0:
        last = text.strip().splitlines()[-1:] or [f"exit code {run.returncode}"]
        return _broken(backend, root, f"{root} --version failed: {last[0][:200]}")
    version = re.search(r"version:?\s+v?([0-9A-Za-z][\w.+-]*)", text)
    return _whole(backend, root, version[1] if version else "unknown")


def _whole(backend: Backend, root: Path, version: str) -> Installation:
    return Installation(id=EXTERNAL, backend=backend.name, version=version, managed=False, root=str(root))


def _broken(backend: Backend, root: Path, reason: str) -> Installation:
    return Installation(
        id=EXTERNAL, backend=backend.name, version="unknown", managed=False, root=str(root), broken=reason
    )
