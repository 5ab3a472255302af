"""The installer: which backends are on disk, and the jobs that install them.

    absent → installing → installed        with waiting_to_retry, failed, broken, retiring

Each backend has one job at a time. Requests for the same version join it, jobs for other versions queue. A
failure is transient (retried, at a time the event records) or permanent; after either, the next request may
try again. At every start the disk is inspected and what is found becomes events: the journal alone is never
trusted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from msgspec.structs import replace

from greenroom.actors.engine_runner.messages import EngineList, runner_address
from greenroom.actors.installer import errors as refusals
from greenroom.actors.installer import events as installer_events
from greenroom.actors.installer import uninstalling as ends
from greenroom.actors.installer.disk_inspection import seen_on_disk, unread
from greenroom.actors.installer.effects import (
    DropUnneeded,
    InspectInstallations,
    PlanInstallation,
    RemoveInstallation,
    VerifyInstallations,
)
from greenroom.actors.installer.events import (
    InstallationActivated,
    InstallationCommitted,
    InstallationRemoved,
    InstallationsUnread,
    InstallAttemptFailed,
    InstallCancelled,
    InstallFailed,
    InstallRequested,
    VariantsRanked,
)
from greenroom.actors.installer.messages import (
    INSTALLER,
    Activate,
    BackendState,
    BackendStatus,
    CancelInstall,
    DropFetched,
    Ensure,
    Ensured,
    FetchedDropped,
    InstallationList,
    InstallationsSeen,
    LeaveInstall,
    PendingInstallRequests,
    PlanInstall,
    RankVariants,
    Uninstall,
    Verified,
    VerifyBackend,
)
from greenroom.actors.installer.reconcile import (
    InstallerTurn,
    after,
    answers,
    between_attempts,
    named,
    offered,
    passed_over,
    to_build,
    unusable,
    wished,
)
from greenroom.actors.installer.state import (
    BackendInstallState,
    InstallerState,
    InstallerVolatile,
    apply,
    ensure_key,
    fits,
    heard,
    job_for,
    keys_of,
    lasting_keys,
    stronger,
    uninstall_key,
    waits,
    whole_of,
)
from greenroom.actors.installer.versions import activate, not_needed, verified, verify, verify_key
from greenroom.actors.kernel.clock import Moment
from greenroom.actors.kernel.core import (
    Address,
    Answer,
    Command,
    Decision,
    Effect,
    Event,
    Later,
    NotUnderstood,
    Recovered,
    Stored,
    Tell,
    events_of,
    refuse,
)
from greenroom.actors.reports import EffectEnded, Happened
from greenroom.actors.retry import CONTACT_RETRIES, INSTALL_RETRIES, RetryPolicy
from greenroom.actors.scheduler.messages import LiftQuarantines
from greenroom.actors.values import BackendFacts, Failure, RequestSnapshot
from greenroom.actors.variants import BEST
from greenroom.actors.waiters import count

_STREAM = "install/"
_DROP_KEY = "drop-fetched"
_QUEUE = 8
"""Jobs per backend: a client that requests one version after another must not fill the journal."""

Volatile = InstallerVolatile
N = TypeVar("N", Ensure, Uninstall, CancelInstall, LeaveInstall)


class InstallerCore:
    address: Address = INSTALLER
    event_types: Sequence[type[Event]] = events_of(installer_events)

    def __init__(
        self,
        backends: Sequence[BackendFacts],
        retries: RetryPolicy = INSTALL_RETRIES,
        contact: RetryPolicy = CONTACT_RETRIES,
        *,
        install_defaults: bool = True,
        fetch_variants: bool = False,
    ) -> None:
        """`backends` are all that can be installed; with `install_defaults` False, none is unless requested.

        With `fetch_variants`, better variants for the machine's devices are fetched without being asked for.
        `retries` is the policy for jobs; `contact` while a client waits and no server has ever answered.
        """
        self._facts = {
            facts.name: facts if install_defaults else replace(facts, deferred=True) for facts in backends
        }
        self._retries = retries
        self._contact = contact
        self._fetch_variants = fetch_variants

    def claims(self, stream: str) -> bool:
        return stream.startswith(_STREAM)

    def stream_of(self, event: Event) -> str:
        return _STREAM + event.backend  # type: ignore[attr-defined, no-any-return]  # all of ours have one

    def initial(self) -> InstallerState:
        return InstallerState()

    def initial_volatile(self) -> Volatile:
        return InstallerVolatile()

    def apply(self, state: InstallerState, stored: Stored[Any]) -> InstallerState:
        return apply(state, stored)

    def decide(
        self, state: InstallerState, command: Command[Any], now: Moment, volatile: Volatile
    ) -> Decision[Volatile]:
        match command:
            case Ensure():
                return self._ensure(state, command, volatile)
            case Uninstall():
                return self._uninstall(state, command, volatile)
            case CancelInstall():
                return ends.cancel(state.of(command.backend), self._named(state, command), volatile)
            case LeaveInstall():
                return ends.leave(self._named(state, command), volatile)
            case PendingInstallRequests():
                return Decision(volatile=replace(volatile, awaited=command.backends))
            case Activate() | VerifyBackend():
                return self._installed(state, command, volatile)
            case DropFetched():
                return self._drop_fetched(state, command)
            case PlanInstall():
                return self._plan(state, command)
            case RankVariants():
                return self._rank(state.of(command.backend), command)
            case Happened(event=event):
                return self._happened(state, command, event, now, volatile)
            case EffectEnded():
                return self._ended(state, command, now, volatile)
            case InstallationsSeen():
                return seen_on_disk(state, command, now.wall, volatile)
            case EngineList():
                using = frozenset(
                    engine.spec.installation_id for engine in command.engines if engine.state != "gone"
                )
                call, version, _ = volatile.called.get(command.backend, ("", -1, 0.0))
                answered = version if call and command.token == call else -1
                return Decision(
                    volatile=replace(
                        volatile,
                        in_use={**volatile.in_use, command.backend: using},
                        acted_on={**volatile.acted_on, command.backend: max(command.installations, answered)},
                    )
                )
            case RequestSnapshot():
                return Decision(volatile=replace(volatile, told=-1))
            case Recovered():
                effects: list[Effect] = [InspectInstallations(backends=tuple(self._facts))]
                effects += [Tell(to=runner_address(name), command=RequestSnapshot()) for name in self._facts]
                return Decision(
                    effects=tuple(effects), volatile=replace(volatile, looking_since=now.monotonic)
                )
            case _:
                raise NotUnderstood(self.address, command)

    def _ensure(self, state: InstallerState, ask: Ensure, volatile: Volatile) -> Decision[Volatile]:
        """Decide on a request for a backend.

        1. The backend is unknown, or this platform cannot run it: refused.
        2. Its disk has not been inspected in this life: the request waits for that, a matter of
           milliseconds. If the inspection failed: refused, since it is unknown what is installed.
        3. The requested version is installed and in use, and no repair is requested: answered at once.
        4. The config names the user's own installation: refused; Greenroom makes none beside it.
        5. The requested version is installed, but another is current: it becomes current.
        6. A job for the same version is under way, or any job if no version is named: join it. A user's
           explicit request keeps the job going even if the request that began it is gone.
        7. Otherwise a job begins, behind those for other versions.
        """
        facts = self._facts.get(ask.backend)
        if facts is None:  # 1
            return Decision(reply=refusals.unknown(ask.backend, self._facts))
        if facts.verdict:
            return Decision(
                reply=refuse("unsupported_platform", facts.verdict, kind="not_ready", subject=ask.backend),
                volatile=heard(volatile, ask),
            )
        ask = self._named(state, ask)
        key = ensure_key(ask.backend, ask.version, ask.variant)
        if ask.backend in volatile.unread:  # 2
            refusal = refusals.unread(ask.backend, state.of(ask.backend).unread)
            return Decision(reply=refusal, volatile=heard(volatile, ask))
        if ask.backend not in volatile.looked:
            if key not in volatile.pending and len(volatile.pending) >= _QUEUE * len(self._facts):
                return Decision(reply=refusals.busy(ask.backend, _QUEUE))
            pending = {**volatile.pending, key: stronger(volatile.pending.get(key), ask)}
            volatile = replace(volatile, pending=pending)
            return Decision(reply=Later(key), volatile=waits(volatile, key, ask))
        backend = state.of(ask.backend)
        usable, variant = backend.usable, wished(ask.variant, backend, facts)
        volatile = heard(volatile, ask)
        if usable is not None and not ask.repair and fits(usable, ask.version, variant):  # 3
            # Naming the version in use means: try models on it again.
            again = (ask.version or ask.variant) and ask.wanted_by == "explicit"
            lift = Tell(command=LiftQuarantines(backend=ask.backend))
            reply = Ensured(installation=usable, fresh=False)
            return Decision(reply=ask.replied(reply), effects=(lift,) if again else (), volatile=volatile)
        if backend.theirs is not None:  # 4
            return Decision(reply=refusals.not_ours(backend.theirs), volatile=volatile)
        here = whole_of(backend, ask.version, variant) if ask.version or variant else None
        if here is not None and not ask.repair:  # 5
            activated = InstallationActivated(
                backend=ask.backend, installation_id=here.id, reason="this version was requested"
            )
            reply = Ensured(installation=here, fresh=False)
            return Decision(events=(activated,), reply=ask.replied(reply), volatile=volatile)
        events: tuple[Event, ...] = ()
        job = job_for(backend.jobs_open, ask.version, variant)
        if job is None:  # 7
            if refused := unusable(variant, backend, facts):
                return Decision(reply=refused, volatile=volatile)
            if len(backend.jobs_open) >= _QUEUE:
                return Decision(reply=refusals.busy(ask.backend, _QUEUE), volatile=volatile)
            variant = to_build(variant, backend)
            events = (_requested(ask, f"{ask.backend}.{backend.jobs + 1}", variant, ask.version),)
        elif (job.wanted_by == "request" and ask.wanted_by == "explicit") or (
            ask.variant == BEST and not job.best
        ):  # 6
            events = (_requested(ask, job.id, job.variant, job.version),)
        return Decision(events=events, reply=Later(key), volatile=waits(volatile, key, ask))

    def _named(self, state: InstallerState, ask: N) -> N:
        """The same with the pinned version in place of the word `pinned`, and one for the usual variant."""
        facts = self._facts.get(ask.backend)
        if facts is None:
            return ask
        build = to_build(ask.variant, state.of(ask.backend))
        locked = next((one.version for one in facts.variants if one.name == build), "")
        pinned = facts.versions.get(build) or locked or facts.version
        version = pinned if ask.version == "pinned" and pinned else ask.version
        return replace(ask, version=version, variant=named(ask.variant, facts))

    def _rank(self, backend: BackendInstallState, report: RankVariants) -> Decision[Volatile]:
        if (backend.ranked, backend.devices) == (report.variants, report.devices):
            return Decision()
        ranked = VariantsRanked(backend=report.backend, devices=report.devices, variants=report.variants)
        return Decision(events=(ranked,))

    def _uninstall(self, state: InstallerState, ask: Uninstall, volatile: Volatile) -> Decision[Volatile]:
        if ask.backend not in self._facts:
            return Decision(reply=refusals.unknown(ask.backend, self._facts))
        if ask.backend in volatile.unread:
            return Decision(reply=refusals.unread(ask.backend, state.of(ask.backend).unread))
        return ends.uninstall(state.of(ask.backend), self._named(state, ask), volatile)

    def _installed(
        self, state: InstallerState, ask: Activate | VerifyBackend, volatile: Volatile
    ) -> Decision[Volatile]:
        if ask.backend not in self._facts:
            return Decision(reply=refusals.unknown(ask.backend, self._facts))
        if ask.backend in volatile.unread:
            return Decision(reply=refusals.unread(ask.backend, state.of(ask.backend).unread))
        backend = state.of(ask.backend)
        if isinstance(ask, VerifyBackend):
            return verify(ask, backend)
        if backend.theirs is not None:
            return Decision(reply=refusals.not_ours(backend.theirs))
        return activate(backend, replace(ask, variant=named(ask.variant, self._facts[ask.backend])))

    def _drop_fetched(self, state: InstallerState, ask: DropFetched) -> Decision[Volatile]:
        """Drop unneeded downloads, unless jobs are under way: a retry continues with what was fetched."""
        at_work = tuple(name for name, backend in state.backends.items() if backend.jobs_open)
        if at_work:
            return Decision(reply=ask.replied(FetchedDropped(kept_for=at_work)))
        return Decision(effects=(DropUnneeded(),), reply=Later(_DROP_KEY))

    def _plan(self, state: InstallerState, ask: PlanInstall) -> Decision[Volatile]:
        facts = self._facts.get(ask.backend)
        if facts is None:
            return Decision(reply=refusals.unknown(ask.backend, self._facts))
        if facts.verdict:
            return Decision(
                reply=refuse("unsupported_platform", facts.verdict, kind="not_ready", subject=ask.backend)
            )
        backend = state.of(ask.backend)
        variant = wished(named(ask.variant, facts), backend, facts)
        if refused := unusable(variant, backend, facts):
            return Decision(reply=refused)
        variant = to_build(variant, backend)
        return Decision(
            reply=Later(_plan_key(ask.backend, ask.version, variant)),
            effects=(PlanInstallation(backend=ask.backend, variant=variant, version=ask.version),),
        )

    def _happened(
        self, state: InstallerState, command: Command[Any], event: Event, now: Moment, volatile: Volatile
    ) -> Decision[Volatile]:
        match event:
            case InstallationCommitted(backend=name, installation=made):
                decision = self._committed(state.of(name), event, now)
                return replace(decision, volatile=_noted(volatile, name, made.id))
            case InstallAttemptFailed():
                return self._attempt_failed(state.of(event.backend), event, now, volatile)
            case InstallCancelled():
                job = state.of(event.backend).job
                if job is None or job.id != event.job:
                    return Decision()
                return Decision(events=(event,), effects=answers([job], job, event), cause=job.cause)
            case InstallationsUnread():
                return unread(state.of(event.backend), event, volatile)
            case _:
                raise NotUnderstood(self.address, command)

    def _ended(
        self, state: InstallerState, report: EffectEnded, now: Moment, volatile: Volatile
    ) -> Decision[Volatile]:
        outcome: Any = report.answer
        match report.effect:
            case RemoveInstallation(backend=name):
                return self._removed(state.of(name), report.effect, report, now, volatile)
            case VerifyInstallations(backend=name) if isinstance(report.answer, Verified):
                return verified(state.of(name), report.answer)
            case VerifyInstallations(backend=name):
                key, subject = verify_key(name), name
            case PlanInstallation(backend=name, version=version, variant=variant):
                key, subject = _plan_key(name, version, variant), ""
            case DropUnneeded():
                key, subject = _DROP_KEY, ""
            case _:
                raise NotUnderstood(self.address, report)
        if report.failure is not None:
            outcome = refusals.failed(report.failure, subject)
        return Decision(effects=(Answer(key=key, outcome=outcome),))

    def _committed(
        self, backend: BackendInstallState, report: InstallationCommitted, now: Moment
    ) -> Decision[Volatile]:
        name, made, job = report.backend, report.installation, backend.job
        if made.id in backend.installations:
            return not_needed(backend, report) if job is not None else Decision()
        if job is None or job.id != report.job:
            # The job was cancelled just before its last step, so this installation is not wanted.
            return Decision(effects=(RemoveInstallation(backend=name, installation_id=made.id),))
        committed = replace(report, seconds=max(0.0, now.wall - job.requested_at))
        events: list[Event] = [committed]
        before = backend.usable
        if before is not None and (before.version, before.variant) != (made.version, made.variant):
            # It was built and probed beside the current one, and replaces it only now.
            reason = f"it replaces {before.id}"
            events.append(InstallationActivated(backend=name, installation_id=made.id, reason=reason))
        return Decision(events=tuple(events), effects=answers([job], job, committed), cause=job.cause)

    def _attempt_failed(
        self, backend: BackendInstallState, report: InstallAttemptFailed, now: Moment, volatile: Volatile
    ) -> Decision[Volatile]:
        """Retry a transient failure at a recorded time, until the policy gives up.

        If no server has ever answered and a client waits, that is within seconds.
        """
        name, job, failure = report.backend, backend.job, report.failure
        if job is None or job.id != report.job:
            return Decision()
        reached = report.reached or job.reached
        waited_for = name in volatile.awaited or count(volatile.waiting, *keys_of(backend.jobs_open, job))
        patient = reached or not waited_for
        policy = self._retries if patient else self._contact
        elapsed = now.wall - job.requested_at
        retry_at = policy.retry_at(failure, attempt=job.attempt, now=now.wall, draw=now.draw, elapsed=elapsed)
        if retry_at is not None:
            event = replace(report, attempt=job.attempt, retry_at=retry_at, reached=reached)
            return Decision(events=(event,), cause=job.cause)
        failed = InstallFailed(job=job.id, backend=name, failure=failure)
        following = after(backend, job, failure, self._facts[name])
        if not following:
            return Decision(events=(failed,), effects=answers([job], job, failed), cause=job.cause)
        here = whole_of(backend, "", following)
        effects = answers([job], job, failed, goes_on=True)
        if here is not None:
            ensured = Ensured(installation=here, fresh=False)
            effects += tuple(Answer(key=key, outcome=ensured) for key in lasting_keys([job], job))
            return Decision(events=(failed,), effects=effects, cause=job.cause)
        another = InstallRequested(
            job=f"{name}.{backend.jobs + 1}",
            backend=name,
            variant=to_build(following, backend),
            version="",
            wanted_by=job.wanted_by,
            best=True,
        )
        return Decision(events=(failed, another), effects=effects, cause=job.cause)

    def _removed(
        self,
        backend: BackendInstallState,
        effect: RemoveInstallation,
        report: EffectEnded,
        now: Moment,
        volatile: Volatile,
    ) -> Decision[Volatile]:
        name, one = effect.backend, effect.installation_id
        if not isinstance(report.event, InstallationRemoved):
            # It stays retired and its removal is retried; the caller does not wait for that.
            answer = Answer(key=uninstall_key(name), outcome=refusals.failed(report.failure, name))
            return Decision(
                effects=(answer,),
                volatile=replace(
                    volatile,
                    removing={**volatile.removing, f"{name}/{one}": now.monotonic},
                    freed={k: v for k, v in volatile.freed.items() if k != name},
                ),
            )
        volatile = _noted(volatile, name, one)
        if name in volatile.freed:
            freed = {**volatile.freed, name: volatile.freed[name] + report.event.freed}
            volatile = replace(volatile, freed=freed)
        known = one in backend.installations
        return Decision(events=(report.event,) if known else (), volatile=volatile)

    def react(self, state: InstallerState, stored: Stored[Any]) -> Sequence[Effect]:
        return between_attempts(state, stored.event)

    def settle(self, state: InstallerState, now: Moment, volatile: Volatile) -> Decision[Volatile]:
        turn = InstallerTurn(state, now, volatile, self._facts, self._retries, fetches=self._fetch_variants)
        return turn.take(self._ensure, self.list_of)

    def list_of(
        self, state: InstallerState, now: float, forced: frozenset[str] = frozenset()
    ) -> InstallationList:
        """All backends as other actors see them at `now`, in wall clock seconds."""
        return InstallationList(
            backends=tuple(self.status(state, name, now, forced=name in forced) for name in self._facts),
            version=state.version,
        )

    def status(self, state: InstallerState, name: str, now: float, *, forced: bool = False) -> BackendStatus:
        """One backend as other actors see it at `now`, in wall clock seconds."""
        backend = state.of(name)
        job = backend.job
        failure = job.failure if job is not None else backend.failure
        broken = [one.broken for one in backend.installations.values() if one.broken]
        if backend.usable is not None:
            word: BackendState = "installed"
            failure = passed_over(backend) or failure
        elif backend.unread:
            word, failure = "broken", _unread(name, backend.unread)
        elif job is not None:
            word = "waiting_to_retry" if job.retry_at > now else "installing"
        elif backend.retiring:
            word = "retiring"
        elif backend.failure is not None:
            word = "failed"
        elif broken:
            word = "broken"
            failure = Failure(kind="permanent", code="broken", message=broken[0])
        else:
            word = "absent"
        return BackendStatus(
            name=name,
            state=word,
            current=backend.usable,
            installations=tuple(backend.installations.values()),
            retiring=tuple(sorted(backend.retiring)),
            job=job.id if job is not None else "",
            queue=tuple(one.id for one in backend.queue),
            attempt=job.attempt if job is not None else 0,
            retry_at=self._retries.clamp(job.retry_at, now) if job is not None and job.retry_at else 0.0,
            failure=failure,
            forced=forced,
            wanted=backend.wanted is True or (backend.wanted is None and not self._facts[name].deferred),
            variants=backend.ranked,
            tried=backend.tried,
            offered=offered(backend, self._facts[name]),
        )


def _noted(volatile: Volatile, backend: str, installation_id: str) -> Volatile:
    """Remember a change that an inspection still under way may have missed."""
    if backend in volatile.looked:
        return volatile
    return replace(volatile, reported=volatile.reported | {installation_id})


def _unread(name: str, reason: str) -> Failure:
    told = refusals.unread(name, reason)
    return Failure(
        kind="transient", code=told.code, message=told.message, advice=told.advice, blame="machine"
    )


def _requested(ask: Ensure, job: str, variant: str, version: str) -> InstallRequested:
    wanted_by = "repair" if ask.repair else ask.wanted_by
    return InstallRequested(
        job=job,
        backend=ask.backend,
        variant=variant,
        version=version,
        wanted_by=wanted_by,
        caller=ask.caller,
        best=ask.variant == BEST,
    )


def _plan_key(backend: str, version: str, variant: str) -> str:
    return f"plan/{backend}/{variant}/{version}"
