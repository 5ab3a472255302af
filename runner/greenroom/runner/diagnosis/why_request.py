"""What a request caused, and what came of that. Requests themselves are not events."""

from __future__ import annotations

from greenroom.actors.installer.events import (
    InstallationCommitted,
    InstallCancelled,
    InstallFailed,
    InstallNotNeeded,
    InstallRequested,
)
from greenroom.actors.library.events import ModelCommitted, PullCancelled, PullFailed, PullRequested
from greenroom.actors.scheduler.events import EvictionDecided, LoadAdmitted, LoadRefused
from greenroom.runner.diagnosis import endings
from greenroom.runner.diagnosis.explanation import Remedy
from greenroom.runner.diagnosis.finding import Finding, ended, tool_words
from greenroom.runner.diagnosis.history import Happening, History, latest, of_type
from greenroom.runner.diagnosis.lives import Life, lives_in
from greenroom.runner.diagnosis.names import shown_model
from greenroom.runner.diagnosis.sentences import short
from greenroom.runner.diagnosis.times import moment
from greenroom.runner.units import format_duration, format_size


def why_request(request: str, history: History, now: float) -> Finding:
    """In order: what had to be installed or fetched for it, who made room, what was loaded, and the no."""
    caused = history.caused_by(request)
    if not caused:
        return Finding(
            state="served",
            cause="nothing_changed",
            answer=(
                f"Request {request} has changed nothing: an engine that was ready served it, or it was "
                "refused for a reason that other requests had met before."
            ),
            remedies=[Remedy(aim="What the daemon logged", command="greenroom logs")],
        )
    finding = Finding(
        state="served",
        cause="",
        answer=f"Request {request} had a first effect at {moment(caused[0].at, now)}.",
        numbers={},
        steps=list(caused),
    )
    _tell_jobs(finding, caused, history)
    _tell_room(finding, caused)
    admitted = latest(caused, LoadAdmitted)
    if admitted is not None:
        _tell_load(finding, admitted[1], history, now)
    refused = latest(caused, LoadRefused)
    if refused is not None:
        event = refused[1]
        ending = endings.of_refusal(event, refused[0].at, shown_model(event.model_id, history), now)
        finding.state, finding.cause, finding.remedies = "refused", ending.cause, ending.remedies
        finding.numbers |= ending.numbers
        finding.answer += f" It was refused at {moment(refused[0].at, now)}: {event.message}"
    if not finding.cause:
        finding.cause = caused[-1].record.type
        finding.answer += " What it changed is below."
    return finding


def _tell_jobs(finding: Finding, caused: list[Happening], history: History) -> None:
    for _, install in of_type(caused, InstallRequested):
        about = [one for one in history.backends.get(install.backend, ()) if one.about.job == install.job]
        finding.answer += f" It made Greenroom install {install.backend}."
        _tell_job(finding, about, "installing", install.backend)
    for _, pull in of_type(caused, PullRequested):
        about = [one for one in history.pulls.get(pull.reference, ()) if one.about.job == pull.job]
        finding.answer += f" It made Greenroom fetch {short(pull.reference)}."
        _tell_job(finding, about, "pulling", short(pull.reference))


def _tell_job(finding: Finding, about: list[Happening], doing: str, name: str) -> None:
    """How a job stands that a request has begun."""
    finding.steps = [*finding.steps, *about]
    finding.remedies = [Remedy(aim="How that is", command=f"greenroom why {name}")]
    match about[-1].event if about else None:
        case InstallationCommitted() | InstallNotNeeded() | ModelCommitted():
            finding.state, finding.cause = "served", doing
            finding.answer += " That is done."
        case InstallFailed(failure=failure) | PullFailed(failure=failure):
            finding.state, finding.cause, finding.words = "failed", failure.code, tool_words(failure.detail)
            finding.answer += f" That failed: {failure.sentence()}"
        case InstallCancelled(reason=reason) | PullCancelled(reason=reason):
            finding.state, finding.cause = "failed", "cancelled"
            finding.answer += f" That was ended: {ended(reason)}"
        case _:
            finding.state, finding.cause = "waiting", doing
            finding.answer += " That goes on."


def _tell_room(finding: Finding, caused: list[Happening]) -> None:
    for _, event in of_type(caused, EvictionDecided):
        finding.state, finding.cause = "waiting", "room"
        finding.answer += (
            f" {short(event.model_ref)} had to make room for it: {format_size(event.needed)} were needed and "
            f"{format_size(event.free)} free; it held {format_size(event.memory)} and had been idle for "
            f"{format_duration(event.idle_seconds)}."
        )
        finding.numbers |= {
            "needed": float(event.needed),
            "free": float(event.free),
            "idle_seconds": event.idle_seconds,
        }


def _tell_load(finding: Finding, admitted: LoadAdmitted, history: History, now: float) -> None:
    spec = admitted.spec
    name = shown_model(spec.model_id, history)
    events = [one for one in history.events_of(spec.model_id) if one.about.engine == spec.engine_id]
    life = next(iter(lives_in(events)), Life(engine_id=spec.engine_id))
    finding.steps = [*finding.steps, *events]
    finding.numbers |= {
        "memory": float(spec.memory),
        "promised": float(admitted.promised),
        "budget": float(admitted.budget),
    }
    finding.answer += f" It made Greenroom load {name} on {spec.backend} as engine {spec.engine_id}."
    finding.remedies = [Remedy(aim="How that engine is", command=f"greenroom why {spec.engine_id}")]
    if life.ready is not None:
        finding.state, finding.cause = "served", "loaded"
        finding.numbers["load_seconds"] = life.ready.seconds
        finding.answer += f" That took {format_duration(life.ready.seconds)}."
    elif life.failed is not None:
        ending = endings.of_failure(life, name, now)
        finding.state, finding.cause, finding.words = "failed", ending.cause, ending.words
        finding.numbers |= ending.numbers
        finding.answer += f" That failed: {life.failed.failure.message}"
    else:
        finding.state, finding.cause = "waiting", "loading"
        finding.answer += " It is not ready yet."
