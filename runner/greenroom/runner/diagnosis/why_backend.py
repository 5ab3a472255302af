"""Why a backend is installed, not installed, or being installed, and which models need it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from greenroom.actors.installer.events import (
    InstallationActivated,
    InstallationBroken,
    InstallationCommitted,
    InstallationFound,
    InstallationMissing,
    InstallationRemoved,
    InstallationRetiring,
    InstallationsUnread,
    InstallAttemptFailed,
    InstallCancelled,
    InstallFailed,
    InstallRequested,
    VariantsRanked,
)
from greenroom.actors.installer.reconcile import passed_over
from greenroom.actors.installer.state import JobState
from greenroom.actors.scheduler.backend_choice import in_a_row
from greenroom.actors.scheduler.events import BackendChosen, LoadRefused
from greenroom.actors.values import Failure, Installation
from greenroom.runner.diagnosis.explanation import (
    Explanation,
    Remedy,
    Step,
    counted,
    full_stop,
    listed,
    tool_output,
)
from greenroom.runner.diagnosis.history import Happening, History, latest, of_type
from greenroom.runner.diagnosis.names import shown_model
from greenroom.runner.diagnosis.old_journals import missing_backends, preferred_backend
from greenroom.runner.diagnosis.stop_reasons import install
from greenroom.runner.diagnosis.times import clock, moment
from greenroom.runner.units import format_duration, format_size

_WANTED_BY = {
    "default": "it is a default backend",
    "explicit": "{who} asked for it",
    "request": "{who} needed it",
    "repair": "{who} asked for a rebuild",
}
"""Why a job was begun."""
_MADE_OR_BROKEN = (InstallationCommitted, InstallationFound, InstallationBroken)
_GONE = (InstallationRemoved, InstallationMissing, InstallCancelled)


class WhyBackend:
    def __init__(self, name: str, history: History, now: float, verdicts: Mapping[str, str]) -> None:
        """`verdicts`: the backends that are known, with why this machine cannot run them."""
        self._name = name
        self._history = history
        self._now = now
        self._verdict = verdicts.get(name, "")
        self._state = history.backend(name)
        self._events = [
            one for one in history.backends.get(name, ()) if one.record.stream == f"install/{name}"
        ]

    def find(self) -> Explanation:
        """Find what decided.

        1. It is installed.
        2. Its installations cannot be read.
        3. A job is running, or waiting for its next attempt.
        4. It is being removed.
        5. The last job ended without an installation.
        6. Its installation is broken.
        7. It was removed, or is missing.
        8. It was never installed.
        """
        state = self._state
        if state.usable is not None:  # 1
            return self._installed(state.usable)
        if state.unread:  # 2
            return self._unread(state.unread)
        if state.job is not None:  # 3
            return self._installing(state.job)
        if state.retiring:  # 4
            return self._retiring()
        broken = next((one for one in state.installations.values() if one.broken), None)
        if state.failure is not None:  # 5
            return self._failed(state.failure, broken)
        if broken is not None:  # 6
            return self._broken(broken)
        last = next((one for one in reversed(self._events) if isinstance(one.event, _GONE)), None)
        return self._gone(last) if last is not None else self._never()  # 7, 8

    # 1

    def _installed(self, usable: Installation) -> Explanation:
        name, born = self._name, self._birth(usable)
        since = f" since {moment(born.at, self._now)}" if born is not None else ""
        variant = f"{usable.variant} " if usable.variant else ""
        found = Explanation(
            state="installed",
            cause="found",
            answer=f"{name} {variant}{usable.version} has been installed{since} (installation {usable.id}).",
            numbers={"size": float(usable.size)},
            steps=(born.step,) if born is not None else (),
            remedies=(
                Remedy(aim="To rebuild it", command=f"greenroom reinstall-runner --backend {name}"),
                Remedy(aim="To remove it", command=f"greenroom uninstall-runner --backend {name}"),
            ),
        )
        if not usable.managed:
            found.cause = "named_in_the_config"
            found.answer += (
                f" It is your own, configured in config.toml ({usable.root}); Greenroom never changes it."
            )
            found.remedies = (Remedy(aim="To see your settings", command="greenroom config"),)
        elif born is not None and isinstance(born.event, InstallationCommitted):
            episode = self._episode(born.event.job)
            asked = latest(episode, InstallRequested)
            found.cause = asked[1].wanted_by if asked is not None else "explicit"
            found.numbers["seconds"] = born.event.seconds
            took = f" in {format_duration(born.event.seconds)}" if born.event.seconds else ""
            found.answer += f" It was installed{took} because {self._wanted(episode, found.cause)}."
            found.steps = _steps(episode)
        else:
            found.answer += " It was found on disk, complete and verified."
        if usable.built_with:
            found.answer += f" It was compiled on this machine with {usable.built_with}."
        found.answer += "".join(self._quarantined(usable))
        self._tell_chosen(found, usable, born)
        if (passed := passed_over(self._state)) is not None:
            found.cause = passed.code
            found.answer += f" {passed.message}"
            found.remedies = (Remedy(aim="To see your settings", command="greenroom config"), *found.remedies)
        found.also = (*self._serves(), *self._beside(usable), *self._passed_over_variants())
        self._tell_better(found, usable)
        job, failure = self._state.job, self._state.failure
        if job is not None:
            found.steps += _steps(self._episode(job.id))
        elif failure is not None:
            self._tell_failed_beside(found, failure)
        return found

    def _passed_over_variants(self) -> Iterator[str]:
        """Variants that come first in this machine's order and do not work here."""
        for one in self._state.ranked:
            if (why := self._state.tried.get(one.name)) is not None:
                yield f"The variant {one.name} could not be installed: {why.message} {why.advice}".strip()

    def _tell_better(self, found: Explanation, usable: Installation) -> None:
        """The variant that this machine's devices would rather have, unless the user has declined it."""
        state, last = self._state, latest(self._events, VariantsRanked)
        barred = {name for name, why in state.tried.items() if why.kind == "permanent"}
        best = next((one for one in state.ranked if one.usable and one.name not in barred), None)
        if last is None or best is None or best.name in state.declined or not usable.managed:
            return
        from greenroom.runner.backends.discovery import BACKENDS

        declared = BACKENDS.get(self._name)
        usual = {one.name for one in declared.variants if one.source is None} if declared else self._usual()
        chosen = set(declared.builds) if declared else set()
        here = {one.variant for one in state.whole}
        if usable.variant in chosen or best.name in here or (best.name in usual and "" in here):
            return
        since = moment(last[0].at, self._now)
        found.also += (
            f"Since {since} {best.name} has been the better variant for this machine: {best.reason}",
        )
        command = f"greenroom install-runner --backend {self._name} --variant {best.name}"
        found.remedies = (Remedy(aim="To install that", command=command), *found.remedies)
        found.steps += (last[0].step,)

    def _usual(self) -> set[str]:
        """What the variant without a name is called, of a backend that is not known here: the machine's first
        choice when that was installed.
        """
        ranked: VariantsRanked | None = None
        for one in self._events:
            if isinstance(one.event, VariantsRanked):
                ranked = one.event
            elif (
                isinstance(one.event, InstallationCommitted) and not one.event.installation.variant and ranked
            ):
                return {next((each.name for each in ranked.variants if each.usable), "")}
        return set()

    def _tell_chosen(self, found: Explanation, usable: Installation, born: Happening | None) -> None:
        """Since when it is in use, and why, unless by its own installation."""
        mine = [
            one for one in of_type(self._events, InstallationActivated) if one[1].installation_id == usable.id
        ]
        if not mine:
            return
        chosen, event = mine[-1]
        if not event.reason or (born is not None and chosen.record.seq < born.record.seq):
            return
        found.steps = (*found.steps, chosen.step)
        if born is None or not chosen.record.cause or chosen.record.cause != born.record.cause:
            since = moment(chosen.at, self._now)
            found.answer += (
                f" It has been in use since {since}: {full_stop(self._gone_before(chosen) or event.reason)}"
            )

    def _gone_before(self, chosen: Happening) -> str:
        """Which installation went missing, or was found damaged, just before another came into use."""
        at = self._events.index(chosen)
        before = self._events[at - 1].event if at else None
        match before:
            case InstallationMissing(installation_id=one, reason=reason):
                return f"{one}, which had been in use, was found to be missing ({reason.rstrip('.')})"
            case InstallationBroken(installation_id=one, reason=reason):
                return f"{one}, which had been in use, was found damaged ({reason.rstrip('.')})"
        return ""

    def _tell_failed_beside(self, found: Explanation, failure: Failure) -> None:
        """The one in use still works, but an attempt to install another failed."""
        last = latest(self._events, InstallFailed)
        if last is None:
            return
        episode = self._episode(last[1].job)
        asked = latest(episode, InstallRequested)
        version = asked[1].version if asked is not None else ""
        what = f"to install {version}" if version else "to rebuild it"
        at = moment(last[0].at, self._now)
        found.also = (*found.also, f"The last attempt {what} failed at {at}. {failure.sentence()}")
        found.words = tool_output(failure.detail)
        found.steps += _steps(episode)

    def _quarantined(self, usable: Installation) -> Iterator[str]:
        """A sentence, after a space, about each model that does not run on it."""
        for one in self._history.scheduler.quarantines.values():
            if (one.backend, one.installation_id) == (self._name, usable.id):
                name, failed = shown_model(one.model_id, self._history), in_a_row(one.failures)
                yield f" {name} failed {failed} on it and is served by {one.backend} {one.back_to_version}."

    def _birth(self, usable: Installation) -> Happening | None:
        for one in reversed(self._events):
            event = one.event
            if (
                isinstance(event, InstallationCommitted | InstallationFound)
                and event.installation.id == usable.id
            ):
                return one
        return None

    def _serves(self) -> list[str]:
        if (declared := self._state.declared) is not None:
            return [f"It is the environment for {declared.requirement}."]
        served = sorted(
            f"{shown_model(one.spec.model_id, self._history)} (engine {one.spec.engine_id})"
            for one in self._history.scheduler.loads.values()
            if one.spec.backend == self._name
        )
        return [f"It serves {listed(served)}." if served else "No model is loaded on it."]

    def _beside(self, usable: Installation) -> list[str]:
        lines = []
        for one in self._state.installations.values():
            if one.id != usable.id:
                retiring = one.id in self._state.retiring
                how = f"broken: {one.broken}" if one.broken else "being removed" if retiring else "complete"
                lines.append(f"Version {one.version} is also installed (installation {one.id}, {how}).")
        job = self._state.job
        if job is not None:
            since = clock(job.requested_at, self._now)
            lines.append(f"Another installation has been in progress since {since}.")
        return lines

    # 2

    def _unread(self, reason: str) -> Explanation:
        unread = [one for one in self._events if isinstance(one.event, InstallationsUnread)]
        since = moment(unread[-1].at, self._now) if unread else "the daemon started"
        return Explanation(
            state="broken",
            cause="unreadable",
            answer=(
                f"The installations of {self._name} have been unreadable since {since}: {full_stop(reason)} "
                "Until they can be read, they are not used, replaced or removed. Greenroom checks every 30s."
            ),
            steps=_steps(unread[-1:]),
            remedies=(Remedy(aim="To read the daemon's log", command="greenroom logs"),),
        )

    # 3

    def _installing(self, job: JobState) -> Explanation:
        now, name = self._now, self._name
        episode = self._episode(job.id)
        failures = [e for _, e in of_type(episode, InstallAttemptFailed)]
        found = Explanation(
            state="installing",
            cause=job.wanted_by,
            answer=(
                f"Greenroom has been installing {name} since {moment(job.requested_at, now)} because "
                f"{self._wanted(episode, job.wanted_by)}."
            ),
            numbers={
                "attempt": float(job.attempt),
                "failures": float(len(failures)),
                "elapsed": round(now - job.requested_at, 3),
            },
            also=self._tries(failures),
            steps=_steps(episode),
            words=tool_output(job.failure.detail) if job.failure is not None else (),
            remedies=(
                Remedy(aim="To wait for it", command=install(name)),
                Remedy(aim="To see its progress", command="greenroom status"),
            ),
        )
        if job.failure is not None and job.retry_at > now:
            found.state, found.cause = "waiting_to_retry", job.failure.code
            found.numbers["retry_at"] = job.retry_at
            tried = f"{len(failures)} attempts have" if len(failures) > 1 else "one attempt has"
            found.answer = (
                f"{name} is not installed yet: {tried} failed; retrying at {moment(job.retry_at, now)}. "
                f"The last error: {job.failure.sentence()}"
            )
        elif job.failure is not None:
            found.answer += f" This is attempt {job.attempt}. The previous one: {job.failure.sentence()}"
        return found

    # 4

    def _retiring(self) -> Explanation:
        users = sorted(
            one.spec.engine_id
            for one in self._history.runner(self._name).engines.values()
            if one.state != "gone" and one.spec.installation_id in self._state.retiring
        )
        last = latest(self._events, InstallationRetiring)
        reason = last[1].reason if last is not None else "it is no longer needed"
        since = f" since {moment(last[0].at, self._now)}" if last is not None else ""
        word = "engine" if len(users) == 1 else "engines"
        waits = f"Waiting for {word} {listed(users)} to stop." if users else "No engine uses it now."
        return Explanation(
            state="retiring",
            cause="uninstalled" if last is not None and last[1].unwanted else "replaced",
            answer=f"Greenroom has been removing {self._name}{since}: {full_stop(reason)} {waits}",
            numbers={"engines": float(len(users))},
            steps=_steps(self._events[-6:]),
            remedies=(
                Remedy(aim="To see what uses it", command="greenroom ps"),
                Remedy(aim="To install it again", command=install(self._name)),
            ),
        )

    # 5

    def _failed(self, failure: Failure, broken: Installation | None) -> Explanation:
        last = latest(self._events, InstallFailed)
        episode = self._episode(last[1].job) if last is not None else []
        failures = [e for _, e in of_type(episode, InstallAttemptFailed)]
        at = f" at {moment(last[0].at, self._now)}" if last is not None else ""
        after = f" after {counted(len(failures) + 1, 'attempt')}" if failures else ""
        then = (
            "The next request retries it."
            if failure.kind == "transient"
            else "Greenroom does not retry it automatically."
        )
        still = f" The existing installation is broken: {full_stop(broken.broken)}" if broken else ""
        return Explanation(
            state="failed",
            cause=failure.code,
            answer=(
                f"{self._name} is not installed: its installation failed{at}{after}. "
                f"{failure.sentence()} {then}{still}"
            ),
            numbers={"attempts": len(failures) + 1.0},
            also=(*self._tries(failures), *self._needed_by()),
            steps=_steps(episode),
            words=tool_output(failure.detail),
            remedies=(Remedy(aim="To try again", command=install(self._name)),),
        )

    # 6

    def _broken(self, broken: Installation) -> Explanation:
        last = latest(self._events, InstallationBroken)
        found = f"was found damaged at {moment(last[0].at, self._now)}" if last is not None else "is damaged"
        repair = Remedy(aim="To repair it", command=f"greenroom reinstall-runner --backend {self._name}")
        theirs = Remedy(
            aim="To use it once it is repaired", command=f"greenroom backends verify {self._name}"
        )
        answer = f"{self._name} {broken.version} cannot be used: its installation {found}."
        answer += f" {full_stop(broken.broken)}"
        if not broken.managed:
            since = f" Greenroom noticed that at {moment(last[0].at, self._now)}." if last is not None else ""
            answer = (
                f"{self._name} cannot be used: {broken.broken.rstrip('.')}. It is your own, configured in "
                f"config.toml.{since}"
            )
        return Explanation(
            state="broken",
            cause="broken",
            answer=answer,
            numbers={"size": float(broken.size)},
            also=self._needed_by(),
            steps=_steps(self._events[-8:]),
            remedies=(repair if broken.managed else theirs,),
        )

    # 7

    def _gone(self, last: Happening) -> Explanation:
        name, at = self._name, moment(last.at, self._now)
        found = Explanation(
            state="absent",
            cause="gone",
            answer=f"{name} has not been installed since {at}.",
            also=self._needed_by(),
            steps=_steps(self._events[-8:]),
            remedies=(Remedy(aim="To install it", command=install(name)),),
        )
        match last.event:
            case InstallationRemoved() as e:
                made = latest(self._events, InstallationCommitted)
                retired = [
                    (one, event)
                    for one, event in of_type(self._events, InstallationRetiring)
                    if event.installation_id == e.installation_id
                    or (event.unwanted and made is not None and one.record.seq > made[0].record.seq)
                ]
                retired.sort(key=lambda one: one[1].unwanted)
                reason = retired[-1][1].reason if retired else "it was no longer needed"
                if retired and (who := self._history.who(retired[-1][0].record.cause)):
                    reason = f"{who} uninstalled it" if retired[-1][1].unwanted else f"{reason} ({who})"
                found.cause = "uninstalled" if retired and retired[-1][1].unwanted else "removed"
                found.numbers["freed"] = float(e.freed)
                freed = f" That freed {format_size(e.freed)}." if e.freed else ""
                found.answer = f"{name} was removed at {at}: {full_stop(reason)}{freed}"
                if self._state.wanted is False:
                    found.answer += " It stays uninstalled until it is requested."
            case InstallCancelled() as e:
                found.cause = "cancelled"
                how = self._by(last) or f": {e.reason.rstrip('.')}"
                found.answer = f"{name} is not installed. Its installation was cancelled at {at}{how}."
            case InstallationMissing() as e:
                found.cause = "missing"
                found.answer = f"{name} was found to be missing at {at}: {full_stop(e.reason)}"
            case _:
                pass
        return found

    # 8

    def _never(self) -> Explanation:
        name = self._name
        found = Explanation(
            state="absent",
            cause="never_asked",
            answer=f"{name} is not installed: it has never been requested.",
            also=self._needed_by(),
            steps=_steps(self._refusals()[-4:]),
            remedies=(Remedy(aim="To install it", command=install(name)),),
        )
        if self._verdict:
            found.cause = "unsupported_platform"
            found.answer = f"{name} cannot be installed on this machine: {full_stop(self._verdict)}"
            aim = "To see what each backend can do here"
            found.remedies = (Remedy(aim=aim, command="greenroom backends"),)
        return found

    # around it

    def _wanted(self, episode: Sequence[Happening], wanted_by: str) -> str:
        """Why a job was begun: the request behind it, and the damage that it repairs."""
        asked = latest(episode, InstallRequested)
        who = self._history.who(asked[0].record.cause, asked[1].caller) if asked is not None else ""
        if asked is not None and self._state.declared is not None:
            who = asked[1].caller.name
        why = _WANTED_BY[wanted_by].format(who=who or ("a request" if wanted_by == "request" else "the user"))
        if asked is None:
            return why
        before = [one for one in self._events if one.record.seq < asked[0].record.seq]
        last = next((one for one in reversed(before) if isinstance(one.event, _MADE_OR_BROKEN)), None)
        if last is None or not isinstance(last.event, InstallationBroken):
            return why
        damage = f"{last.event.installation_id} was found damaged at {clock(last.at, self._now)}"
        return f"{why} and installation {damage} ({last.event.reason.rstrip('.')})"

    def _by(self, happening: Happening) -> str:
        """The request behind an event, as ` by …`; empty without one."""
        who = self._history.who(happening.record.cause)
        return f" by {who}" if who else ""

    def _episode(self, job: str) -> list[Happening]:
        """The events of one job, with those of the models it was started for."""
        mine = [one for one in self._events if job and one.about.job == job]
        root = mine[0].record.cause if mine else ""
        return [*(one for one in self._history.caused_by(root) if one.about.models), *mine]

    def _tries(self, failures: Sequence[InstallAttemptFailed]) -> tuple[str, ...]:
        return tuple(
            f"Attempt {one.attempt} failed (retry at {clock(one.retry_at, self._now)}): "
            + one.failure.message
            for one in failures
        )

    def _refusals(self) -> list[Happening]:
        """Refused requests that needed it, the last for each model."""
        found = []
        for model in self._history.models:
            events = self._history.models.of_type(model, LoadRefused)
            mine = [
                one for one, e in of_type(events, LoadRefused) if missing_backends(e)[:1] == (self._name,)
            ]
            found += mine[-1:]
        return sorted(found, key=lambda one: one.record.seq)

    def _needed_by(self) -> tuple[str, ...]:
        """Models that are refused because it is not installed, or served by another backend."""
        history = self._history
        refused = {
            shown_model(one.event.model_id, history)
            for one in self._refusals()
            if isinstance(one.event, LoadRefused)
        }
        chosen = {model: history.latest_of(model, BackendChosen) for model in history.models}
        meanwhile = {
            shown_model(model, history)
            for model, one in chosen.items()
            if one is not None and one[1].model_id == model and preferred_backend(one[1]) == self._name
        }
        lines = []
        if refused:
            names = listed(sorted(refused))
            lines.append(f"Requests for {names} were refused because it is not installed.")
        if meanwhile:
            verb = "was" if len(meanwhile) == 1 else "were"
            lines.append(f"{listed(sorted(meanwhile))} {verb} loaded on another backend instead.")
        return tuple(lines)


def _steps(happenings: Sequence[Happening]) -> tuple[Step, ...]:
    return tuple(one.step for one in happenings)
