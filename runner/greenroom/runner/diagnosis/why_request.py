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
from greenroom.runner.diagnosis import stop_reasons
from greenroom.runner.diagnosis.engine_history import EngineHistory, engines_in
from greenroom.runner.diagnosis.explanation import Explanation, Remedy, full_stop, tool_output
from greenroom.runner.diagnosis.history import Happening, History, latest, of_type
from greenroom.runner.diagnosis.names import shown_model
from greenroom.runner.diagnosis.sentences import short
from greenroom.runner.diagnosis.times import moment
from greenroom.runner.units import format_duration, format_size


def why_request(request: str, history: History, now: float) -> Explanation:
    """In order: what was installed or pulled for it, evicted for it, loaded for it, and its refusal."""
    caused = history.caused_by(request)
    if not caused:
        return Explanation(
            state="served",
            cause="nothing_changed",
            answer=(
                f"Request {request} changed nothing: an engine that was ready served it, or it was refused "
                "for the same reason as earlier requests."
            ),
            remedies=(Remedy(aim="To read the daemon's log", command="greenroom logs"),),
        )
    found = Explanation(
        state="served",
        answer=f"Request {request} first took effect at {moment(caused[0].at, now)}.",
        steps=tuple(one.step for one in caused),
    )
    _tell_jobs(found, caused, history)
    _tell_evictions(found, caused)
    admitted = latest(caused, LoadAdmitted)
    if admitted is not None:
        _tell_load(found, admitted[1], history, now)
    refused = latest(caused, LoadRefused)
    if refused is not None:
        event = refused[1]
        refusal = stop_reasons.of_refusal(event, refused[0].at, shown_model(event.model_id, history), now)
        found.state, found.cause, found.remedies = "refused", refusal.cause, refusal.remedies
        found.numbers |= refusal.numbers
        found.answer += f" It was refused at {moment(refused[0].at, now)}: {event.message}"
    if not found.cause:
        found.cause = caused[-1].record.type
        found.answer += " Its effects are listed below."
    return found


def _tell_jobs(found: Explanation, caused: list[Happening], history: History) -> None:
    for _, install in of_type(caused, InstallRequested):
        about = [one for one in history.backends.get(install.backend, ()) if one.about.job == install.job]
        found.answer += f" It made Greenroom install {install.backend}"
        _tell_job(found, about, "installing", install.backend)
    for _, pull in of_type(caused, PullRequested):
        about = [one for one in history.pulls.get(pull.reference, ()) if one.about.job == pull.job]
        found.answer += f" It made Greenroom pull {short(pull.reference)}"
        _tell_job(found, about, "pulling", short(pull.reference))


def _tell_job(found: Explanation, about: list[Happening], doing: str, name: str) -> None:
    """The state of a job that the request started."""
    found.steps += tuple(one.step for one in about)
    found.remedies = (Remedy(aim="To see its state", command=f"greenroom why {name}"),)
    match about[-1].event if about else None:
        case InstallationCommitted() | InstallNotNeeded() | ModelCommitted():
            found.state, found.cause = "served", doing
            found.answer += ", which succeeded."
        case InstallFailed(failure=failure) | PullFailed(failure=failure):
            found.state, found.cause, found.words = "failed", failure.code, tool_output(failure.detail)
            found.answer += f", which failed: {failure.sentence()}"
        case InstallCancelled(reason=reason) | PullCancelled(reason=reason):
            found.state, found.cause = "failed", "cancelled"
            found.answer += f", which was cancelled: {full_stop(reason)}"
        case _:
            found.state, found.cause = "waiting", doing
            found.answer += ", which is still in progress."


def _tell_evictions(found: Explanation, caused: list[Happening]) -> None:
    for _, event in of_type(caused, EvictionDecided):
        found.state, found.cause = "waiting", "room"
        found.answer += (
            f" {short(event.model_ref)} was evicted to make room for it: {format_size(event.needed)} was "
            f"needed and {format_size(event.free)} free; it held {format_size(event.memory)} and had been "
            f"idle for {format_duration(event.idle_seconds)}."
        )
        found.numbers |= {
            "needed": float(event.needed),
            "free": float(event.free),
            "idle_seconds": event.idle_seconds,
        }


def _tell_load(found: Explanation, admitted: LoadAdmitted, history: History, now: float) -> None:
    spec = admitted.spec
    name = shown_model(spec.model_id, history)
    events = [one for one in history.events_of(spec.model_id) if one.about.engine == spec.engine_id]
    engine = next(iter(engines_in(events)), EngineHistory(engine_id=spec.engine_id))
    found.steps += tuple(one.step for one in events)
    found.numbers |= {
        "memory": float(spec.memory),
        "promised": float(admitted.reserved),
        "budget": float(admitted.budget),
    }
    found.answer += f" It made Greenroom load {name} on {spec.backend} as engine {spec.engine_id}"
    aim = "To see the state of that engine"
    found.remedies = (Remedy(aim=aim, command=f"greenroom why {spec.engine_id}"),)
    if engine.ready is not None:
        found.state, found.cause = "served", "loaded"
        found.numbers["load_seconds"] = engine.ready.seconds
        found.answer += f", which took {format_duration(engine.ready.seconds)}."
    elif engine.failed is not None:
        failure = stop_reasons.of_failure(engine, name, now, daemons=history.daemons)
        found.state, found.cause, found.words = "failed", failure.cause, failure.words
        found.numbers |= failure.numbers
        found.answer += f", which failed: {engine.failed.failure.message}"
    else:
        found.state, found.cause = "waiting", "loading"
        found.answer += ", which is not ready yet."
