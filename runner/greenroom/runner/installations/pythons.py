"""The Python that an environment is built for: Greenroom's own, or another one on this machine."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

from greenroom.runner.errors import JobFailed
from greenroom.runner.installations.lock_file import LockedFile, LockedPackage, chosen_files
from greenroom.runner.installations.uv import Uv
from greenroom.runner.installations.verification import Interpreter, InterpreterFailed, identity

if TYPE_CHECKING:
    from packaging.tags import Tag

_SECONDS = 60.0
_SHOWN = 8


def find(uv: Uv, wanted: str, cancel: Event | None = None) -> Interpreter:
    """The installed Python with this version or path; none is downloaded. Takes up to a second.

    Raises:
        JobFailed: There is none, or it does not run.
    """
    if wanted in ("", "{}.{}".format(*sys.version_info)):
        return Interpreter.here()
    try:
        args = ["python", "find", "--system", "--no-project", wanted]
        path = Path(uv.run(args, cancel=cancel, deadline=_SECONDS).stdout.strip())
        tag, version = identity(path, cancel)
    except (JobFailed, InterpreterFailed) as failed:
        if isinstance(failed, JobFailed) and failed.failure.kind == "transient":
            raise
        here = ", ".join(_installed(uv, cancel)) or "none"
        detail = failed.failure.detail if isinstance(failed, JobFailed) else str(failed)
        raise JobFailed.permanent(
            "no_such_python",
            f"There is no Python {wanted} on this machine. Installed: {here}.",
            advice="Install it, or choose one of these. If it is not in PATH, give its path.",
            detail=detail,
        ) from failed
    return Interpreter(version=version, tag=tag, base=str(path))


def _installed(uv: Uv, cancel: Event | None) -> list[str]:
    args = ["python", "list", "--only-installed", "--output-format", "json"]
    try:
        found = json.loads(uv.run(args, cancel=cancel, deadline=_SECONDS).stdout)
    except (JobFailed, ValueError):
        return []
    return list(dict.fromkeys(str(one["version"]) for one in found))[:_SHOWN]


def files_for(python: Interpreter, packages: Sequence[LockedPackage]) -> tuple[LockedFile, ...]:
    """The best wheel for it of each package whose marker holds for it.

    Raises:
        JobFailed: A package has none.
    """
    if python.tag == sys.implementation.cache_tag:
        return chosen_files(packages)
    return chosen_files(packages, _tags_of(python), markers_of(python))


def _tags_of(python: Interpreter) -> Sequence[Tag]:
    """The tags of wheels that it takes, best first."""
    from packaging.tags import compatible_tags, cpython_tags

    version = tuple(map(int, python.version.split(".")[:2]))
    interpreter = "cp{}{}".format(*version)
    return [*cpython_tags(version, [interpreter]), *compatible_tags(version, interpreter)]


def markers_of(python: Interpreter) -> Mapping[str, str]:
    """The variables of its markers."""
    from packaging.markers import default_environment

    short = ".".join(python.version.split(".")[:2])
    found = {name: str(value) for name, value in default_environment().items()}
    own = {"python_version": short, "python_full_version": python.version}
    return {**found, **own, "implementation_version": python.version}
