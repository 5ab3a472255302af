"""Reconciles the journal with the installations on disk: the journal alone is never trusted."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from msgspec.structs import replace

from greenroom.actors.installer import errors as refusals
from greenroom.actors.installer.events import (
    InstallationActivated,
    InstallationBroken,
    InstallationCommitted,
    InstallationFound,
    InstallationMissing,
    InstallationsReadAgain,
    InstallationsUnread,
    InstallAttemptFailed,
    InstallCancelled,
    InstallFailed,
)
from greenroom.actors.installer.messages import InstallationsSeen
from greenroom.actors.installer.reconcile import answers
from greenroom.actors.installer.state import BackendInstallState, InstallerState, InstallerVolatile, JobState
from greenroom.actors.kernel.core import Answer, Decision, Event
from greenroom.actors.values import Failure, Installation

_ENDS = (InstallationCommitted, InstallFailed, InstallCancelled)


def seen_on_disk(
    state: InstallerState, report: InstallationsSeen, now: float, volatile: InstallerVolatile
) -> Decision[InstallerVolatile]:
    """Reconcile the journal with an inspection of a backend's disk.

    1. The first inspection of this life counts in full, see `settle_with_disk`.
    2. A later one counts only for the user's own, and where the state was unclear before: others may have
       been committed since it began.
    """
    name = report.backend
    backend = state.of(name)
    before = volatile.unclear.get(name, frozenset())
    unclear = {name: frozenset(report.unclear)} if report.unclear else {}
    others = {one: ids for one, ids in volatile.unclear.items() if one != name}
    if name in volatile.looked:  # 2
        theirs = {one.id for one in report.installations if not one.managed}
        judged = (before - report.unclear.keys()) | theirs
        if not judged:
            return Decision()
        found = [one for one in report.installations if one.id in judged]
        events = _of_installations(name, backend, found, backend.installations.keys() - judged)
        still = {name: before - judged} if before - judged else {}
        return Decision(events=tuple(events), volatile=replace(volatile, unclear={**others, **still}))
    # Builds in progress, which this actor does not know about if it was rebuilt.
    building = volatile.building | set(report.building)
    begun = backend.job is not None and any(job == backend.job.id for job, _ in building)
    told = volatile.reported | report.unclear.keys()
    events = settle_with_disk(name, backend, report.installations, begun=begun, now=now, reported=told)
    if backend.unread:
        events = [InstallationsReadAgain(backend=name), *events]
    open_jobs = {job.id: job for job in backend.jobs_open}
    answered = [
        answer
        for event in events
        if isinstance(event, _ENDS) and event.job in open_jobs
        for answer in answers(backend.jobs_open, open_jobs[event.job], event)
    ]
    volatile = replace(
        volatile,
        looked=volatile.looked | {name},
        unread=volatile.unread - {name},
        unclear={**others, **unclear},
        building=building,
    )
    return Decision(events=tuple(events), effects=tuple(answered), volatile=volatile)


def unread(
    backend: BackendInstallState, report: InstallationsUnread, volatile: InstallerVolatile
) -> Decision[InstallerVolatile]:
    """The disk could not be inspected: requests that wait for that are refused, and nothing is concluded."""
    name = report.backend
    if name in volatile.looked:
        return Decision()
    event = () if backend.unread == report.reason else (report,)
    gone = [key for key, ask in volatile.pending.items() if ask.backend == name]
    refusal = refusals.unread(name, report.reason)
    return Decision(
        events=event,
        effects=tuple(Answer(key=key, outcome=refusal) for key in gone),
        volatile=replace(
            volatile,
            unread=volatile.unread | {name},
            pending={key: ask for key, ask in volatile.pending.items() if key not in gone},
        ),
    )


def settle_with_disk(
    name: str,
    backend: BackendInstallState,
    found: Sequence[Installation],
    *,
    begun: bool,
    now: float,
    reported: Collection[str] = (),
) -> list[Event]:
    """Reconcile what the journal knows about a backend with the installations found.

    1. A job from an earlier life whose installation was completed after all: committed.
    2. Unknown and whole, or known as broken and whole again: found, most recently built first, since the
       first becomes current. The user's own becomes current at once.
    3. Known as whole but damaged: broken, with the reason.
    4. Known but not on disk: missing.
    5. A job from an earlier life without an installation goes on if a user requested it or the backend is a
       default. A job for a request ends, since its client is gone; so do jobs that requests queued behind it.

    `begun` means that the job is under way and its end will be reported; `reported` are installations that
    were committed or removed during the inspection, which therefore says nothing about them.
    """
    orphan = backend.job if backend.job is not None and not begun else None
    events = _of_installations(name, backend, found, reported, orphan)
    committed = any(isinstance(one, InstallationCommitted) for one in events)
    if orphan is not None and not committed:  # 5
        events += _go_on(name, orphan, now)
    events += [_over(name, job) for job in backend.queue if job.wanted_by == "request"]
    return events


def _of_installations(
    name: str,
    backend: BackendInstallState,
    found: Sequence[Installation],
    unsaid: Collection[str],
    orphan: JobState | None = None,
) -> list[Event]:
    """Rules 1 to 4 of `settle_with_disk`, except for the `unsaid` installations."""
    events: list[Event] = []
    committed = False
    for one in sorted(found, key=lambda one: -one.built_at):
        known = backend.installations.get(one.id)
        if one.id in backend.retiring or one.id in unsaid:
            continue
        if one.broken:  # 3
            if known is None:
                events.append(InstallationFound(backend=name, installation=one))
            if known is None or known.broken != one.broken:
                events.append(InstallationBroken(backend=name, installation_id=one.id, reason=one.broken))
        elif orphan is not None and not committed and known is None and _made_by(orphan, one):  # 1
            events.append(InstallationCommitted(job=orphan.id, backend=name, installation=one))
            committed = True
        elif known is None or known.broken:  # 2
            events.append(InstallationFound(backend=name, installation=one))
        if not one.managed and not one.broken and backend.current != one.id:
            reason = "it is configured in config.toml"
            events.append(InstallationActivated(backend=name, installation_id=one.id, reason=reason))
    there = {one.id for one in found}
    events += [
        InstallationMissing(backend=name, installation_id=one, reason="its folder is gone")
        for one in backend.installations
        if one not in there and one not in unsaid
    ]  # 4
    return events


def _made_by(job: JobState, one: Installation) -> bool:
    """Whether a job from an earlier life made this. A repair must not claim what it was to replace."""
    as_wanted = one.managed and job.variant == one.variant and job.version in ("", "latest", one.version)
    return as_wanted and (job.wanted_by != "repair" or one.built_at >= job.requested_at)


def _over(name: str, job: JobState) -> Event:
    reason = "a restart ended the request that needed it"
    return InstallCancelled(job=job.id, backend=name, reason=reason)


def _go_on(name: str, job: JobState, now: float) -> list[Event]:
    if job.wanted_by == "request":
        return [_over(name, job)]
    if job.retry_at:  # it goes on waiting
        return []
    failure = Failure(
        kind="transient", code="daemon_restarted", message="The daemon stopped during the installation."
    )
    return [
        InstallAttemptFailed(
            job=job.id, backend=name, attempt=job.attempt, failure=failure, retry_at=now, reached=job.reached
        )
    ]
