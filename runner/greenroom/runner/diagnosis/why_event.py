"""What an event of the journal, or a job, was: what caused it, and what came of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from greenroom.actors.installer.events import (
    InstallationCommitted,
    InstallAttemptFailed,
    InstallCancelled,
    InstallFailed,
    InstallNotNeeded,
)
from greenroom.actors.library.events import ModelCommitted, PullAttemptFailed, PullCancelled, PullFailed
from greenroom.runner.diagnosis.explanation import Explanation, Remedy, counted, full_stop, tool_output
from greenroom.runner.diagnosis.history import Happening, History
from greenroom.runner.diagnosis.names import shown_model
from greenroom.runner.diagnosis.recorded_request import Recorded, named
from greenroom.runner.diagnosis.sentences import Narrator, short
from greenroom.runner.diagnosis.times import moment
from greenroom.runner.units import format_duration

_CAUSES = 8
"""Causes of causes that are followed."""


def why_event(event_id: str, history: History, now: float, recorded: Recorded) -> Explanation:
    """What it says, what caused it, and what it caused."""
    happening = history.asked[event_id]
    causes = list(_causes(happening, history))
    effects = history.caused_by(event_id)
    cause = happening.record.cause
    found = Explanation(
        state="stored",
        cause=happening.record.type,
        answer=f"{moment(happening.at, now)}: {full_stop(_told(happening, history))}",
        steps=tuple(one.step for one in (*causes, happening, *effects)),
        remedies=tuple(_about(happening, history)),
    )
    if cause:
        row = recorded(cause) if cause.startswith("r-") else None
        request = f"request {cause}" if cause.startswith("r-") else f"Greenroom itself ({cause})"
        by = named(row) if row is not None else cause if "/" in cause else request
        found.also = (f"It was caused by {by}.",)
    if effects:
        found.also += (f"It led to {counted(len(effects), 'event')}.",)
    return found


def why_job(job: str, history: History, now: float) -> Explanation:
    """Who requested it, and how it ended or how far it is."""
    events = history.jobs[job]
    subject = next((one for event in events for one in (*event.about.references, *event.about.backends)), "")
    name = short(subject)
    began, last = events[0], events[-1]
    what = f"Job {job} {'pulls' if job.startswith('pull.') else 'installs'} {name}."
    since = f"It was requested at {moment(began.at, now)}"
    by = began.record.cause
    since += f" by request {by}" if by.startswith("r-") else ""
    found = Explanation(
        state="running",
        cause="requested",
        answer=f"{what} {since} and is still in progress.",
        numbers={"elapsed": round(now - began.at, 3)},
        steps=tuple(one.step for one in events),
        remedies=(Remedy(aim=f"To see the state of {name}", command=f"greenroom why {name}"),),
    )
    at = moment(last.at, now)
    match last.event:
        case InstallationCommitted(seconds=seconds) | ModelCommitted(seconds=seconds):
            found.state = found.cause = "done"
            took = f" after {format_duration(seconds)}" if seconds else ""
            found.answer = f"{what} {since} and succeeded{took} at {at}."
        case InstallNotNeeded():
            found.state = found.cause = "done"
            found.answer = f"{what} {since}; there was nothing left to do at {at}."
        case InstallFailed(failure=failure) | PullFailed(failure=failure):
            found.state, found.cause, found.words = "failed", failure.code, tool_output(failure.detail)
            found.answer = f"{what} {since} and failed at {at}. {failure.sentence()}"
        case InstallAttemptFailed(failure=failure) | PullAttemptFailed(failure=failure) as e:
            found.state, found.cause = "waiting_to_retry", failure.code
            found.words, found.numbers["retry_at"] = tool_output(failure.detail), e.retry_at
            found.answer = (
                f"{what} {since}. Attempt {e.attempt} failed; retrying at {moment(e.retry_at, now)}. "
                f"The error: {failure.sentence()}"
            )
        case InstallCancelled(reason=reason) | PullCancelled(reason=reason):
            found.state, found.cause = "failed", "cancelled"
            found.answer = f"{what} {since} and was cancelled at {at}: {full_stop(reason)}"
        case _:
            pass
    return found


def _causes(happening: Happening, history: History) -> Iterator[Happening]:
    """What caused it, and what caused that."""
    for _ in range(_CAUSES):
        if (before := history.event(happening.record.cause)) is None:
            return
        happening = before
        yield happening


def _told(happening: Happening, history: History) -> str:
    """Its sentence, by a narrator that has read what came before."""
    narrator = Narrator(history.hosts)
    around = history.around([happening])
    for seq in sorted(one for one in around if one < happening.record.seq):
        narrator.tell(around[seq].record)
    return narrator.tell(happening.record)


def _about(happening: Happening, history: History) -> Sequence[Remedy]:
    about = happening.about
    names = [shown_model(about.models[0], history)] if about.models else list(about.references[:1])
    names += [one for one in (about.engine, *about.backends[:1]) if one]
    return (
        *(Remedy(aim=f"About {short(one)}", command=f"greenroom why {short(one)}") for one in names),
        Remedy(aim="To see the state after it", command=f"greenroom replay --at {happening.record.seq}"),
    )
