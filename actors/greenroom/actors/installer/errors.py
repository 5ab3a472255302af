"""The installer's noes: complete sentences, with what to do next."""

from __future__ import annotations

from collections.abc import Iterable

from greenroom.actors.installer.state import BackendInstallState
from greenroom.actors.kernel.core import refuse
from greenroom.actors.kernel.errors import Refusal
from greenroom.actors.values import Failure, Installation

_STATUS = {
    "unsupported_platform": 412,
    "refused_by_policy": 412,
    "no_such_version": 404,
    "bad_settings": 412,
    "version_not_taken": 412,
    "no_space": 507,
    "read_only": 507,
    "no_permission": 507,
    "unreachable": 503,
    "cancelled": 409,
}


def status_of(code: str, *, passing: bool) -> int:
    """The HTTP status that fits an installation's failure."""
    return _STATUS.get(code, 503 if passing else 500)


def failed(failure: Failure | None, subject: str) -> Refusal:
    """What a job's failure is to whoever waits for the job."""
    assert failure is not None
    passing = failure.kind == "transient"
    return Refusal(
        code=failure.code,
        message=failure.message,
        advice=failure.advice,
        status=status_of(failure.code, passing=passing),
        retry_after=30.0 if passing else 0.0,
        subject=subject,
    )


def no_such_installation(
    backend: BackendInstallState, name: str, version: str, advice: str = "greenroom backends shows them."
) -> Refusal:
    """That version is not here."""
    here = ", ".join(sorted({one.version for one in backend.whole})) or "none"
    message = f"{name} {version} is not installed; installed versions: {here}."
    return refuse("no_such_installation", message, advice=advice, status=409, subject=name)


def unread(backend: str, reason: str) -> Refusal:
    """What lies on the disk cannot be looked at, so nothing of it is used, replaced or removed."""
    return refuse(
        "unreadable",
        f"The installations of {backend} cannot be read: {reason}.",
        advice="Check the disk and who owns the data directory. Greenroom checks again by itself.",
        status=503,
        subject=backend,
        retry_after=30.0,
    )


def cancelled(backend: str, reason: str) -> Refusal:
    """The job was ended."""
    return refuse(
        "cancelled",
        f"The installation of {backend} was ended: {reason}.",
        advice=f"What was fetched is kept. Begin again: greenroom install-runner --backend {backend}",
        status=409,
        subject=backend,
    )


def busy(backend: str, jobs: int) -> Refusal:
    """So many versions wait already."""
    return refuse(
        "busy",
        f"{jobs} versions of {backend} are waiting to be installed already.",
        advice="Ask again when they have been.",
        status=409,
        subject=backend,
    )


def unknown(backend: str, known: Iterable[str]) -> Refusal:
    """There is no such backend."""
    return refuse(
        "backend_not_found",
        f'There is no backend "{backend}".',
        advice=f"Known backends: {', '.join(known)}.",
        status=404,
        subject=backend,
    )


def passed_over(backend: BackendInstallState) -> Failure | None:
    """What the user has named in the config, where that cannot be used and one of ours serves instead."""
    theirs, usable = backend.theirs, backend.usable
    if theirs is None or not theirs.broken or usable is None or not usable.managed:
        return None
    return Failure(
        kind="permanent",
        code="configured_broken",
        message=f"The {theirs.backend} that is named in your configuration cannot be used, so "
        f"{usable.version}, which Greenroom has installed, serves instead: {theirs.broken}.",
        advice=f'Repair it, or remove [backends."{theirs.backend}"] from config.toml.',
        blame="configuration",
    )


def not_ours(theirs: Installation) -> Refusal:
    """It is the user's own."""
    name = theirs.backend
    broken = f" It cannot be used as it is: {theirs.broken}" if theirs.broken else ""
    return refuse(
        "not_managed",
        f"{name} is named in your configuration; Greenroom uses it and never touches it.{broken}",
        advice=f'Remove [backends."{name}"] from config.toml to let Greenroom install its own.',
        status=409,
        subject=name,
    )
