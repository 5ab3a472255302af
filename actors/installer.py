"""The installer: which backends are on disk, and the one job a backend that puts them there.

    absent → installing → installed        with waiting_to_retry, failed, broken, retiring

One job a backend at a time; whoever asks meanwhile joins it. A failure is transient (another attempt, at a
time the event records) or permanent; neither sticks, the next request may try again. What lies on disk is
looked at in every new life, and what is seen becomes events: the journal's word alone is never believed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from greenroom.actors import events as ev
from greenroom.actors import messages as msg
from greenroom.actors.effects import (
    BuildInstallation,
    CancelBuild,
    LookAtInstallations,
    PlanInstallation,
    RemoveInstallation,
)
from greenroom.actors.facts import Failure, Installation
from greenroom.actors.installer_state import BackendInstallState, InstallerState, apply
from greenroom.actors.kernel.clock import Moment
from greenroom.actors.kernel.core import (
    Address,
    Answer,
    Command,
    Decision,
    Effect,
    Event,
    Later,
    Recovered,
    Stored,
    Tell,
    refuse,
)
from greenroom.actors.kernel.errors import Refusal
from greenroom.actors.retry import INSTALL_RETRIES, RetryPolicy

_STREAM = "install/"
_TELL_EVERY = 5.0
_REMOVE_AGAIN_AFTER = 30.0

_STATUS = {
    "unsupported_platform": 412,
    "refused_by_policy": 412,
    "no_such_version": 404,
    "no_space": 507,
    "unreachable": 503,
    "cancelled": 409,
}


class InstallerSeen(msgspec.Struct, frozen=True, kw_only=True):
    """What this life knows and the journal does not."""

    looked: frozenset[str] = frozenset()
    """Backends whose disk has been looked at."""
    building: frozenset[tuple[str, int]] = frozenset()
    """(job, attempt) begun in this life."""
    due: Mapping[str, float] = msgspec.field(default_factory=dict)
    """job/attempt → monotonic second of the next attempt; immune to a wall clock that jumps."""
    waiting: Mapping[str, int] = msgspec.field(default_factory=dict)
    """job → askers."""
    in_use: Mapping[str, frozenset[str]] = msgspec.field(default_factory=dict)
    """backend → installations its engines run from; absent until its runner has told."""
    removing: Mapping[str, float] = msgspec.field(default_factory=dict)
    """backend/installation → monotonic second at which its removal began."""
    freed: Mapping[str, int] = msgspec.field(default_factory=dict)
    """backend → bytes freed by the uninstallation under way."""
    told: int = -1
    told_at: float = 0.0


Seen = InstallerSeen


class Installer:
    """The pure core; see the module's text."""

    address: Address = msg.INSTALLER
    event_types: Sequence[type[Event]] = (
        ev.InstallRequested,
        ev.InstallAttemptFailed,
        ev.InstallationCommitted,
        ev.InstallFailed,
        ev.InstallCancelled,
        ev.InstallationFound,
        ev.InstallationMissing,
        ev.InstallationBroken,
        ev.InstallationActivated,
        ev.InstallationRetiring,
        ev.InstallationRemoved,
    )

    def __init__(self, backends: Sequence[msg.BackendFacts], retries: RetryPolicy = INSTALL_RETRIES) -> None:
        """`backends` are all that can be installed, by this Greenroom's declarations."""
        self._facts = {facts.name: facts for facts in backends}
        self._retries = retries

    def claims(self, stream: str) -> bool:
        """Every `install/<backend>`."""
        return stream.startswith(_STREAM)

    def stream_of(self, event: Event) -> str:
        """One stream a backend."""
        return _STREAM + event.backend  # type: ignore[attr-defined, no-any-return]  # all of ours have one

    def initial(self) -> InstallerState:
        """Nothing is known."""
        return InstallerState()

    def unseen(self) -> Seen:
        """Nothing has been looked at."""
        return InstallerSeen()

    def apply(self, state: InstallerState, stored: Stored[Any]) -> InstallerState:
        """Fold one event."""
        return apply(state, stored)

    # decide

    def decide(self, state: InstallerState, command: Command, now: Moment, seen: Seen) -> Decision[Seen]:
        """One command."""
        match command:
            case msg.Ensure():
                return self._ensure(state, command, seen)
            case msg.Uninstall():
                return self._uninstall(state, command, seen)
            case msg.CancelInstall():
                return self._cancel(state, command, seen)
            case msg.PlanInstall():
                return self._plan(command)
            case msg.PlanMade():
                outcome = command.plan if command.plan is not None else _refusal(command.failure, "")
                return Decision(
                    effects=(Answer(key=_plan_key(command.backend, command.version), outcome=outcome),)
                )
            case msg.InstallCommitted():
                return self._committed(state, command, now)
            case msg.InstallAttemptEnded():
                return self._attempt_ended(state, command, now)
            case msg.InstallationsSeen():
                return self._seen_on_disk(state, command, now, seen)
            case msg.InstallationGone():
                return self._gone(state, command, now, seen)
            case msg.EngineList():
                using = frozenset(
                    engine.spec.installation_id for engine in command.engines if engine.state != "gone"
                )
                return Decision(
                    seen=msgspec.structs.replace(seen, in_use={**seen.in_use, command.backend: using})
                )
            case msg.RollCall():
                return Decision(seen=msgspec.structs.replace(seen, told=-1))
            case Recovered():
                effects: list[Effect] = [LookAtInstallations(backends=tuple(self._facts))]
                effects += [Tell(to=msg.runner_address(name), command=msg.RollCall()) for name in self._facts]
                return Decision(effects=tuple(effects))
            case _:
                raise TypeError(f"the installer does not know {type(command).__name__}")

    def _ensure(self, state: InstallerState, ask: msg.Ensure, seen: Seen) -> Decision[Seen]:
        """Decide on a wish for a backend.

        1. Unknown backend, or one this platform cannot run: refused at once, without trying.
        2. It is installed, in the wanted version, and no repair is asked for: answered at once.
        3. A job of the same version is under way: join it. Another version: refused, versions queue.
        4. Its disk has not been looked at in this life: the look comes first, it is a matter of ms.
        5. Otherwise a job begins.
        """
        facts = self._facts.get(ask.backend)
        if facts is None:  # 1
            return Decision(reply=self._unknown(ask.backend))
        if facts.verdict:
            return Decision(
                reply=refuse("unsupported_platform", facts.verdict, status=412, subject=ask.backend)
            )
        backend = state.of(ask.backend)
        usable = backend.usable
        if usable is not None and not ask.repair and ask.version in ("", usable.version):  # 2
            return Decision(reply=msg.Ensured(installation=usable, fresh=False))
        if usable is not None and not usable.managed:
            return Decision(reply=self._not_ours(ask.backend))
        if backend.job is not None:  # 3
            if ask.version not in ("", backend.job.version):
                return Decision(
                    reply=refuse(
                        "busy",
                        f"{ask.backend} {backend.job.version or 'in its pinned version'} is being installed.",
                        advice="Ask again when that has finished.",
                        status=409,
                        subject=ask.backend,
                    )
                )
            return Decision(reply=Later(backend.job.id), seen=_one_more(seen, backend.job.id))
        job = f"{ask.backend}.{backend.jobs + 1}"  # 4, 5: `settle` begins the attempt once it has looked
        event = ev.InstallRequested(
            job=job,
            backend=ask.backend,
            version=ask.version,
            wanted_by="repair" if ask.repair else ask.wanted_by,
        )
        return Decision(events=(event,), reply=Later(job), seen=_one_more(seen, job))

    def _uninstall(self, state: InstallerState, ask: msg.Uninstall, seen: Seen) -> Decision[Seen]:
        """Retire everything of a backend; it is removed once its engines are gone."""
        if ask.backend not in self._facts:
            return Decision(reply=self._unknown(ask.backend))
        backend = state.of(ask.backend)
        if any(not installation.managed for installation in backend.installations.values()):
            return Decision(reply=self._not_ours(ask.backend))
        events: list[Event] = []
        effects: list[Effect] = []
        if backend.job is not None:
            events.append(
                ev.InstallCancelled(
                    job=backend.job.id,
                    backend=ask.backend,
                    reason="the backend was uninstalled meanwhile",
                    unwanted=True,
                )
            )
            effects.append(CancelBuild(job=backend.job.id))
        events += [
            ev.InstallationRetiring(
                backend=ask.backend, installation_id=one, reason="uninstalled by the user", unwanted=True
            )
            for one in backend.installations
            if one not in backend.retiring
        ]
        reply: Any
        if not backend.installations:
            reply = msg.Uninstalled(freed=0, was_installed=False)
        else:
            reply = Later(_uninstall_key(ask.backend))
        return Decision(
            events=tuple(events),
            effects=tuple(effects),
            reply=reply,
            seen=msgspec.structs.replace(seen, freed={**seen.freed, ask.backend: 0}),
        )

    def _cancel(self, state: InstallerState, ask: msg.CancelInstall, seen: Seen) -> Decision[Seen]:
        """End a job; with `leave`, only when nobody else wants it."""
        job = state.of(ask.backend).job
        if job is None:
            return Decision(reply=msg.Cancelled(ended=False))
        if ask.leave:
            others = seen.waiting.get(job.id, 0) - 1
            seen = msgspec.structs.replace(seen, waiting={**seen.waiting, job.id: max(others, 0)})
            if others > 0 or job.wanted_by == "default":
                return Decision(reply=msg.Cancelled(ended=False), seen=seen)
        return Decision(
            events=(ev.InstallCancelled(job=job.id, backend=ask.backend, reason=ask.reason),),
            effects=(CancelBuild(job=job.id),),
            reply=msg.Cancelled(ended=True),
            seen=seen,
        )

    def _plan(self, ask: msg.PlanInstall) -> Decision[Seen]:
        facts = self._facts.get(ask.backend)
        if facts is None:
            return Decision(reply=self._unknown(ask.backend))
        if facts.verdict:
            return Decision(
                reply=refuse("unsupported_platform", facts.verdict, status=412, subject=ask.backend)
            )
        return Decision(
            reply=Later(_plan_key(ask.backend, ask.version)),
            effects=(PlanInstallation(backend=ask.backend, version=ask.version),),
        )

    def _committed(self, state: InstallerState, report: msg.InstallCommitted, now: Moment) -> Decision[Seen]:
        name = report.installation.backend
        job = state.of(name).job
        if job is None or job.id != report.job:
            # The job was cancelled a moment before its last step: nobody wants this installation.
            return Decision(
                effects=(RemoveInstallation(backend=name, installation_id=report.installation.id),)
            )
        return Decision(
            events=(
                ev.InstallationCommitted(
                    job=job.id,
                    backend=name,
                    installation=report.installation,
                    seconds=max(0.0, now.wall - job.requested_at),
                ),
            ),
            cause=job.cause,
        )

    def _attempt_ended(
        self, state: InstallerState, report: msg.InstallAttemptEnded, now: Moment
    ) -> Decision[Seen]:
        """Transient failures are tried again at a recorded time, until the policy says that is enough."""
        job = state.of(report.backend).job
        if job is None or job.id != report.job:
            return Decision()
        failure = report.failure
        event: Event
        retry_at = (
            self._retries.retry_at(job.attempt, now.wall, now.draw) if failure.kind == "transient" else None
        )
        if failure.kind == "cancelled":
            event = ev.InstallCancelled(job=job.id, backend=report.backend, reason=failure.message)
        elif retry_at is not None:
            event = ev.InstallAttemptFailed(
                job=job.id, backend=report.backend, attempt=job.attempt, failure=failure, retry_at=retry_at
            )
        else:
            event = ev.InstallFailed(job=job.id, backend=report.backend, failure=failure)
        return Decision(events=(event,), cause=job.cause)

    def _seen_on_disk(
        self, state: InstallerState, report: msg.InstallationsSeen, now: Moment, seen: Seen
    ) -> Decision[Seen]:
        """Settle what the journal says with what lies there.

        1. A job of an earlier life whose installation is there after all: it is committed.
        2. Unknown and whole, or known as broken and whole again: found. The user's own: in use at once.
        3. Known as whole and not so: broken, with the reason.
        4. Known and not there: missing.
        5. A job of an earlier life without an installation: it goes on if somebody typed it or the
           backend is a default; a request's is over, its client is gone.
        """
        name = report.backend
        backend = state.of(name)
        there = {one.id: one for one in report.installations}
        events: list[Event] = []
        job = backend.job
        orphan = job is not None and all(begun != job.id for begun, _ in seen.building)
        committed = False
        for one in report.installations:
            known = backend.installations.get(one.id)
            if one.id in backend.retiring:
                continue
            if (
                not one.broken
                and known is None
                and orphan
                and job is not None
                and one.built_at >= job.requested_at
            ):
                events.append(ev.InstallationCommitted(job=job.id, backend=name, installation=one))  # 1
                committed = True
            elif not one.broken and (known is None or known.broken):
                events.append(ev.InstallationFound(backend=name, installation=one))  # 2
                if not one.managed and backend.current != one.id:
                    events.append(ev.InstallationActivated(backend=name, installation_id=one.id))
            elif one.broken and (known is None or known.broken != one.broken):
                if known is None:
                    events.append(ev.InstallationFound(backend=name, installation=one))
                events.append(
                    ev.InstallationBroken(backend=name, installation_id=one.id, reason=one.broken)
                )  # 3
        events += [
            ev.InstallationMissing(backend=name, installation_id=one, reason="its folder is gone")
            for one in backend.installations
            if one not in there
        ]  # 4
        if orphan and not committed and job is not None and job.retry_at == 0:  # 5
            if job.wanted_by == "request":
                reason = "the daemon restarted and the request that wanted it is gone"
                events.append(ev.InstallCancelled(job=job.id, backend=name, reason=reason))
            else:
                failure = Failure(
                    kind="transient",
                    code="daemon_restarted",
                    message="The daemon ended in the middle of the installation.",
                )
                events.append(
                    ev.InstallAttemptFailed(
                        job=job.id, backend=name, attempt=job.attempt, failure=failure, retry_at=now.wall
                    )
                )
        return Decision(events=tuple(events), seen=msgspec.structs.replace(seen, looked=seen.looked | {name}))

    def _gone(
        self, state: InstallerState, report: msg.InstallationGone, now: Moment, seen: Seen
    ) -> Decision[Seen]:
        key = f"{report.backend}/{report.installation_id}"
        if report.failure is not None:
            answer = Answer(
                key=_uninstall_key(report.backend), outcome=_refusal(report.failure, report.backend)
            )
            return Decision(
                effects=(answer,),
                seen=msgspec.structs.replace(seen, removing={**seen.removing, key: now.monotonic}),
            )
        freed = seen.freed.get(report.backend, 0) + report.freed
        removing = {k: v for k, v in seen.removing.items() if k != key}
        seen = msgspec.structs.replace(seen, removing=removing, freed={**seen.freed, report.backend: freed})
        if report.installation_id not in state.of(report.backend).installations:
            return Decision(seen=seen)
        event = ev.InstallationRemoved(
            backend=report.backend, installation_id=report.installation_id, freed=report.freed
        )
        return Decision(events=(event,), seen=seen)

    # react

    def react(self, _state: InstallerState, stored: Stored[Any]) -> Sequence[Effect]:
        """Answer whoever waits for a job that has ended."""
        match stored.event:
            case ev.InstallationCommitted() as e:
                return (Answer(key=e.job, outcome=msg.Ensured(installation=e.installation, fresh=True)),)
            case ev.InstallFailed() as e:
                return (Answer(key=e.job, outcome=_refusal(e.failure, e.backend)),)
            case ev.InstallCancelled() as e:
                outcome = refuse(
                    "cancelled",
                    f"The installation of {e.backend} was cancelled: {e.reason}.",
                    status=409,
                    subject=e.backend,
                )
                return (Answer(key=e.job, outcome=outcome),)
            case _:
                return ()

    # settle

    def settle(self, state: InstallerState, now: Moment, seen: Seen) -> Decision[Seen]:
        """What follows from the state.

        1. A job whose attempt is due and not begun in this life: begin it.
        2. A default backend that is wanted, absent, and did not fail: a job.
        3. A broken installation beside a whole current one, or an older build of the very same: retire it.
        4. A retiring installation no engine uses: remove it.
        5. Nothing retiring is left of an uninstallation: answer.
        6. Whatever changed, or every few seconds: tell the scheduler the whole list.
        """
        events: list[Event] = []
        effects: list[Effect] = []
        wakes: list[float] = []
        building, due, removing = set(seen.building), dict(seen.due), dict(seen.removing)
        freed = dict(seen.freed)
        for name, facts in self._facts.items():
            backend = state.of(name)
            if name not in seen.looked:
                continue
            job = backend.job
            if job is not None and (job.id, job.attempt) not in building:  # 1
                key = f"{job.id}/{job.attempt}"
                if key not in due:
                    wait = self._retries.clamp(job.retry_at, now.wall) - now.wall if job.retry_at else 0.0
                    due[key] = now.monotonic + max(0.0, wait)
                if due[key] <= now.monotonic:
                    building.add((job.id, job.attempt))
                    effects.append(
                        BuildInstallation(
                            job=job.id,
                            backend=name,
                            version=job.version,
                            attempt=job.attempt,
                            repair=job.wanted_by == "repair",
                        )
                    )
                else:
                    wakes.append(due[key])
            absent = backend.usable is None and job is None
            by_default = not facts.deferred and not facts.verdict and backend.wanted is not False
            if absent and by_default and backend.failure is None:  # 2
                job_id = f"{name}.{backend.jobs + 1}"
                events.append(ev.InstallRequested(job=job_id, backend=name, version="", wanted_by="default"))
            if backend.usable is not None:  # 3
                events += _superseded(name, backend, backend.usable)
            for one in sorted(backend.retiring):  # 4
                key = f"{name}/{one}"
                begun = removing.get(key)
                in_use = name not in seen.in_use or one in seen.in_use[name]
                if not in_use and (begun is None or begun + _REMOVE_AGAIN_AFTER <= now.monotonic):
                    removing[key] = now.monotonic
                    effects.append(RemoveInstallation(backend=name, installation_id=one))
            if name in freed and not backend.installations:  # 5
                outcome = msg.Uninstalled(freed=freed.pop(name), was_installed=True)
                effects.append(Answer(key=_uninstall_key(name), outcome=outcome))
        seen = msgspec.structs.replace(
            seen, building=frozenset(building), due=due, removing=removing, freed=freed
        )
        heard = set(self._facts) <= seen.looked
        if heard and (seen.told != state.version or now.monotonic - seen.told_at >= _TELL_EVERY):  # 6
            effects.append(Tell(to=msg.SCHEDULER, command=self.list_of(state)))
            seen = msgspec.structs.replace(seen, told=state.version, told_at=now.monotonic)
        return Decision(
            events=tuple(events),
            effects=tuple(effects),
            seen=seen,
            wake_at=min(wakes) if wakes else None,
        )

    # the list

    def list_of(self, state: InstallerState) -> msg.InstallationList:
        """All backends, as others see them."""
        return msg.InstallationList(
            backends=tuple(self.status(state, name) for name in self._facts), version=state.version
        )

    def status(self, state: InstallerState, name: str) -> msg.BackendStatus:
        """One backend, as others see it."""
        backend = state.of(name)
        job = backend.job
        failure = job.failure if job is not None else backend.failure
        broken = [one.broken for one in backend.installations.values() if one.broken]
        if backend.usable is not None:
            word: msg.BackendState = "installed"
        elif job is not None:
            word = "waiting_to_retry" if job.retry_at else "installing"
        elif backend.retiring:
            word = "retiring"
        elif backend.failure is not None:
            word = "failed"
        elif broken:
            word = "broken"
            failure = Failure(kind="permanent", code="broken", message=broken[0])
        else:
            word = "absent"
        return msg.BackendStatus(
            name=name,
            state=word,
            current=backend.usable,
            installations=tuple(backend.installations.values()),
            retiring=tuple(sorted(backend.retiring)),
            job=job.id if job is not None else "",
            attempt=job.attempt if job is not None else 0,
            retry_at=job.retry_at if job is not None else 0.0,
            failure=failure,
            wanted=backend.wanted is True or (backend.wanted is None and not self._facts[name].deferred),
        )

    def _unknown(self, backend: str) -> Refusal:
        known = ", ".join(self._facts)
        return refuse(
            "backend_not_found",
            f'There is no backend "{backend}".',
            advice=f"Known backends: {known}.",
            status=404,
            subject=backend,
        )

    def _not_ours(self, backend: str) -> Refusal:
        return refuse(
            "not_managed",
            f"{backend} is named in your configuration; Greenroom uses it and never touches it.",
            advice=f"Remove [backends.{backend!r}] from config.toml to let Greenroom install its own.",
            status=409,
            subject=backend,
        )


def _one_more(seen: Seen, job: str) -> Seen:
    return msgspec.structs.replace(seen, waiting={**seen.waiting, job: seen.waiting.get(job, 0) + 1})


def _superseded(name: str, backend: BackendInstallState, usable: Installation) -> list[Event]:
    """What the current installation makes useless; other whole versions stay, to go back to."""
    reasons = {
        one.id: f"broken: {one.broken}" if one.broken else f"built anew as {usable.id}"
        for one in backend.installations.values()
        if one.managed
        and one.id not in backend.retiring
        and (one.broken or (one.digest == usable.digest and one.built_at < usable.built_at))
    }
    return [
        ev.InstallationRetiring(backend=name, installation_id=one, reason=reason)
        for one, reason in reasons.items()
    ]


def _plan_key(backend: str, version: str) -> str:
    return f"plan/{backend}/{version}"


def _uninstall_key(backend: str) -> str:
    return f"uninstall/{backend}"


def _refusal(failure: Failure | None, subject: str) -> Refusal:
    assert failure is not None
    transient = failure.kind == "transient"
    return Refusal(
        code=failure.code,
        message=failure.message,
        advice=failure.advice,
        status=_STATUS.get(failure.code, 503 if transient else 500),
        retry_after=30.0 if transient else 0.0,
        subject=subject,
    )
