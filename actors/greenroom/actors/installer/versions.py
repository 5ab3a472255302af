"""Installed versions of a backend: which one is current, and whether they are whole."""

from __future__ import annotations

from collections.abc import Iterable

from greenroom.actors.installer.effects import InspectInstallations, VerifyInstallations
from greenroom.actors.installer.errors import no_such_installation
from greenroom.actors.installer.events import (
    InstallationActivated,
    InstallationBroken,
    InstallationCommitted,
    InstallAttemptFailed,
    InstallNotNeeded,
)
from greenroom.actors.installer.messages import INSTALLER, Activate, Ensured, Verified, VerifyBackend
from greenroom.actors.installer.reconcile import answers
from greenroom.actors.installer.state import BackendInstallState, InstallerVolatile, whole_of
from greenroom.actors.kernel.core import Answer, Decision, Effect, Event, Later, Tell, refuse
from greenroom.actors.kernel.errors import Refusal
from greenroom.actors.reports import Happened
from greenroom.actors.scheduler.messages import LiftQuarantines
from greenroom.actors.values import Failure, Installation


def verify_key(backend: str) -> str:
    return f"verify/{backend}"


def activate(backend: BackendInstallState, ask: Activate) -> Decision[InstallerVolatile]:
    """Change the installation that new engines start from. Running engines keep theirs.

    1. If a version is named: its latest whole installation.
    2. Otherwise the one that was current before; if none is recorded, the latest built earlier. Another build
       of the current version does not count.
    """
    current = backend.usable
    if ask.version or ask.variant:  # 1
        chosen = whole_of(backend, ask.version, ask.variant)
    else:  # 2
        build = (current.version, current.variant) if current is not None else ("", "")
        whole = {one.id: one for one in backend.whole if (one.version, one.variant) != build}
        before = [whole[one] for one in backend.past if one in whole]
        chosen = before[-1] if before else _built_before(current, whole.values())
    if chosen is None:
        return Decision(reply=_nothing_there(backend, ask))
    reply = Ensured(installation=chosen, fresh=False)
    if current is not None and current.id == chosen.id:
        # Nothing to switch, but naming it means: try models on it again.
        lift = Tell(command=LiftQuarantines(backend=ask.backend))
        return Decision(reply=ask.replied(reply), effects=(lift,))
    reason = "this version was requested" if ask.version or ask.variant else "a rollback was requested"
    activated = InstallationActivated(backend=ask.backend, installation_id=chosen.id, reason=reason)
    return Decision(events=(activated,), reply=ask.replied(reply))


def not_needed(backend: BackendInstallState, report: InstallationCommitted) -> Decision[InstallerVolatile]:
    """A job that was to build the newest version has found it installed.

    1. The job has ended, or another is under way: nothing.
    2. The installation is no longer whole: another attempt builds it.
    3. It becomes current if another is, as a new build would.
    """
    job, here = backend.job, backend.installations[report.installation.id]
    if job is None or job.id != report.job:  # 1
        return Decision()
    if here not in backend.whole:  # 2
        failure = Failure(
            kind="transient",
            code="not_here_any_more",
            message=f"{here.id} was installed before but is no longer complete.",
        )
        failed = InstallAttemptFailed(
            job=job.id, backend=here.backend, attempt=job.attempt, failure=failure, retry_at=0.0
        )
        return Decision(effects=(Tell(to=INSTALLER, command=Happened(event=failed)),))
    events: list[Event] = [
        InstallNotNeeded(
            job=job.id,
            backend=here.backend,
            installation_id=here.id,
            variant=here.variant,
            version=here.version,
        )
    ]
    effects = [*answers(backend.jobs_open, job, events[0], here)]
    if backend.usable != here:  # 3
        events.append(
            InstallationActivated(
                backend=here.backend, installation_id=here.id, reason="it is the newest version"
            )
        )
    elif job.wanted_by == "explicit":
        # An explicit request means: try models on it again.
        effects.append(Tell(command=LiftQuarantines(backend=here.backend)))
    return Decision(events=tuple(events), effects=tuple(effects), cause=job.cause)


def verify(ask: VerifyBackend, backend: BackendInstallState) -> Decision[InstallerVolatile]:
    """Verify all of a backend's installations that are not retiring."""
    name = ask.backend
    there = tuple(one.id for one in backend.installations.values() if one.id not in backend.retiring)
    if not there:
        return Decision(reply=ask.replied(Verified(backend=name, checked=(), damaged={})))
    effects: list[Effect] = [VerifyInstallations(backend=name, installations=there)]
    if backend.theirs is not None:
        # The user may have repaired it, or put another version in its place.
        effects.append(InspectInstallations(backends=(name,)))
    return Decision(reply=Later(verify_key(name)), effects=tuple(effects))


def verified(backend: BackendInstallState, report: Verified) -> Decision[InstallerVolatile]:
    """Mark damaged installations as broken: the next request repairs them."""
    name = report.backend
    broken: list[Event] = []
    for one, complaints in report.damaged.items():
        known = backend.installations.get(one)
        if known is None or one in backend.retiring or known.broken or not complaints:
            continue
        reason = _reason(complaints)
        broken.append(InstallationBroken(backend=name, installation_id=one, reason=reason))
    return Decision(events=tuple(broken), effects=(Answer(key=verify_key(name), outcome=report),))


def _built_before(current: Installation | None, whole: Iterable[Installation]) -> Installation | None:
    if current is None:
        return None
    earlier = [one for one in whole if one.id != current.id and one.built_at < current.built_at]
    return max(earlier, key=lambda one: one.built_at, default=None)


def _reason(complaints: tuple[str, ...]) -> str:
    others = len(complaints) - 1
    return f"{complaints[0]} (and {others} more)" if others else complaints[0]


def _nothing_there(backend: BackendInstallState, ask: Activate) -> Refusal:
    if ask.version or ask.variant:
        advice = f"greenroom install-runner --backend {ask.backend}"
        advice += f" --variant {ask.variant}" if ask.variant else ""
        advice += f" --version {ask.version}" if ask.version else ""
        return no_such_installation(backend, ask.backend, ask.version, ask.variant, advice)
    message = f"{ask.backend} has no other version to go back to."
    advice = "greenroom backends shows what is installed."
    return refuse("no_such_installation", message, advice=advice, kind="conflict", subject=ask.backend)
