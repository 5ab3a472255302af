"""Clients that wait for installations: their keys, and what the end of a job answers them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec.structs import replace

from greenroom.actors.installer import errors as refusals
from greenroom.actors.installer.events import (
    InstallationCommitted,
    InstallCancelled,
    InstallFailed,
    InstallNotNeeded,
)
from greenroom.actors.installer.messages import Ensure, Ensured
from greenroom.actors.installer.state import InstallerVolatile as Volatile
from greenroom.actors.installer.state import JobState
from greenroom.actors.kernel.core import Answer, Effect, Event
from greenroom.actors.values import Installation
from greenroom.actors.waiters import joined


def ensure_key(backend: str, version: str = "", variant: str = "") -> str:
    build = f"{variant}/{version}" if variant else version
    return f"install/{backend}@{build}" if build else f"install/{backend}"


def uninstall_key(backend: str) -> str:
    return f"uninstall/{backend}"


def waits(volatile: Volatile, key: str, ask: Ensure) -> Volatile:
    """Count the waiter; not for the scheduler, which reports by itself which requests wait."""
    if ask.token:
        return volatile
    return replace(volatile, waiting=joined(volatile.waiting, key, ask.waiter))


def job_for(jobs: Sequence[JobState], version: str, variant: str = "") -> JobState | None:
    """The job that a request joins; without a version, the one under way."""
    if not (version or variant):
        return jobs[0] if jobs else None
    return next((one for one in jobs if (one.version, one.variant) == (version, variant)), None)


def keys_of(jobs: Sequence[JobState], job: JobState) -> tuple[str, ...]:
    """The keys that the end of this job answers.

    Requests without a version wait for the first job, whatever its version.
    """
    backend = job.id.rpartition(".")[0]
    any_version = (ensure_key(backend),) if job == jobs[0] else ()
    return tuple(dict.fromkeys((ensure_key(backend, job.version, job.variant), *any_version)))


def answers(
    jobs: Sequence[JobState], job: JobState, event: Event, here: Installation | None = None
) -> tuple[Effect, ...]:
    """The answers to the clients that wait for a job that has ended.

    `here` is the existing installation that made building another one unnecessary.
    """
    match event:
        case InstallationCommitted() as e:
            outcome: Any = Ensured(installation=e.installation, fresh=True)
        case InstallNotNeeded():
            assert here is not None, "a job is unnecessary only if its installation exists"
            outcome = Ensured(installation=here, fresh=False)
        case InstallFailed() as e:
            outcome = refusals.failed(e.failure, e.backend)
        case InstallCancelled() as e:
            outcome = refusals.cancelled(e.backend, e.reason)
        case _:
            return ()
    return tuple(Answer(key=key, outcome=outcome) for key in keys_of(jobs, job))


def heard(volatile: Volatile, ask: Ensure) -> Volatile:
    """Note in the next list that this request was decided on, for a sender that awaits no reply."""
    if not ask.token:
        return volatile
    return replace(volatile, heard={**volatile.heard, ask.backend: ask.token}, told=-1)


def stronger(first: Ensure | None, ask: Ensure) -> Ensure:
    """One request that stands for two for the same version."""
    if first is None:
        return ask
    typed = "explicit" in (first.wanted_by, ask.wanted_by)
    return replace(
        first,
        wanted_by="explicit" if typed else first.wanted_by,
        repair=first.repair or ask.repair,
        token=ask.token or first.token,
    )


def without_pending(
    volatile: Volatile, backend: str, reason: str, key: str = ""
) -> tuple[Volatile, tuple[Effect, ...]]:
    """Cancel requests that wait for the inspection of the disk."""
    gone = [one for one, ask in volatile.pending.items() if ask.backend == backend and key in ("", one)]
    pending = {one: ask for one, ask in volatile.pending.items() if one not in gone}
    told = tuple(Answer(key=one, outcome=refusals.cancelled(backend, reason)) for one in gone)
    return replace(volatile, pending=pending), told
