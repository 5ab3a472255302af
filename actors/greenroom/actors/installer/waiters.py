"""Who waits for which installation, under which key, and what the end of a job is to them."""

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
    """Under which whoever wants a backend, or a version of it, waits."""
    build = f"{variant}/{version}" if variant else version
    return f"install/{backend}@{build}" if build else f"install/{backend}"


def uninstall_key(backend: str) -> str:
    """Under which whoever wants a backend gone waits."""
    return f"uninstall/{backend}"


def waits(volatile: Volatile, key: str, ask: Ensure) -> Volatile:
    """The scheduler, who wants it for requests, tells by itself how long they wait."""
    if ask.token:
        return volatile
    return replace(volatile, waiting=joined(volatile.waiting, key, ask.waiter))


def job_for(jobs: Sequence[JobState], version: str, variant: str = "") -> JobState | None:
    """The job a wish joins: without a version whichever is under way."""
    if not (version or variant):
        return jobs[0] if jobs else None
    return next((one for one in jobs if (one.version, one.variant) == (version, variant)), None)


def keys_of(jobs: Sequence[JobState], job: JobState) -> tuple[str, ...]:
    """Under which those wait whom this job's end answers.

    Whoever named no version waits for the first of the jobs, whatever its version is.
    """
    backend = job.id.rpartition(".")[0]
    any_version = (ensure_key(backend),) if job == jobs[0] else ()
    return tuple(dict.fromkeys((ensure_key(backend, job.version, job.variant), *any_version)))


def answers(
    jobs: Sequence[JobState], job: JobState, event: Event, here: Installation | None = None
) -> tuple[Effect, ...]:
    """What the end of one of these jobs is to those who wait for it.

    `here` is the installation that made building another one needless.
    """
    match event:
        case InstallationCommitted() as e:
            outcome: Any = Ensured(installation=e.installation, fresh=True)
        case InstallNotNeeded():
            assert here is not None, "a job is needless because of one that is here"
            outcome = Ensured(installation=here, fresh=False)
        case InstallFailed() as e:
            outcome = refusals.failed(e.failure, e.backend)
        case InstallCancelled() as e:
            outcome = refusals.cancelled(e.backend, e.reason)
        case _:
            return ()
    return tuple(Answer(key=key, outcome=outcome) for key in keys_of(jobs, job))


def heard(volatile: Volatile, ask: Ensure) -> Volatile:
    """Whoever does not wait for a reply finds in the next list that this wish was decided on."""
    if not ask.token:
        return volatile
    return replace(volatile, heard={**volatile.heard, ask.backend: ask.token}, told=-1)


def stronger(first: Ensure | None, ask: Ensure) -> Ensure:
    """One wish that stands for two of the same version."""
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
    """Whoever waits for the look at the disk hears that it will not lead to anything."""
    gone = [one for one, ask in volatile.pending.items() if ask.backend == backend and key in ("", one)]
    pending = {one: ask for one, ask in volatile.pending.items() if one not in gone}
    told = tuple(Answer(key=one, outcome=refusals.cancelled(backend, reason)) for one in gone)
    return replace(volatile, pending=pending), told
