"""Ends installations and jobs on request: uninstall, cancel, leave."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from greenroom.actors.installer import errors as refusals
from greenroom.actors.installer.effects import CancelBuild
from greenroom.actors.installer.errors import without_pending
from greenroom.actors.installer.events import InstallationRetiring, InstallCancelled
from greenroom.actors.installer.messages import CancelInstall, LeaveInstall, Uninstall, Uninstalled
from greenroom.actors.installer.reconcile import answers
from greenroom.actors.installer.state import (
    BackendInstallState,
    ensure_key,
    fits,
    job_for,
    keys_of,
    uninstall_key,
)
from greenroom.actors.installer.state import InstallerVolatile as Volatile
from greenroom.actors.kernel.core import Decision, Effect, Event, Later
from greenroom.actors.values import Cancelled
from greenroom.actors.variants import USUAL
from greenroom.actors.waiters import count, left


def uninstall(backend: BackendInstallState, ask: Uninstall, volatile: Volatile) -> Decision[Volatile]:
    """Retire all installations of a backend, or a version; they are removed once their engines are gone.

    If none is left or being built, the backend stays uninstalled until it is requested.
    """
    if backend.theirs is not None:
        return Decision(reply=refusals.not_ours(backend.theirs))
    version = ask.version
    named = bool(version or ask.variant)
    going = [one for one in backend.installations.values() if fits(one, version, ask.variant)]
    jobs = [
        job
        for job in backend.jobs_open
        if ask.variant in ("", job.variant or USUAL) and version in ("", job.version)
    ]
    key = ensure_key(ask.backend, version, ask.variant) if named else ""
    if named and not going and not jobs and key not in volatile.pending:
        return Decision(reply=refusals.no_such_installation(backend, ask.backend, version, ask.variant))
    staying = backend.installations.keys() - backend.retiring - {one.id for one in going}
    others = bool(staying) or len(jobs) < len(backend.jobs_open)
    reason = "it was uninstalled" if named else "the backend was uninstalled"
    events: list[Event] = []
    effects: list[Effect] = []
    for job in jobs:
        cancelled = InstallCancelled(job=job.id, backend=ask.backend, reason=reason, unwanted=not others)
        events.append(cancelled)
        effects += [CancelBuild(job=job.id), *answers(backend.jobs_open, job, cancelled)]
    volatile, unasked = without_pending(volatile, ask.backend, reason, key)
    effects += unasked
    events += [
        InstallationRetiring(
            backend=ask.backend,
            installation_id=one.id,
            reason="uninstalled by the user",
            unwanted=not others,
            by_user=True,
        )
        for one in going
        if one.id not in backend.retiring
    ]
    reply: Any = Uninstalled(freed=0, was_installed=False)
    if going:
        reply = Later(uninstall_key(ask.backend))
        forced = volatile.forced | ({ask.backend} if ask.force else frozenset())
        volatile = replace(volatile, freed={ask.backend: 0, **volatile.freed}, forced=forced, told=-1)
    return Decision(events=tuple(events), effects=tuple(effects), reply=reply, volatile=volatile)


def cancel(backend: BackendInstallState, ask: CancelInstall, volatile: Volatile) -> Decision[Volatile]:
    """Cancel a job: the one named, else the one for that version, else the one under way.

    With `leave`, only if no other client and no queued request waits for it.
    """
    key = ensure_key(ask.backend, ask.version, ask.variant)
    if ask.job:
        job = next((one for one in backend.jobs_open if one.id == ask.job), None)
    else:
        job = job_for(backend.jobs_open, ask.version, ask.variant)
    if job is None and key not in volatile.pending:
        return Decision(reply=ask.replied(Cancelled(ended=False)))
    if ask.leave:
        waiting = left(volatile.waiting, key, ask.waiter)
        volatile = replace(volatile, waiting=waiting)
        keys = (key,) if job is None else keys_of(backend.jobs_open, job)
        awaited = ask.backend in volatile.awaited and job in (None, backend.job)
        if count(waiting, *keys) or awaited or (job is not None and job.wanted_by == "default"):
            return Decision(reply=ask.replied(Cancelled(ended=False)), volatile=volatile)
    if job is None:
        volatile, unasked = without_pending(volatile, ask.backend, ask.reason, key)
        return Decision(effects=unasked, reply=ask.replied(Cancelled(ended=True)), volatile=volatile)
    # If it were still wanted, a default backend would be installed again at once.
    unwanted = backend.usable is None and len(backend.jobs_open) == 1
    cancelled = InstallCancelled(job=job.id, backend=ask.backend, reason=ask.reason, unwanted=unwanted)
    return Decision(
        events=(cancelled,),
        effects=(CancelBuild(job=job.id), *answers(backend.jobs_open, job, cancelled)),
        reply=ask.replied(Cancelled(ended=True)),
        volatile=volatile,
    )


def leave(ask: LeaveInstall, volatile: Volatile) -> Decision[Volatile]:
    """A client no longer waits. The job goes on."""
    waiting = left(volatile.waiting, ensure_key(ask.backend, ask.version, ask.variant), ask.waiter)
    return Decision(volatile=replace(volatile, waiting=waiting))
