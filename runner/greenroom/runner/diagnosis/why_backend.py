"""Why a backend is installed, not installed, or on its way, and who wants it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from greenroom.actors.installer.errors import passed_over
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
)
from greenroom.actors.installer.state import JobState
from greenroom.actors.scheduler.events import BackendChosen, LoadRefused
from greenroom.actors.values import Failure, Installation
from greenroom.runner.diagnosis.endings import install, named_backend
from greenroom.runner.diagnosis.explanation import Remedy
from greenroom.runner.diagnosis.finding import Finding, ended, listed, tool_words
from greenroom.runner.diagnosis.history import Happening, History, latest, of_type
from greenroom.runner.diagnosis.names import shown_model
from greenroom.runner.diagnosis.times import clock, moment
from greenroom.runner.diagnosis.why_loaded import preferred_absent
from greenroom.runner.units import format_duration, format_size

_WANTED_BY = {
    "default": ("it is a default backend", "it is a default backend"),
    "explicit": ("it was requested", "it was requested"),
    "request": ("a request needs it", "a request needed it"),
    "repair": ("a rebuild was requested", "a rebuild was requested"),
}
"""Why a job runs, and why one has run."""
_GONE = (InstallationRemoved, InstallationMissing, InstallCancelled)


class WhyBackend:
    """One question about one backend."""

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

    def find(self) -> Finding:
        """Find what decided.

        1. It is installed.
        2. What is on the disk cannot be looked at.
        3. A job is under way, or waits for its next attempt.
        4. It is being removed.
        5. The last job ended without an installation.
        6. What is there is broken.
        7. It was removed, or has vanished.
        8. It was never installed.
        """
        state = self._state
        if state.usable is not None:  # 1
            return self._installed(state.usable)
        if state.unread:  # 2
            return self._unread(state.unread)
        if state.job is not None:  # 3
            return self._under_way(state.job)
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

    def _installed(self, usable: Installation) -> Finding:
        name, born = self._name, self._birth(usable)
        since = moment(born.at, self._now) if born is not None else "the beginning"
        finding = Finding(
            state="installed",
            cause="found",
            answer=f"{name} {usable.version} is installed since {since} (installation {usable.id}).",
            numbers={"size": float(usable.size)},
            steps=[born] if born is not None else [],
            remedies=[
                Remedy(aim="To rebuild it", command=f"greenroom reinstall-runner --backend {name}"),
                Remedy(aim="To remove it", command=f"greenroom uninstall-runner --backend {name}"),
            ],
        )
        if not usable.managed:
            finding.cause = "named_in_the_config"
            finding.answer += (
                f" It is the user's own, named in the config ({usable.root}), and never touched."
            )
            finding.remedies = [Remedy(aim="Where that is said", command="greenroom config")]
        elif born is not None and isinstance(born.event, InstallationCommitted):
            asked = latest(self._episode(born.event.job), InstallRequested)
            finding.cause = asked[1].wanted_by if asked is not None else "explicit"
            finding.numbers["seconds"] = born.event.seconds
            took = f" in {format_duration(born.event.seconds)}" if born.event.seconds else ""
            finding.answer += f" It was installed{took} because {_WANTED_BY[finding.cause][1]}."
            finding.steps = self._episode(born.event.job)
        else:
            finding.answer += " It was found on disk, complete and verified."
        self._tell_chosen(finding, usable, born)
        if (passed := passed_over(self._state)) is not None:
            finding.cause = passed.code
            finding.answer += f" {passed.message}"
            finding.remedies = [
                Remedy(aim="To see where that is named", command="greenroom config"),
                *finding.remedies,
            ]
        finding.also = [*self._serves(), *self._beside(usable)]
        job, failure = self._state.job, self._state.failure
        if job is not None:
            finding.steps = [*finding.steps, *self._episode(job.id)]
        elif failure is not None:
            self._tell_failed_beside(finding, failure)
        return finding

    def _tell_chosen(self, finding: Finding, usable: Installation, born: Happening | None) -> None:
        """Where it was not simply installed: since when, and why it and no other is in use."""
        mine = [
            one for one in of_type(self._events, InstallationActivated) if one[1].installation_id == usable.id
        ]
        if not mine:
            return
        chosen, event = mine[-1]
        if not event.reason or (born is not None and chosen.record.seq < born.record.seq):
            return
        finding.steps = [*finding.steps, chosen]
        if born is None or not chosen.record.cause or chosen.record.cause != born.record.cause:
            since = moment(chosen.at, self._now)
            finding.answer += f" It is the one in use since {since}: {ended(event.reason)}"

    def _tell_failed_beside(self, finding: Finding, failure: Failure) -> None:
        """What is in use goes on, but somebody wanted another, and he or an operator asks why it is not."""
        last = latest(self._events, InstallFailed)
        if last is None:
            return
        episode = self._episode(last[1].job)
        asked = latest(episode, InstallRequested)
        version = asked[1].version if asked is not None else ""
        what = f"to install {version}" if version else "to rebuild it"
        at = moment(last[0].at, self._now)
        told = f"The last attempt {what} failed at {at}. {failure.sentence()}"
        finding.also = [*finding.also, told]
        finding.words = tool_words(failure.detail)
        finding.steps = [*finding.steps, *episode]

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
        loads = self._history.scheduler.loads.values()
        served = [
            f"{shown_model(one.spec.model_id, self._history)} (engine {one.spec.engine_id})"
            for one in loads
            if one.spec.backend == self._name
        ]
        return [f"It serves {listed(served)}." if served else "It serves nothing at the moment."]

    def _beside(self, usable: Installation) -> list[str]:
        lines = []
        for one in self._state.installations.values():
            if one.id != usable.id:
                retiring = one.id in self._state.retiring
                how = f"broken: {one.broken}" if one.broken else "being removed" if retiring else "whole"
                lines.append(f"{one.version} lies beside it (installation {one.id}, {how}).")
        job = self._state.job
        if job is not None:
            lines.append(f"Another installation is being made since {clock(job.requested_at, self._now)}.")
        return lines

    # 2

    def _unread(self, reason: str) -> Finding:
        found = [one for one in self._events if isinstance(one.event, InstallationsUnread)]
        since = moment(found[-1].at, self._now) if found else "the start"
        return Finding(
            state="broken",
            cause="unreadable",
            answer=f"The installations of {self._name} cannot be read since {since}: {ended(reason)} "
            "They are not used, replaced or removed until then. Greenroom checks again every 30 s.",
            steps=found[-1:],
            remedies=[Remedy(aim="What else is known of it", command="greenroom logs")],
        )

    # 3

    def _under_way(self, job: JobState) -> Finding:
        now, name = self._now, self._name
        episode = self._episode(job.id)
        failures = [e for _, e in of_type(episode, InstallAttemptFailed)]
        finding = Finding(
            state="installing",
            cause=job.wanted_by,
            answer=(
                f"{name} is being installed since {moment(job.requested_at, now)}, because "
                f"{_WANTED_BY[job.wanted_by][0]}."
            ),
            numbers={
                "attempt": float(job.attempt),
                "failures": float(len(failures)),
                "elapsed": round(now - job.requested_at, 3),
            },
            also=self._tries(failures),
            steps=episode,
            words=tool_words(job.failure.detail) if job.failure is not None else (),
            remedies=[
                Remedy(aim="To wait for it", command=install(name)),
                Remedy(aim="How far it is", command="greenroom status"),
            ],
        )
        if job.failure is not None and job.retry_at > now:
            finding.state, finding.cause = "waiting_to_retry", job.failure.code
            finding.numbers["retry_at"] = job.retry_at
            tried = f"{len(failures)} attempts have" if len(failures) > 1 else "one attempt has"
            finding.answer = (
                f"{name} is not installed yet: {tried} failed, the next one begins at "
                f"{moment(job.retry_at, now)}. The last error: {job.failure.sentence()}"
            )
        elif job.failure is not None:
            finding.answer += f" This is attempt {job.attempt}. The one before: {job.failure.sentence()}"
        return finding

    # 4

    def _retiring(self) -> Finding:
        users = [
            one.spec.engine_id
            for one in self._history.runner(self._name).engines.values()
            if one.state != "gone" and one.spec.installation_id in self._state.retiring
        ]
        last = latest(self._events, InstallationRetiring)
        reason = last[1].reason if last is not None else "it is not wanted any more"
        since = moment(last[0].at, self._now) if last is not None else "some time"
        waits = f"It waits for {listed(users)} to end." if users else "No engine uses it any more."
        return Finding(
            state="retiring",
            cause="uninstalled" if last is not None and last[1].unwanted else "replaced",
            answer=f"{self._name} is being removed since {since}: {ended(reason)} {waits}",
            numbers={"engines": float(len(users))},
            steps=self._events[-6:],
            remedies=[
                Remedy(aim="Who uses it", command="greenroom ps"),
                Remedy(aim="To install it again", command=install(self._name)),
            ],
        )

    # 5

    def _failed(self, failure: Failure, broken: Installation | None) -> Finding:
        last = latest(self._events, InstallFailed)
        episode = self._episode(last[1].job) if last is not None else []
        failures = [e for _, e in of_type(episode, InstallAttemptFailed)]
        at = moment(last[0].at, self._now) if last is not None else "the last attempt"
        after = f" after {len(failures) + 1} attempts" if failures else ""
        then = (
            "It is tried again at the next request."
            if failure.kind == "transient"
            else "It is not tried again by itself."
        )
        still = f" What is there is broken: {ended(broken.broken)}" if broken is not None else ""
        return Finding(
            state="failed",
            cause=failure.code,
            answer=(
                f"{self._name} is not installed: its installation failed at {at}{after}. "
                f"{failure.sentence()} {then}{still}"
            ),
            numbers={"attempts": len(failures) + 1.0},
            also=[*self._tries(failures), *self._who_wants_it()],
            steps=episode,
            words=tool_words(failure.detail),
            remedies=[Remedy(aim="To try again", command=install(self._name))],
        )

    # 6

    def _broken(self, broken: Installation) -> Finding:
        last = latest(self._events, InstallationBroken)
        since = moment(last[0].at, self._now) if last is not None else "its last start"
        repair = Remedy(aim="To repair it", command=f"greenroom reinstall-runner --backend {self._name}")
        theirs = Remedy(aim="Where it is named", command="greenroom config")
        return Finding(
            state="broken",
            cause="broken",
            answer=(
                f"{self._name} {broken.version} cannot be used: it is not as it was installed, as was found "
                f"at {since}. {ended(broken.broken)}"
            ),
            numbers={"size": float(broken.size)},
            also=self._who_wants_it(),
            steps=self._events[-8:],
            remedies=[repair if broken.managed else theirs],
        )

    # 7

    def _gone(self, last: Happening) -> Finding:
        name, at = self._name, moment(last.at, self._now)
        finding = Finding(
            state="absent",
            cause="gone",
            answer="",
            numbers={},
            also=self._who_wants_it(),
            steps=self._events[-8:],
            remedies=[Remedy(aim="To install it", command=install(name))],
        )
        match last.event:
            case InstallationRemoved() as e:
                retired = [
                    one
                    for _, one in of_type(self._events, InstallationRetiring)
                    if one.installation_id == e.installation_id
                ]
                reason = retired[-1].reason if retired else "it was not wanted any more"
                finding.cause = "uninstalled" if retired and retired[-1].unwanted else "removed"
                finding.numbers["freed"] = float(e.freed)
                freed = f" {format_size(e.freed)} were freed." if e.freed else ""
                finding.answer = f"{name} is not installed since {at}: {ended(reason)}{freed}"
                if self._state.wanted is False:
                    finding.answer += " It stays uninstalled until it is requested."
            case InstallCancelled() as e:
                finding.cause = "cancelled"
                finding.answer = (
                    f"{name} is not installed: its installation was ended at {at}: {ended(e.reason)}"
                )
            case InstallationMissing() as e:
                finding.cause = "missing"
                finding.answer = f"{name} is not installed any more, as was found at {at}: {ended(e.reason)}"
            case _:
                finding.answer = f"{name} is not installed since {at}."
        return finding

    # 8

    def _never(self) -> Finding:
        name = self._name
        if self._verdict:
            return Finding(
                state="absent",
                cause="unsupported_platform",
                answer=f"{name} is not installed and cannot be on this machine: {ended(self._verdict)}",
                also=self._who_wants_it(),
                steps=self._refusals()[-4:],
                remedies=[Remedy(aim="What each backend can do here", command="greenroom backends")],
            )
        return Finding(
            state="absent",
            cause="never_asked",
            answer=f"{name} is not installed: it was never requested.",
            also=self._who_wants_it(),
            steps=self._refusals()[-4:],
            remedies=[Remedy(aim="To install it", command=install(name))],
        )

    # around it

    def _episode(self, job: str) -> list[Happening]:
        """The events of one job, with those of the models it was begun for."""
        mine = [one for one in self._events if job and one.about.job == job]
        root = mine[0].record.cause if mine else ""
        return [*(one for one in self._history.caused_by(root) if one.about.models), *mine]

    def _tries(self, failures: Sequence[InstallAttemptFailed]) -> list[str]:
        return [
            f"Attempt {one.attempt} failed, the next was set for {clock(one.retry_at, self._now)}: "
            + one.failure.message
            for one in failures
        ]

    def _refusals(self) -> list[Happening]:
        """Requests that were refused for want of it, the last for each model."""
        found = []
        for events in self._history.models.values():
            mine = [one for one, e in of_type(events, LoadRefused) if named_backend(e.message) == self._name]
            found += mine[-1:]
        return sorted(found, key=lambda one: one.record.seq)

    def _who_wants_it(self) -> list[str]:
        """Models that are not served for want of it, or are served by another."""
        history = self._history
        refused = {
            shown_model(one.event.model_id, history)
            for one in self._refusals()
            if isinstance(one.event, LoadRefused)
        }
        chosen = {model: latest(events, BackendChosen) for model, events in history.models.items()}
        meanwhile = {
            shown_model(model, history)
            for model, one in chosen.items()
            if one is not None and one[1].model_id == model and preferred_absent(one[1]) == self._name
        }
        lines = []
        if refused:
            lines.append(f"Requests for {listed(refused)} were refused because it is not installed.")
        if meanwhile:
            verb = "was" if len(meanwhile) == 1 else "were"
            lines.append(f"{listed(meanwhile)} {verb} loaded on another backend, though it is preferred.")
        return lines
