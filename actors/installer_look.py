"""What the installer makes of what lies on disk: the journal's word alone is never believed."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from greenroom.actors import events as ev
from greenroom.actors.facts import Failure, Installation
from greenroom.actors.installer_state import BackendInstallState, JobState
from greenroom.actors.kernel.core import Event


def settle_with_disk(
    name: str,
    backend: BackendInstallState,
    found: Sequence[Installation],
    *,
    begun: bool,
    now: float,
    reported: Collection[str] = (),
) -> list[Event]:
    """Settle what the journal says of a backend with what lies there.

    1. A job of an earlier life whose installation is there after all: it is committed.
    2. Unknown and whole, or known as broken and whole again: found, the most recently built first, since the
       first one comes into use. The user's own: in use at once.
    3. Known as whole and not so: broken, with the reason.
    4. Known and not there: missing.
    5. A job of an earlier life without an installation: it goes on if somebody typed it or the backend is a
       default; a request's is over, its client is gone. So are those that a request queued behind it.

    `begun` says that the job is under way, so that its end will be reported; `reported` names installations
    that were committed or removed while this look was taken, so that it says nothing of them.
    """
    orphan = backend.job if backend.job is not None and not begun else None
    events: list[Event] = []
    committed = False
    for one in sorted(found, key=lambda one: -one.built_at):
        known = backend.installations.get(one.id)
        if one.id in backend.retiring or one.id in reported:
            continue
        if one.broken:  # 3
            if known is None:
                events.append(ev.InstallationFound(backend=name, installation=one))
            if known is None or known.broken != one.broken:
                events.append(ev.InstallationBroken(backend=name, installation_id=one.id, reason=one.broken))
        elif orphan is not None and not committed and known is None and _made_by(orphan, one):  # 1
            events.append(ev.InstallationCommitted(job=orphan.id, backend=name, installation=one))
            committed = True
        elif known is None or known.broken:  # 2
            events.append(ev.InstallationFound(backend=name, installation=one))
        if not one.managed and not one.broken and backend.current != one.id:
            reason = "it is the user's own, named in the config"
            events.append(ev.InstallationActivated(backend=name, installation_id=one.id, reason=reason))
    there = {one.id for one in found}
    events += [
        ev.InstallationMissing(backend=name, installation_id=one, reason="its folder is gone")
        for one in backend.installations
        if one not in there and one not in reported
    ]  # 4
    if orphan is not None and not committed:  # 5
        events += _go_on(name, orphan, now)
    events += [_over(name, job) for job in backend.queue if job.wanted_by == "request"]
    return events


def _made_by(job: JobState, one: Installation) -> bool:
    """Whether a job of an earlier life made this. A repair must not take what it was to replace."""
    as_wanted = one.managed and job.version in ("", "latest", one.version)
    return as_wanted and (job.wanted_by != "repair" or one.built_at >= job.requested_at)


def _over(name: str, job: JobState) -> Event:
    reason = "the daemon restarted and the request that wanted it is gone"
    return ev.InstallCancelled(job=job.id, backend=name, reason=reason)


def _go_on(name: str, job: JobState, now: float) -> list[Event]:
    if job.wanted_by == "request":
        return [_over(name, job)]
    if job.retry_at:  # it waited, and goes on waiting
        return []
    failure = Failure(
        kind="transient",
        code="daemon_restarted",
        message="The daemon ended in the middle of the installation.",
    )
    return [
        ev.InstallAttemptFailed(
            job=job.id,
            backend=name,
            attempt=job.attempt,
            failure=failure,
            retry_at=now,
            reached=job.reached,
        )
    ]
