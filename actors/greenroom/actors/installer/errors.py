"""The installer's refusals: complete sentences, with what to do next."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec.structs import replace

from greenroom.actors.installer.state import BackendInstallState, InstallerVolatile
from greenroom.actors.kernel.core import Answer, Effect, refuse
from greenroom.actors.kernel.errors import ErrorKind, Refusal
from greenroom.actors.values import Failure, Installation

_KINDS: dict[str, ErrorKind] = {
    "unsupported_platform": "not_ready",
    "no_lock": "not_ready",
    "refused_by_policy": "not_ready",
    "no_such_version": "not_found",
    "no_such_python": "not_ready",
    "bad_settings": "not_ready",
    "version_not_taken": "not_ready",
    "no_space": "exhausted",
    "read_only": "exhausted",
    "no_permission": "exhausted",
    "engine_over_memory": "exhausted",
    "unreachable": "unavailable",
    "cancelled": "conflict",
}


def kind_of(code: str, *, passing: bool) -> ErrorKind:
    return _KINDS.get(code, "unavailable" if passing else "internal")


def failed(failure: Failure | None, subject: str, *, attempts: int = 0) -> Refusal:
    """`attempts`: how many were made, if that says something."""
    assert failure is not None
    passing = failure.kind == "transient"
    return Refusal(
        code=failure.code,
        message=failure.message,
        advice=failure.advice,
        kind=kind_of(failure.code, passing=passing),
        retry_after=30.0 if passing else 0.0,
        numbers={**failure.numbers, **({"attempts": float(attempts)} if attempts > 1 else {})},
        subject=subject,
    )


def no_such_installation(
    backend: BackendInstallState,
    name: str,
    version: str,
    variant: str = "",
    advice: str = "List them: greenroom backends",
) -> Refusal:
    here = ", ".join(sorted({f"{one.variant} {one.version}".strip() for one in backend.whole})) or "none"
    wanted = " ".join(filter(None, (name, variant, version)))
    message = f"{wanted} is not installed; installed versions: {here}."
    return refuse("no_such_installation", message, advice=advice, kind="conflict", subject=name)


def unread(backend: str, reason: str) -> Refusal:
    """The installations cannot be inspected, so none is used, replaced or removed."""
    return refuse(
        "unreadable",
        f"The installations of {backend} cannot be read: {reason}.",
        advice="Check the disk and the owner of the data directory. Greenroom keeps checking.",
        kind="unavailable",
        subject=backend,
        retry_after=30.0,
    )


def cancelled(backend: str, reason: str, variant: str = "") -> Refusal:
    named = f" --variant {variant}" if variant else ""
    return refuse(
        "cancelled",
        f"The installation of {backend} was cancelled: {reason}.",
        advice=f"Downloads are kept. Start again: greenroom install-runner --backend {backend}{named}",
        kind="conflict",
        subject=backend,
    )


def busy(backend: str, jobs: int) -> Refusal:
    return refuse(
        "busy",
        f"{jobs} versions of {backend} are already waiting to be installed.",
        advice="Try again when they are installed.",
        kind="conflict",
        subject=backend,
    )


def unknown(backend: str, known: Iterable[str]) -> Refusal:
    return refuse(
        "backend_not_found",
        f'There is no backend "{backend}".',
        advice=f"Known backends: {', '.join(known)}.",
        kind="not_found",
        subject=backend,
    )


def not_ours(theirs: Installation) -> Refusal:
    name = theirs.backend
    broken = f" It cannot be used: {theirs.broken}" if theirs.broken else ""
    return refuse(
        "not_managed",
        f"{name} is your own, configured in config.toml; Greenroom never changes it.{broken}",
        advice=f'Remove [backends."{name}"] from config.toml to let Greenroom install its own.',
        kind="conflict",
        subject=name,
    )


def without_pending(
    volatile: InstallerVolatile, backend: str, reason: str, key: str = ""
) -> tuple[InstallerVolatile, tuple[Effect, ...]]:
    """Cancel requests that wait for the inspection of the disk."""
    gone = [one for one, ask in volatile.pending.items() if ask.backend == backend and key in ("", one)]
    pending = {one: ask for one, ask in volatile.pending.items() if one not in gone}
    told = tuple(Answer(key=one, outcome=cancelled(backend, reason)) for one in gone)
    return replace(volatile, pending=pending), told
