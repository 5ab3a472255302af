"""What follows from the installer's state at one moment: the numbered steps of `settle`.

1. Decide on requests that waited for the inspection of the disk.
2. If nothing usable is current, but another whole installation exists, make it current.
3. Begin attempts that are due and have not begun in this life.
4. Begin a job for a default backend that is wanted and absent, once in each life. Make the variant that the
   configuration names current; fetch a better variant than the one in use, where that is allowed.
5. Retire broken installations beside a whole current one, and older builds of the same lock.
6. Remove retiring installations that no engine uses or will use.
7. Answer an uninstallation once nothing is retiring.
8. After a change, and every few seconds, send the scheduler the whole list.

And which variant of a backend is meant, which one is offered, and which one follows a failure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from msgspec.structs import replace

from greenroom.actors.engine_runner.messages import runner_address
from greenroom.actors.installer import errors as refusals
from greenroom.actors.installer.effects import (
    BuildInstallation,
    CancelBuild,
    InspectInstallations,
    PublishInstallProgress,
    RemoveInstallation,
)
from greenroom.actors.installer.events import (
    InstallationActivated,
    InstallationCommitted,
    InstallationRetiring,
    InstallAttemptBegun,
    InstallAttemptFailed,
    InstallCancelled,
    InstallFailed,
    InstallNotNeeded,
    InstallRequested,
)
from greenroom.actors.installer.messages import Ensure, Ensured, InstallationList, Uninstalled
from greenroom.actors.installer.state import (
    BackendInstallState,
    InstallerState,
    InstallerVolatile,
    JobState,
    fits,
    keys_of,
    lasting_keys,
    uninstall_key,
    whole_of,
)
from greenroom.actors.kernel.clock import Moment
from greenroom.actors.kernel.core import (
    Answer,
    Decision,
    Effect,
    Event,
    Fault,
    Later,
    Tell,
    fault,
    not_storable,
    refuse,
)
from greenroom.actors.kernel.errors import Refusal
from greenroom.actors.retry import RetryPolicy
from greenroom.actors.values import BackendFacts, Failure, Installation, RequestSnapshot
from greenroom.actors.variants import BEST, USUAL

_TELL_EVERY = 5.0
_REMOVE_AGAIN_AFTER = 30.0
_LOOK_AGAIN_AFTER = 30.0
_PATIENCE = 90.0
"""Seconds after which a removal no longer waits for the scheduler and asks the runner itself."""

Ensuring = Callable[[InstallerState, Ensure, InstallerVolatile], Decision[InstallerVolatile]]
ListOf = Callable[[InstallerState, float, frozenset[str]], InstallationList]


class InstallerTurn:
    """One call of `settle`. Mutable and short-lived: it collects a Decision."""

    def __init__(
        self,
        state: InstallerState,
        now: Moment,
        volatile: InstallerVolatile,
        facts: Mapping[str, BackendFacts],
        retries: RetryPolicy,
        *,
        fetches: bool,
    ) -> None:
        """`fetches`: better variants are fetched without being asked for."""
        self._fetches = fetches
        self._state = state
        self._now = now
        self._facts = facts
        self._retries = retries
        self._events: list[Event] = []
        self._effects: list[Effect] = []
        self._unless_stored: list[Effect] = []
        self._wakes: list[float] = []
        self._faults: list[Fault] = []
        self._volatile = self._pruned(volatile)

    def take(self, ensure: Ensuring, list_of: ListOf) -> Decision[InstallerVolatile]:
        unlooked = tuple(name for name in self._facts if name not in self._volatile.looked)
        for name, facts in self._facts.items():
            if name in unlooked:
                continue
            backend = self._state.of(name)
            before = self._mark()
            try:
                self._settle(name, backend, facts, ensure)
            except Exception as error:  # noqa: BLE001 - it costs only this backend
                self._take_back(before)
                self._faults.append(fault(error, doing="settle a backend", about=name))
                self._give_up(name, backend)
        again = tuple(dict.fromkeys((*unlooked, *self._volatile.unclear)))
        if again and self._now.monotonic - self._volatile.looking_since >= _LOOK_AGAIN_AFTER:
            self._effects.append(InspectInstallations(backends=again))
            self._update(looking_since=self._now.monotonic)
        events = tuple(self._events)
        decision = Decision(
            events=events,
            effects=tuple(self._effects),
            volatile=self._volatile,
            wake_at=min(self._wakes, default=None),
            faults=tuple(self._faults),
        )
        if_not_stored = replace(decision, events=(), effects=(*decision.effects, *self._unless_stored))
        tell_at = self._volatile.told_at + _TELL_EVERY
        stale = self._volatile.told != self._state.version or self._now.monotonic >= tell_at
        # The list waits for inspections under way, but includes backends whose inspection failed.
        if stale and self._volatile.unread.issuperset(unlooked):
            if_not_stored = self._telling(if_not_stored, list_of)  # 8
        # The next round sees these events applied and sends the list; this one does if they cannot be stored.
        return replace(decision, if_not_stored=if_not_stored) if events else if_not_stored

    def _settle(self, name: str, backend: BackendInstallState, facts: BackendFacts, ensure: Ensuring) -> None:
        if self._decide_pending(name, ensure):
            # The state is about to change; the next round goes on.
            return
        self._activate(name, backend)
        self._build(name, backend)
        self._install_default(name, backend, facts)
        self._follow_configuration(name, backend, facts)
        self._fetch_better(name, backend, facts)
        self._retire(name, backend)
        self._remove(name, backend)
        self._answer(name, backend)

    def _mark(self) -> tuple[tuple[int, ...], InstallerVolatile]:
        lists: tuple[list[Any], ...] = (self._events, self._effects, self._unless_stored, self._wakes)
        return tuple(len(one) for one in lists), self._volatile

    def _take_back(self, mark: tuple[tuple[int, ...], InstallerVolatile]) -> None:
        """Undo all steps of a backend when one of them fails."""
        lengths, self._volatile = mark
        lists: tuple[list[Any], ...] = (self._events, self._effects, self._unless_stored, self._wakes)
        for one, length in zip(lists, lengths, strict=True):
            del one[length:]

    def _give_up(self, name: str, backend: BackendInstallState) -> None:
        """Fail its jobs, with the blame on us, and answer the clients that wait for it."""
        failure = Failure(
            kind="permanent",
            code="internal_error",
            message=f"Greenroom failed while installing {name}.",
            advice="Please report it with the output of `greenroom bundle`.",
            blame="ours",
        )
        for job in backend.jobs_open:
            failed = InstallFailed(job=job.id, backend=name, failure=failure)
            self._events.append(failed)
            self._effects += [CancelBuild(job=job.id), *answers(backend.jobs_open, job, failed)]
        gone = [key for key, ask in self._volatile.pending.items() if ask.backend == name]
        self._effects += [Answer(key=key, outcome=refusals.failed(failure, name)) for key in gone]
        self._update(pending={key: ask for key, ask in self._volatile.pending.items() if key not in gone})

    def _telling(self, decision: Decision[InstallerVolatile], list_of: ListOf) -> Decision[InstallerVolatile]:
        whole = replace(
            list_of(self._state, self._now.wall, self._volatile.forced), heard=self._volatile.heard
        )
        return Decision(
            effects=(*decision.effects, Tell(command=whole)),
            volatile=replace(self._volatile, told=self._state.version, told_at=self._now.monotonic),
            wake_at=decision.wake_at,
            faults=decision.faults,
        )

    # the steps

    def _decide_pending(self, name: str, ensure: Ensuring) -> bool:  # 1
        """True if that made an event; the other requests wait for the next round."""
        for key, ask in self._volatile.pending.items():
            if ask.backend != name:
                continue
            waiting = self._volatile.waiting
            self._update(pending={k: v for k, v in self._volatile.pending.items() if k != key})
            decision = ensure(self._state, ask, self._volatile)
            self._events += decision.events
            if decision.volatile is not None:
                # The waiter was counted when it arrived.
                self._volatile = replace(decision.volatile, waiting=waiting)
            if not isinstance(decision.reply, Later):
                self._effects.append(Answer(key=key, outcome=decision.reply))
            if decision.events:
                self._unless_stored.append(Answer(key=key, outcome=not_storable()))
                return True
        return False

    def _activate(self, name: str, backend: BackendInstallState) -> None:  # 2
        if backend.usable is not None:
            return
        if backend.whole:
            best = max(backend.whole, key=lambda one: one.built_at)
            last = backend.installations.get(backend.current)
            reason = "no other one was in use"
            if last is not None and last.broken:
                reason = f"{last.id}, which was in use, is broken"
            self._events.append(InstallationActivated(backend=name, installation_id=best.id, reason=reason))

    def _build(self, name: str, backend: BackendInstallState) -> None:  # 3
        job = backend.job
        if job is None or (job.id, job.attempt) in self._volatile.building:
            return
        key = f"{job.id}/{job.attempt}"
        due = self._volatile.due.get(key)
        if due is None:
            wait = self._retries.clamp(job.retry_at, self._now.wall) - self._now.wall if job.retry_at else 0.0
            due = self._now.monotonic + max(0.0, wait)
            self._update(due={**self._volatile.due, key: due})
        if due > self._now.monotonic:
            self._wakes.append(due)
            return
        self._update(building=self._volatile.building | {(job.id, job.attempt)})
        if job.retry_at:
            self._events.append(InstallAttemptBegun(job=job.id, backend=name, attempt=job.attempt))
        # A broken installation shares its files with the cache, so the cache cannot be trusted.
        broken = any(one.broken and one.managed for one in backend.installations.values())
        self._effects.append(
            BuildInstallation(
                job=job.id,
                backend=name,
                variant=job.variant,
                version=job.version,
                attempt=job.attempt,
                repair=job.wanted_by == "repair" or broken,
                digest=_resolved(backend, job),
            )
        )

    def _install_default(self, name: str, backend: BackendInstallState, facts: BackendFacts) -> None:  # 4
        if facts.deferred or facts.verdict or name in self._volatile.defaulted:
            return
        here = backend.usable is not None or backend.job is not None
        if here or backend.wanted is False or backend.theirs is not None:
            self._update(defaulted=self._volatile.defaulted | {name})
        elif not any(isinstance(one, InstallationActivated) for one in self._events):
            job = f"{name}.{backend.jobs + 1}"
            self._events.append(InstallRequested(job=job, backend=name, version="", wanted_by="default"))

    def _follow_configuration(
        self, name: str, backend: BackendInstallState, facts: BackendFacts
    ) -> None:  # 4
        """Once in each life, so that a user may use another one for the moment."""
        if not facts.variant or name in self._volatile.configured or backend.usable is None or self._events:
            return
        self._update(configured=self._volatile.configured | {name})
        here = whole_of(backend, "", named(facts.variant, facts))
        if here is not None and here.variant != backend.usable.variant and backend.theirs is None:
            reason = "the configuration names this variant"
            self._events.append(InstallationActivated(backend=name, installation_id=here.id, reason=reason))

    def _fetch_better(self, name: str, backend: BackendInstallState, facts: BackendFacts) -> None:  # 4
        if backend.job is not None or self._events or not (self._fetches or facts.variant):
            return
        better = named(offered(backend, facts), facts)
        if better and better not in backend.tried:
            job = f"{name}.{backend.jobs + 1}"
            variant = to_build(better, backend)
            self._events.append(
                InstallRequested(
                    job=job, backend=name, variant=variant, version="", wanted_by="default", best=True
                )
            )

    def _retire(self, name: str, backend: BackendInstallState) -> None:  # 5
        usable = backend.usable
        if usable is None:
            return
        self._events += [
            InstallationRetiring(backend=name, installation_id=one.id, reason=_why_useless(one, usable))
            for one in backend.installations.values()
            if one.managed and one.id not in backend.retiring and _why_useless(one, usable)
        ]

    def _remove(self, name: str, backend: BackendInstallState) -> None:  # 6
        now = self._now.monotonic
        for one in sorted(backend.retiring):
            key = f"{name}/{one}"
            version, since = self._volatile.retired.get(key, (self._state.version, now))
            self._update(retired={**self._volatile.retired, key: (version, since)})
            # A start may have been under way, so the runner's list counts only once the scheduler knew of the
            # retirement and had sent the runner every earlier start.
            known = self._volatile.acted_on.get(name, -1) >= version
            if not known and now - since >= _PATIENCE:
                self._request_list(name, version)
            if not known or name not in self._volatile.in_use or one in self._volatile.in_use[name]:
                continue
            begun = self._volatile.removing.get(key)
            if begun is None or now - begun >= _REMOVE_AGAIN_AFTER:
                self._update(removing={**self._volatile.removing, key: now})
                self._effects.append(RemoveInstallation(backend=name, installation_id=one))

    def _request_list(self, name: str, version: int) -> None:
        """If the scheduler is silent: starts sent long ago precede this request in the runner's mailbox."""
        now = self._now.monotonic
        _, of, at = self._volatile.called.get(name, ("", -1, now))
        if of < version or now - at >= _REMOVE_AGAIN_AFTER:
            token = f"installer/{version}/{now}"
            self._effects.append(Tell(to=runner_address(name), command=RequestSnapshot(token=token)))
            self._update(called={**self._volatile.called, name: (token, version, now)})

    def _answer(self, name: str, backend: BackendInstallState) -> None:  # 7
        freed = self._volatile.freed.get(name)
        if freed is not None and not backend.retiring:
            outcome = Uninstalled(freed=freed, was_installed=True)
            self._effects.append(Answer(key=uninstall_key(name), outcome=outcome))
            self._update(freed={k: v for k, v in self._volatile.freed.items() if k != name})

    # inside

    def _pruned(self, volatile: InstallerVolatile) -> InstallerVolatile:
        """Drop what belongs to finished jobs and removed installations."""
        backends = self._state.backends
        jobs = {one.job.id for one in backends.values() if one.job is not None}
        busy = set(volatile.pending)
        for one in backends.values():
            if one.job is not None:
                busy |= {key for job in one.jobs_open for key in keys_of(one.jobs_open, job)}
        retiring = {f"{name}/{one}" for name, backend in backends.items() for one in backend.retiring}
        return replace(
            volatile,
            building=frozenset(one for one in volatile.building if one[0] in jobs),
            due={key: at for key, at in volatile.due.items() if key.rpartition("/")[0] in jobs},
            waiting={key: names for key, names in volatile.waiting.items() if key in busy},
            forced=volatile.forced & {name for name, one in backends.items() if one.retiring},
            retired={key: since for key, since in volatile.retired.items() if key in retiring},
            removing={key: at for key, at in volatile.removing.items() if key in retiring},
        )

    def _update(self, **changes: object) -> None:
        self._volatile = replace(self._volatile, **changes)


def _resolved(backend: BackendInstallState, job: JobState) -> str:
    """The digest of what was resolved for this variant and version before; empty if nothing was."""
    made = [one for one in backend.installations.values() if one.managed and one.variant == job.variant]
    made = [one for one in made if job.version in ("", one.version)]
    last = max(made, key=lambda one: one.built_at, default=None)
    return last.digest if last is not None and job.variant and job.version != "latest" else ""


def _why_useless(one: Installation, usable: Installation) -> str:
    """Why the current installation makes this one useless; other whole versions stay for a rollback."""
    if one.broken:
        return f"broken: {one.broken}"
    same = one.id != usable.id and one.digest == usable.digest
    return f"rebuilt as {usable.id}" if same and one.built_at < usable.built_at else ""


def between_attempts(state: InstallerState, event: Event) -> Sequence[Effect]:
    """Publish the progress of a job that waits for its next attempt; a running one publishes its own."""
    match event:
        case InstallAttemptFailed(backend=name, attempt=attempt, failure=failure):
            message = f"Waiting to try again (attempt {attempt + 1}): {failure.message}"
            return (PublishInstallProgress(backend=name, phase="waiting_to_retry", message=message),)
        case InstallCancelled(backend=name) if state.of(name).job is None:
            return (PublishInstallProgress(backend=name),)
    return ()


def answers(
    jobs: Sequence[JobState],
    job: JobState,
    event: Event,
    here: Installation | None = None,
    *,
    goes_on: bool = False,
) -> tuple[Effect, ...]:
    """The answers to the clients that wait for a job that has ended.

    Args:
        here: The existing installation that made building another one unnecessary.
        goes_on: Another variant is tried next, for all who have not named this one.
    """
    match event:
        case InstallationCommitted() as e:
            outcome: Any = Ensured(installation=e.installation, fresh=True)
        case InstallNotNeeded():
            assert here is not None, "a job is unnecessary only if its installation exists"
            outcome = Ensured(installation=here, fresh=False)
        case InstallFailed() as e:
            outcome = refusals.failed(e.failure, e.backend, attempts=job.attempt)
        case InstallCancelled() as e:
            outcome = refusals.cancelled(e.backend, e.reason, job.variant)
        case _:
            return ()
    waiting_on = lasting_keys(jobs, job) if goes_on else ()
    return tuple(Answer(key=key, outcome=outcome) for key in keys_of(jobs, job) if key not in waiting_on)


def passed_over(backend: BackendInstallState) -> Failure | None:
    """Why the installation named in the config is not used, if one of ours serves instead."""
    theirs, usable = backend.theirs, backend.usable
    if theirs is None or not theirs.broken or usable is None or not usable.managed:
        return None
    return Failure(
        kind="permanent",
        code="configured_broken",
        message=f"The {theirs.backend} configured in config.toml cannot be used ({theirs.broken}), so "
        f"Greenroom uses its own {usable.version} instead.",
        advice="Repair it and run greenroom backends verify, or remove "
        f'[backends."{theirs.backend}"] from config.toml and run greenroom restart.',
        blame="configuration",
    )


# which variant


def named(variant: str, facts: BackendFacts) -> str:
    """A variant as requests name it here: the usual one has one name, whatever it is."""
    return USUAL if variant and variant == facts.usual else variant


def best(backend: BackendInstallState, facts: BackendFacts, *, failed: str = "") -> str:
    """The variant that the machine would use, if this one has `failed`.

    1. The one in the configuration, unless it is known not to run here.
    2. The first in the order that has not failed for good on these devices.
    3. The usual one, if the order is unknown.
    """
    barred = {failed, *(name for name, why in backend.tried.items() if why.kind == "permanent")}
    usable = [one.name for one in backend.ranked if one.usable and one.name not in barred]
    if facts.variant in usable or (facts.variant and not backend.ranked and facts.variant != failed):  # 1
        return named(facts.variant, facts)
    return named(usable[0], facts) if usable else USUAL  # 2, 3


def wished(variant: str, backend: BackendInstallState, facts: BackendFacts) -> str:
    """The variant that a request means; empty for any."""
    if variant != BEST:
        return variant
    return "" if _is_compiled(backend, facts) else best(backend, facts)


def _is_compiled(backend: BackendInstallState, facts: BackendFacts) -> bool:
    """Whether the one in use was compiled on this machine, which a user has chosen over all others."""
    return backend.usable is not None and backend.usable.variant in facts.versions


def to_build(variant: str, backend: BackendInstallState) -> str:
    """The variant of a new installation, as it is stored: if none is named, that of the one in use."""
    if not variant:
        usable = backend.usable
        return usable.variant if usable is not None and usable.managed else ""
    return "" if variant == USUAL else variant


def offered(backend: BackendInstallState, facts: BackendFacts) -> str:
    """The name of a variant that is better than the one in use and not installed; empty if there is none."""
    usable = backend.usable
    if usable is None or not usable.managed or not backend.ranked or _is_compiled(backend, facts):
        return ""
    better = best(backend, facts)
    there = any(fits(one, "", better) for one in backend.whole)
    name = facts.usual if better == USUAL else better
    return "" if there or to_build(better, backend) in backend.declined else name


def after(backend: BackendInstallState, job: JobState, failure: Failure, facts: BackendFacts) -> str:
    """The variant to try after one has failed; empty if none is left."""
    if not job.best or not job.variant or failure.kind != "permanent":
        return ""
    return best(backend, facts, failed=job.variant)


def unusable(variant: str, backend: BackendInstallState, facts: BackendFacts) -> Refusal | None:
    """Why a variant cannot be installed on this machine, as far as that is known before trying."""
    if variant in ("", USUAL):
        return None
    names = [one.name for one in facts.variants]
    if variant not in (*names, *facts.versions):
        known = f"it has {', '.join(names)}" if names else "it has none"
        return refuse(
            "no_such_variant",
            f'{facts.name} has no variant "{variant}" here; {known}.',
            kind="not_found",
            subject=facts.name,
        )
    rank = next((one for one in backend.ranked if one.name == variant), None)
    if rank is None or rank.usable:
        return None
    return refuse(
        "variant_unusable",
        f"{facts.name} {variant} cannot run on this machine: {rank.reason}",
        advice="greenroom backends shows which variants can.",
        kind="not_ready",
        subject=facts.name,
    )
